//! From states of images to embeddings of a decoder (<https://arxiv.org/abs/2310.03744>).

use accel_backends::tensor::{Linear, Tensor, TensorError};

use crate::ModelError;
use crate::layers::norm::Norm;
use crate::rules::Loader;
use crate::spec::multimodal::ConnectorSpec;

/// The layers between, with their weights.
#[derive(Debug)]
pub struct Connector {
    spec: ConnectorSpec,
    norm: Option<Norm>,
    up: Linear,
    down: Linear,
}

impl Connector {
    /// Reads the part `connector`, which makes embeddings of `outputs` elements.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: &ConnectorSpec, outputs: usize) -> Result<Self, ModelError> {
        Ok(Self {
            norm: Norm::load_optional(loader, "connector.norm", spec.norm.as_ref(), spec.width)?,
            up: loader.linear("connector.up", spec.inner, spec.merged * spec.width, spec.bias)?,
            down: loader.linear("connector.down", outputs, spec.inner, spec.bias)?,
            spec: spec.clone(),
        })
    }

    /// x: `[states, width]` to `[states / merged, outputs]`.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let x = self.norm.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(x))?;
        let run = || -> Result<Tensor, TensorError> {
            let ([states, width], merged) = (x.sizes()?, self.spec.merged);
            let joined = x.reshape(&[states / merged, merged * width])?;
            joined.linear(&self.up)?.activate(self.spec.activation)?.linear(&self.down)
        };
        run().map_err(ModelError::at("connector"))
    }
}
