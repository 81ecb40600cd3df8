//! State spaces with one rate to a head of channels (Mamba-2, <https://arxiv.org/abs/2405.21060>;
//! `transformers/models/mamba2`).
//!
//! The scan goes token by token: the chunks that the paper works in are a way of computing the same, and a result must not
//! depend on them.

use accel_backends::tensor::{Linear, Scan, ScanInputs, Tensor, TensorError};

use crate::ModelError;
use crate::cache::{LayerState, Part};
use crate::layers::attention::Pass;
use crate::layers::carry::{Carries, without_padding};
use crate::layers::mamba::{convolution, convolved, rates, zeros};
use crate::layers::norm::Norm;
use crate::rules::Loader;
use crate::spec::{Activation, Mamba2Spec};

/// A mixer with its weights. A sequence carries the tail of the convolution, `[taps - 1, inner + 2 * groups * places]`,
/// and the state, `[inner, places]`; `inner` is `heads * head`.
#[derive(Debug)]
pub struct Mamba2 {
    name: String,
    spec: Mamba2Spec,
    gate: Linear,
    x: Linear,
    step: Linear,
    conv: Linear,
    step_bias: Tensor,
    rate: Tensor,
    skip: Tensor,
    norm: Norm,
    out: Linear,
}

impl Mamba2 {
    /// Reads the mixer of that name.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, name: &str, spec: &Mamba2Spec, hidden: usize) -> Result<Self, ModelError> {
        let at = |part: &str| format!("{name}.{part}");
        let (heads, inner) = (spec.heads, spec.heads * spec.head);
        let wide = inner + 2 * spec.groups * spec.places;
        let part = |first: usize, count: usize| {
            loader.rows(&at("in"), [inner + wide + heads, hidden], first..first + count, spec.bias)
        };
        Ok(Self {
            name: loader.name(name),
            gate: part(0, inner)?,
            x: part(inner, wide)?,
            step: part(inner + wide, heads)?,
            conv: convolution(loader, &at("conv"), wide, spec.taps, spec.conv_bias)?,
            step_bias: loader.tensor(&at("step_bias"), &[heads])?,
            rate: rates(loader, &at("rate"), &[heads])?.reshape(&[heads, 1]).map_err(ModelError::at(name))?,
            skip: loader.tensor(&at("skip"), &[heads])?,
            norm: Norm::load(loader, &at("norm"), &spec.norm, inner)?,
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
        let Mamba2Spec { heads, head, groups, places, taps, activation, .. } = self.spec;
        let (inner, shared) = (heads * head, groups * places);
        let engine = x.engine().clone();
        let mut carries = Carries::of(&self.name, pass.rows, state.as_deref(), Part::Mixer, || {
            Ok(vec![zeros(&engine, &[taps - 1, inner + 2 * shared])?, zeros(&engine, &[inner, places])?])
        })?;
        let x = without_padding(x, pass).map_err(at())?;
        let [gate, x, step] = x.linears([&self.gate, &self.x, &self.step]).map_err(at())?;
        let x = convolved(&mut carries, &x, &self.conv, activation)?;
        let x = without_padding(&x, pass).map_err(at())?;
        let step = self.steps(&step).map_err(at())?;
        let y = carries.each(1, |tokens, state| {
            let own = |all: &Tensor| all.narrow(0, tokens.start, tokens.len());
            let [x, input, output] =
                <[Tensor; 3]>::try_from(own(&x)?.split(1, &[inner, shared, shared])?).map_err(|parts| {
                    TensorError::Shape {
                        operation: "split",
                        expected: "three parts".into(),
                        found: parts.len().to_string(),
                    }
                })?;
            let step = own(&step)?;
            let inputs = ScanInputs { step: &step, rate: &self.rate, input: &input, output: &output, skip: &self.skip };
            x.scan(Scan { head, groups }, &inputs, state)
        })?;
        carries.keep(state, Part::Mixer);
        let gated = gate.gated(Activation::Silu, &y).map_err(at())?;
        self.norm.forward(&gated)?.linear(&self.out).map_err(at())
    }

    /// `[tokens, heads]` as steps within their limits.
    fn steps(&self, x: &Tensor) -> Result<Tensor, TensorError> {
        let steps = x.add(&self.step_bias)?.activate(Activation::Softplus)?;
        let (least, largest) = self.spec.steps;
        // No step is below 0, and a graph need not hold infinity.
        let steps = if least > 0.0 { steps.max(&steps.like(least)?)? } else { steps };
        if largest < f32::INFINITY { steps.min(&steps.like(largest)?) } else { Ok(steps) }
    }
}
