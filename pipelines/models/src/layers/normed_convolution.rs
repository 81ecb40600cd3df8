//! Convolutions over images with the norm and the activation after them.

use accel_backends::tensor::{Activation, Convolution as Op, Tensor};

use crate::ModelError;
use crate::layers::batch_norm::BatchNorm;
use crate::layers::convolution::Convolution;
use crate::rules::Loader;

/// Added to the variance in all models in use.
const EPS: f32 = 1e-5;

/// A convolution without bias, the norm of its channels and an activation.
#[derive(Debug)]
pub struct NormedConvolution {
    name: String,
    convolution: Convolution,
    norm: BatchNorm,
    activation: Activation,
}

impl NormedConvolution {
    /// Reads the parts `conv` and `norm` of that name. dims: `[outputs, inputs, rows, columns]`.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(
        loader: &Loader<'_>,
        name: &str,
        op: Op,
        dims: &[usize; 4],
        activation: Activation,
    ) -> Result<Self, ModelError> {
        let convolution = Convolution::load(loader, &format!("{name}.conv"), op, dims, false)?;
        let norm = BatchNorm::load(loader, &format!("{name}.norm"), dims[0], EPS)?;
        Ok(Self { name: loader.name(name), convolution, norm, activation })
    }

    /// x: `[batch, inputs, height, width]` to `[batch, outputs, height, width]`.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let normed = self.norm.of_map(&self.convolution.forward(x)?)?;
        normed.activate(self.activation).map_err(ModelError::at(&self.name))
    }
}
