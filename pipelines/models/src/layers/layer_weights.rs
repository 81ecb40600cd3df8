//! Sums of the states of all layers (ELMo, <https://arxiv.org/abs/1802.05365>).

use accel_backends::tensor::{Tensor, TensorError};

use crate::ModelError;
use crate::rules::Loader;

/// How much the states before the first layer and after each count.
#[derive(Debug)]
pub struct LayerWeights(Tensor);

impl LayerWeights {
    /// Reads the tensor of that name.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn load(loader: &Loader<'_>, name: &str, layers: usize) -> Result<Self, ModelError> {
        Ok(Self(loader.tensor(name, &[layers + 1])?))
    }

    /// The sum by the softmax of the weights. Each: `[tokens, hidden]`, to the same shape.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn sum(&self, all: &[Tensor]) -> Result<Tensor, TensorError> {
        let weights = self.0.softmax(0)?.reshape(&[all.len(), 1, 1])?;
        Tensor::stack(all, 0)?.mul(&weights)?.sum(&[0])?.squeeze(0)
    }
}
