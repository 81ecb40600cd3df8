//! Root-mean-square norm (<https://arxiv.org/abs/1910.07467>; `LlamaRMSNorm`).

use accel_backends::tensor::{Engine, Tensor};

use crate::ModelError;
use crate::rules::Loader;
use crate::spec::NormSpec;

/// A norm with its weight.
#[derive(Debug)]
pub struct Norm {
    name: String,
    eps: f32,
    weight: Vec<f32>,
}

impl Norm {
    /// Reads the norm of that name.
    ///
    /// # Errors
    ///
    /// When its weight cannot be read.
    pub fn load(loader: &Loader<'_>, name: &str, spec: &NormSpec, width: usize) -> Result<Self, ModelError> {
        Ok(Self { name: name.to_owned(), eps: spec.eps, weight: loader.vector(name, width)? })
    }

    /// x: `[tokens, hidden]` to the same shape.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn forward(&self, engine: &Engine, x: &Tensor) -> Result<Tensor, ModelError> {
        x.rms_norm(engine, &self.weight, self.eps).map_err(ModelError::at(&self.name))
    }
}
