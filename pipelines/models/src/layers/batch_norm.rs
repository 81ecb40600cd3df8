//! Norms by what was seen in training (<https://arxiv.org/abs/1502.03167>).

use accel_backends::tensor::{Tensor, TensorError};

use crate::ModelError;
use crate::rules::Loader;

/// A norm of channels as what it is at inference: a factor and an offset of each.
#[derive(Debug)]
pub struct BatchNorm {
    name: String,
    factor: Tensor,
    offset: Tensor,
}

impl BatchNorm {
    /// Reads the norm of that name.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, name: &str, channels: usize, eps: f32) -> Result<Self, ModelError> {
        let vector = |part: &str| loader.tensor(&format!("{name}.{part}"), &[channels]);
        let (weight, bias) = (vector("weight")?, vector("bias")?);
        let (mean, variance) = (vector("running_mean")?, vector("running_var")?);
        let made = || -> Result<(Tensor, Tensor), TensorError> {
            let factor = weight.div(&variance.shift(eps)?.sqrt()?)?;
            let offset = bias.sub(&mean.mul(&factor)?)?;
            Ok((factor, offset))
        };
        let (factor, offset) = made().map_err(ModelError::at(loader.name(name)))?;
        Ok(Self { name: loader.name(name), factor, offset })
    }

    /// x: `[.., channels]` to the same shape.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        x.mul(&self.factor).and_then(|x| x.add(&self.offset)).map_err(ModelError::at(&self.name))
    }

    /// The same over the channels of a map: `[batch, channels, height, width]` to the same shape.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn of_map(&self, map: &Tensor) -> Result<Tensor, ModelError> {
        let run = || -> Result<Tensor, TensorError> {
            let along = |x: &Tensor| x.reshape(&[x.dim(0)?, 1, 1]);
            map.mul(&along(&self.factor)?)?.add(&along(&self.offset)?)
        };
        run().map_err(ModelError::at(&self.name))
    }
}
