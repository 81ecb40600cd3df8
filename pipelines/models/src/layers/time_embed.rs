//! Embeddings of moments in a diffusion (<https://arxiv.org/abs/2006.11239>).

use accel_backends::tensor::{Linear, Tensor, TensorError};

use crate::ModelError;
use crate::rules::Loader;
use crate::spec::Activation;
use crate::spec::unet::{TimeEmbedSpec, WavesSpec};

/// Cosines and sines of numbers t: `[n]`, to `[n, width]`.
///
/// # Errors
///
/// When the shape does not fit.
pub fn waves(t: &Tensor, spec: &WavesSpec) -> Result<Tensor, TensorError> {
    let half = spec.width / 2;
    // In f32, as the reference has it: moments go up to 1000, so that the last bits of a frequency show.
    let step = |place: usize| -(10_000_f64.ln() as f32) * place as f32 / (half as f32 - spec.shift);
    let frequencies = (0..half).map(|place| libm::expf(step(place))).collect();
    let angles = t.reshape(&[t.count(), 1])?.mul(&Tensor::new(t.engine(), frequencies, &[1, half])?)?;
    let (sines, cosines) = (angles.sin()?, angles.cos()?);
    let both = if spec.cosines_first { [cosines, sines] } else { [sines, cosines] };
    Tensor::concat(&both, 1)?.pad(1, 0, spec.width % 2, 0.0)
}

/// Two layers over the waves of a moment, or over any other vector.
#[derive(Debug)]
pub struct TimeEmbed {
    name: String,
    condition: Option<Linear>,
    up: Linear,
    activation: Activation,
    down: Linear,
    last: Activation,
}

impl TimeEmbed {
    /// Reads the layers of that name.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, name: &str, spec: &TimeEmbedSpec) -> Result<Self, ModelError> {
        let condition = |width| loader.linear(&format!("{name}.condition"), spec.inputs, width, false);
        Ok(Self {
            name: loader.name(name),
            condition: spec.condition.map(condition).transpose()?,
            up: loader.linear(&format!("{name}.up"), spec.width, spec.inputs, true)?,
            activation: spec.activation,
            down: loader.linear(&format!("{name}.down"), spec.width, spec.width, true)?,
            last: spec.last,
        })
    }

    /// x: `[batch, inputs]`, and perhaps a condition `[batch, condition]`, to `[batch, width]`.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn forward(&self, x: &Tensor, condition: Option<&Tensor>) -> Result<Tensor, ModelError> {
        let run = || -> Result<Tensor, TensorError> {
            let x = match (&self.condition, condition) {
                (Some(layer), Some(condition)) => x.add(&condition.linear(layer)?)?,
                _ => x.clone(),
            };
            x.linear(&self.up)?.activate(self.activation)?.linear(&self.down)?.activate(self.last)
        };
        run().map_err(ModelError::at(&self.name))
    }
}
