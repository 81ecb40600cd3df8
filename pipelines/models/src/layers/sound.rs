//! What models of speech have beside a stack: convolutions that make features of samples, positions that the states
//! themselves tell, and what shortens a sequence (<https://arxiv.org/abs/2006.11477>).

use accel_backends::tensor::{Convolution as Op, Linear, Tensor, TensorError};

use crate::ModelError;
use crate::layers::batch_norm::BatchNorm;
use crate::layers::convolution::{Convolution, GroupNorm, weight_of_length};
use crate::layers::norm::Norm;
use crate::rules::Loader;
use crate::spec::speech::{
    SoundAdapterSpec, SoundConvolutionSpec, SoundNormSpec, SoundPositionsKind, SoundPositionsSpec,
};
use crate::spec::{Activation, NormKind, NormSpec};

/// The epsilon of norms, where no configuration has it.
const EPS: f32 = 1e-5;

/// A convolution over samples or features and the norm after it.
#[derive(Debug)]
pub struct SoundConvolution {
    convolution: Convolution,
    norm: SoundNorm,
}

#[derive(Debug)]
enum SoundNorm {
    None,
    Channels(GroupNorm),
    Places(Norm),
}

impl SoundConvolution {
    /// Reads the parts `convolution` and `norm` of that name.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, name: &str, spec: &SoundConvolutionSpec) -> Result<Self, ModelError> {
        let op = Op::new(1).stride(spec.stride);
        let dims = [spec.outputs, spec.inputs, spec.taps];
        let convolution = Convolution::load(loader, &format!("{name}.convolution"), op, &dims, spec.bias)?;
        let norm = format!("{name}.norm");
        let norm = match spec.norm {
            SoundNormSpec::None => SoundNorm::None,
            SoundNormSpec::Channels => {
                SoundNorm::Channels(GroupNorm::load(loader, &norm, spec.outputs, spec.outputs, EPS)?)
            }
            SoundNormSpec::Places => {
                SoundNorm::Places(Norm::load(loader, &norm, &NormSpec::layer(f64::from(EPS)), spec.outputs)?)
            }
        };
        Ok(Self { convolution, norm })
    }

    /// x: `[batch, inputs, places]` to `[batch, outputs, fewer places]`.
    ///
    /// # Errors
    ///
    /// When the shape does not fit, or there are fewer places than taps.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let turned = |x: &Tensor| x.transpose(1, 2).map_err(ModelError::at("features"));
        let x = self.convolution.forward(x)?;
        match &self.norm {
            SoundNorm::None => Ok(x),
            SoundNorm::Channels(norm) => norm.forward(&x),
            SoundNorm::Places(norm) => turned(&norm.forward(&turned(&x)?)?),
        }
    }
}

/// Convolutions over states that tell their positions.
#[derive(Debug)]
pub struct SoundPositions {
    before: Option<BatchNorm>,
    convolutions: Vec<Convolution>,
    after: Option<Norm>,
}

impl SoundPositions {
    /// Reads the part `positions`, for positions of every `stride`-th place.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(
        loader: &Loader<'_>,
        spec: &SoundPositionsSpec,
        hidden: usize,
        stride: usize,
    ) -> Result<Self, ModelError> {
        // An even number of taps gives one place too many, and the last goes.
        let after = spec.taps.div_ceil(2) - 1;
        let op = Op { padding: vec![(spec.taps / 2, after)], ..Op::new(1).stride(stride).groups(spec.groups) };
        let dims = [hidden, hidden / spec.groups, spec.taps];
        let name = "positions";
        Ok(match spec.kind {
            SoundPositionsKind::OfLength => {
                let weight = weight_of_length(loader, name, &dims, 2)?;
                let layer = Linear { weight, bias: Some(loader.tensor("positions.bias", &[hidden])?) };
                let convolutions = vec![Convolution::of(loader.name(name), op, layer)];
                Self { before: None, convolutions, after: None }
            }
            SoundPositionsKind::BatchNorm => Self {
                before: Some(BatchNorm::load(loader, "positions.norm", hidden, EPS)?),
                convolutions: vec![Convolution::load(loader, name, op, &dims, true)?],
                after: None,
            },
            SoundPositionsKind::Several(count) => {
                let convolution =
                    |number| Convolution::load(loader, &format!("{name}.{number}"), op.clone(), &dims, true);
                let norm = NormSpec { kind: NormKind::Layer, eps: EPS, weight: false, bias: false };
                Self {
                    before: None,
                    convolutions: (0..count).map(convolution).collect::<Result<_, _>>()?,
                    after: Some(Norm::load(loader, "positions.norm", &norm, hidden)?),
                }
            }
        })
    }

    /// x: `[batch, places, hidden]` to the same shape, or as many places as the stride leaves.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn forward(&self, x: &Tensor, activation: Activation) -> Result<Tensor, ModelError> {
        let turned = |x: &Tensor| x.transpose(1, 2).map_err(ModelError::at("positions"));
        let mut x = match &self.before {
            Some(norm) => norm.forward(x)?,
            None => x.clone(),
        };
        for convolution in &self.convolutions {
            x = turned(&convolution.forward(&turned(&x)?)?)?;
            if let Some(norm) = &self.after {
                x = norm.forward(&x)?;
            }
            x = x.activate(activation).map_err(ModelError::at("positions"))?;
        }
        Ok(x)
    }
}

/// Several places become one, and one several again (<https://arxiv.org/abs/2109.06870>).
#[derive(Debug)]
pub struct SoundSqueeze {
    factor: usize,
    layer: Linear,
}

impl SoundSqueeze {
    /// Reads the part `squeeze`.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, factor: usize, hidden: usize) -> Result<Self, ModelError> {
        Ok(Self { factor, layer: loader.linear("squeeze", hidden * factor, hidden, true)? })
    }

    /// The mean of each `factor` places. x: `[batch, places, hidden]` to `[batch, places / factor, hidden]`.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn squeezed(&self, x: &Tensor) -> Result<Tensor, TensorError> {
        let [batch, places, hidden] = x.sizes()?;
        let fewer = places / self.factor;
        let apart = x.narrow(1, 0, fewer * self.factor)?.reshape(&[batch, fewer, self.factor, hidden])?;
        apart.mean(&[2])?.squeeze(2)
    }

    /// x: `[batch, places / factor, hidden]` to `[batch, places, hidden]`; places that are left over are zeros.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn spread(&self, x: &Tensor, activation: Activation, places: usize) -> Result<Tensor, TensorError> {
        let [batch, fewer, hidden] = x.sizes()?;
        let spread = x.linear(&self.layer)?.activate(activation)?.reshape(&[batch, fewer * self.factor, hidden])?;
        spread.pad(1, 0, places.saturating_sub(fewer * self.factor), 0.0)
    }

    /// How many places become one.
    pub fn factor(&self) -> usize {
        self.factor
    }
}

/// Convolutions with gates that shorten a sequence of states.
#[derive(Debug)]
pub struct SoundAdapter {
    projection: Option<(Linear, Norm)>,
    convolutions: Vec<Convolution>,
}

impl SoundAdapter {
    /// Reads the part `adapter`.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: &SoundAdapterSpec, hidden: usize) -> Result<Self, ModelError> {
        let projection = || {
            let norm = Norm::load(loader, "adapter.norm", &NormSpec::layer(f64::from(EPS)), spec.width)?;
            Ok::<_, ModelError>((loader.linear("adapter.projection", spec.width, hidden, true)?, norm))
        };
        let op = Op::new(1).stride(spec.stride).padding(1);
        let dims = [2 * spec.width, spec.width, spec.taps];
        let convolution =
            |number| Convolution::load(loader, &format!("adapter.layers.{number}"), op.clone(), &dims, true);
        Ok(Self {
            projection: (spec.width != hidden).then(projection).transpose()?,
            convolutions: (0..spec.layers).map(convolution).collect::<Result<_, _>>()?,
        })
    }

    /// x: `[batch, places, hidden]` to `[batch, fewer places, width]`.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let at = || ModelError::at("adapter");
        let mut x = x.clone();
        if let Some((projection, norm)) = &self.projection {
            x = norm.forward(&x.linear(projection).map_err(at())?)?;
        }
        x = x.transpose(1, 2).map_err(at())?;
        for convolution in &self.convolutions {
            let both = convolution.forward(&x)?;
            let gated = || {
                let [value, gate] = both.chunks(1)?;
                value.mul(&gate.sigmoid()?)
            };
            x = gated().map_err(at())?;
        }
        x.transpose(1, 2).map_err(at())
    }
}
