//! Convolutions with what comes after them.

use accel_backends::tensor::{Activation, Convolution, Linear, Tensor, TensorError};

use crate::ModelError;
use crate::rules::Loader;

/// A convolution, what its channels were normalised by in training, and an activation.
#[derive(Debug)]
pub struct Conv {
    name: String,
    conv: Convolution,
    layer: Linear,
    norm: Option<ChannelNorm>,
    activation: Activation,
}

impl Conv {
    /// Reads a convolution with bias, of `[outputs, inputs, taps..]`.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn biased(loader: &Loader<'_>, name: &str, dims: &[usize], conv: Convolution) -> Result<Self, ModelError> {
        let layer = loader.layer(name, dims, true)?;
        Ok(Self { name: loader.name(name), conv, layer, norm: None, activation: Activation::Identity })
    }

    /// Reads a convolution without bias and the norm of its channels: the parts `conv` and `norm` of that name.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn normed(
        loader: &Loader<'_>,
        name: &str,
        dims: &[usize],
        conv: Convolution,
        activation: Activation,
    ) -> Result<Self, ModelError> {
        let layer = loader.layer(&format!("{name}.conv"), dims, false)?;
        let norm = ChannelNorm::load(loader, &format!("{name}.norm"), dims[0])?;
        Ok(Self { name: loader.name(name), conv, layer, norm: Some(norm), activation })
    }

    /// x: `[batch, channels, height, width]`
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let run = || {
            let x = x.convolution(&self.conv, &self.layer)?;
            let x = match &self.norm {
                Some(norm) => norm.forward(&x)?,
                None => x,
            };
            x.activate(self.activation)
        };
        run().map_err(ModelError::at(&self.name))
    }
}

/// What channels were normalised by in training (<https://arxiv.org/abs/1502.03167>): a factor and an offset of each.
#[derive(Debug)]
pub struct ChannelNorm {
    factor: Tensor,
    offset: Tensor,
}

/// Added to the variance of all models in use.
const EPS: f32 = 1e-5;

impl ChannelNorm {
    /// Reads the norm of that name.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, name: &str, channels: usize) -> Result<Self, ModelError> {
        let vector = |part: &str| loader.tensor(&format!("{name}.{part}"), &[channels]);
        let (weight, bias) = (vector("weight")?, vector("bias")?);
        let (mean, variance) = (vector("mean")?, vector("variance")?);
        let made = || -> Result<Self, TensorError> {
            let factor = weight.div(&variance.shift(EPS)?.sqrt()?)?;
            let offset = bias.sub(&mean.mul(&factor)?)?;
            let along = [channels, 1, 1];
            Ok(Self { factor: factor.reshape(&along)?, offset: offset.reshape(&along)? })
        };
        made().map_err(ModelError::at(loader.name(name)))
    }

    /// x: `[batch, channels, height, width]` to the same shape.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, TensorError> {
        x.mul(&self.factor)?.add(&self.offset)
    }
}
