//! Norms of the states of series.

use accel_backends::tensor::Tensor;

use crate::ModelError;
use crate::layers::batch_norm::BatchNorm;
use crate::layers::norm::Norm;
use crate::rules::Loader;
use crate::spec::time_series::SeriesNormSpec;

/// A norm with its weights.
#[derive(Debug)]
pub enum SeriesNorm {
    /// Of each element by what was seen in training.
    Batch(BatchNorm),
    /// Of each state.
    Layer(Norm),
}

impl SeriesNorm {
    /// Reads the norm of that name.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, name: &str, spec: &SeriesNormSpec, hidden: usize) -> Result<Self, ModelError> {
        Ok(match spec {
            SeriesNormSpec::Batch { eps } => Self::Batch(BatchNorm::load(loader, name, hidden, *eps)?),
            SeriesNormSpec::Layer(norm) => Self::Layer(Norm::load(loader, name, norm, hidden)?),
        })
    }

    /// x: `[.., hidden]` to the same shape.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        match self {
            Self::Batch(norm) => norm.forward(x),
            Self::Layer(norm) => norm.forward(x),
        }
    }
}
