//! State spaces: what a token adds to the state of each channel, and how fast that fades, is chosen by the token
//! (Mamba, <https://arxiv.org/abs/2312.00752>; `transformers/models/mamba`, `transformers/models/jamba`).

use accel_backends::tensor::{Linear, Scan, ScanInputs, Tensor, TensorError};

use crate::ModelError;
use crate::cache::{LayerState, Part};
use crate::layers::attention::Pass;
use crate::layers::carry::{Carries, without_padding};
use crate::layers::norm::Norm;
use crate::rules::Loader;
use crate::spec::{Activation, MambaSpec};

/// A mixer with its weights. A sequence carries the tail of the convolution, `[taps - 1, inner]`, and the state, `[inner,
/// places]`.
#[derive(Debug)]
pub struct Mamba {
    name: String,
    spec: MambaSpec,
    x: Linear,
    gate: Linear,
    conv: Linear,
    step_narrow: Linear,
    input: Linear,
    output: Linear,
    norms: Option<[Norm; 3]>,
    step: Linear,
    rate: Tensor,
    skip: Tensor,
    out: Linear,
}

impl Mamba {
    /// Reads the mixer of that name.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, name: &str, spec: &MambaSpec, hidden: usize) -> Result<Self, ModelError> {
        let at = |part: &str| format!("{name}.{part}");
        let MambaSpec { inner, places, step_rank, .. } = *spec;
        let joined = |first: usize, count: usize| {
            loader.rows(&at("select"), [step_rank + 2 * places, inner], first..first + count, false)
        };
        let half = |first: usize| loader.rows(&at("in"), [2 * inner, hidden], first..first + inner, spec.bias);
        let norm =
            |part: &str, width| spec.norm.as_ref().map(|norm| Norm::load(loader, &at(part), norm, width)).transpose();
        let norms = [norm("step_norm", step_rank)?, norm("input_norm", places)?, norm("output_norm", places)?];
        let [step_norm, input_norm, output_norm] = norms;
        Ok(Self {
            name: loader.name(name),
            x: half(0)?,
            gate: half(inner)?,
            conv: convolution(loader, &at("conv"), inner, spec.taps, spec.conv_bias)?,
            step_narrow: joined(0, step_rank)?,
            input: joined(step_rank, places)?,
            output: joined(step_rank + places, places)?,
            norms: step_norm.zip(input_norm).zip(output_norm).map(|((step, input), output)| [step, input, output]),
            step: loader.linear(&at("step"), inner, step_rank, true)?,
            rate: rates(loader, &at("rate"), &[inner, places])?,
            skip: loader.tensor(&at("skip"), &[inner])?,
            out: loader.linear(&at("out"), hidden, inner, spec.bias)?,
            spec: spec.clone(),
        })
    }

    /// x: `[tokens, hidden]` to the same shape; what sequences carry goes into the state.
    ///
    /// # Errors
    ///
    /// When the shape or the state does not fit.
    pub fn forward(&self, x: &Tensor, pass: &Pass<'_>, state: Option<&mut LayerState>) -> Result<Tensor, ModelError> {
        let at = || ModelError::at(&self.name);
        let MambaSpec { inner, places, taps, activation, .. } = self.spec;
        let engine = x.engine().clone();
        let mut carries = Carries::of(&self.name, pass.rows, state.as_deref(), Part::Mixer, || {
            Ok(vec![zeros(&engine, &[taps - 1, inner])?, zeros(&engine, &[inner, places])?])
        })?;
        let [x, gate] = x.linears([&self.x, &self.gate]).map_err(at())?;
        // Padding neither enters the convolution nor, by what the convolution makes of it, the state.
        let x = without_padding(&x, pass).map_err(at())?;
        let x = convolved(&mut carries, &x, &self.conv, activation)?;
        let x = without_padding(&x, pass).map_err(at())?;
        let [step, input, output] = self.selected(&x)?;
        let y = carries.each(1, |tokens, state| {
            let own = |all: &Tensor| all.narrow(0, tokens.start, tokens.len());
            let (step, input, output) = (own(&step)?, own(&input)?, own(&output)?);
            let inputs = ScanInputs { step: &step, rate: &self.rate, input: &input, output: &output, skip: &self.skip };
            own(&x)?.scan(Scan { head: 1, groups: 1 }, &inputs, state)
        })?;
        carries.keep(state, Part::Mixer);
        gate.gated(activation, &y).and_then(|y| y.linear(&self.out)).map_err(at())
    }

    /// The steps `[tokens, inner]`, inputs and outputs `[tokens, places]` that tokens choose.
    fn selected(&self, x: &Tensor) -> Result<[Tensor; 3], ModelError> {
        let at = || ModelError::at(&self.name);
        let [mut step, mut input, mut output] =
            x.linears([&self.step_narrow, &self.input, &self.output]).map_err(at())?;
        if let Some([step_norm, input_norm, output_norm]) = &self.norms {
            step = step_norm.forward(&step)?;
            input = input_norm.forward(&input)?;
            output = output_norm.forward(&output)?;
        }
        let step = step.linear(&self.step).and_then(|step| step.activate(Activation::Softplus)).map_err(at())?;
        Ok([step, input, output])
    }
}

pub(super) fn zeros(engine: &accel_backends::tensor::Engine, dims: &[usize]) -> Result<Tensor, TensorError> {
    Tensor::new(engine, vec![0.0; dims.iter().product()], dims)
}

/// A convolution of each channel by itself, `[channels, 1, taps]` in the file, as `[taps, channels]`.
pub(super) fn convolution(
    loader: &Loader<'_>,
    name: &str,
    channels: usize,
    taps: usize,
    bias: bool,
) -> Result<Linear, ModelError> {
    let layer = loader.layer(name, &[channels, 1, taps], bias)?;
    let turned = || {
        let turned = layer.weight.reshape(&[channels, taps])?.transpose(0, 1)?;
        Tensor::new(loader.engine, turned.to_vec()?, &[taps, channels])
    };
    Ok(Linear { weight: turned().map_err(ModelError::at(loader.name(name)))?, bias: layer.bias })
}

/// Rates below 0, of which the file has the logarithm of the size.
pub(super) fn rates(loader: &Loader<'_>, name: &str, dims: &[usize]) -> Result<Tensor, ModelError> {
    let logarithms = loader.tensor(name, dims)?;
    let rates = || Tensor::new(loader.engine, logarithms.to_vec()?.into_iter().map(|x| -libm::expf(x)).collect(), dims);
    rates().map_err(ModelError::at(loader.name(name)))
}

/// Through the convolution, whose tails are carried at place 0, and its activation.
pub(super) fn convolved(
    carries: &mut Carries<'_>,
    x: &Tensor,
    conv: &Linear,
    activation: Activation,
) -> Result<Tensor, ModelError> {
    carries.each(0, |tokens, tail| {
        let (out, tail) = x.narrow(0, tokens.start, tokens.len())?.causal_convolution(tail, conv)?;
        Ok((out.activate(activation)?, tail))
    })
}
