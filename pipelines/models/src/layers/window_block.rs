//! Blocks of attention within windows and a part that each place goes through by itself
//! (<https://arxiv.org/abs/2103.14030>).

use accel_backends::tensor::Tensor;

use crate::ModelError;
use crate::layers::mlp::Mlp;
use crate::layers::norm::Norm;
use crate::layers::window::WindowAttention;
use crate::rules::Loader;
use crate::spec::vision::WindowAttentionSpec;
use crate::spec::{MlpSpec, NormSpec};

/// A block with its weights.
#[derive(Debug)]
pub struct WindowBlock {
    norm: Norm,
    attention: WindowAttention,
    mlp_norm: Norm,
    mlp: Mlp,
}

impl WindowBlock {
    /// Reads the parts `attn_norm`, `attn`, `mlp_norm` and `mlp`.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(
        loader: &Loader<'_>,
        attention: &WindowAttentionSpec,
        mlp: &MlpSpec,
        norm: &NormSpec,
        width: usize,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            norm: Norm::load(loader, "attn_norm", norm, width)?,
            attention: WindowAttention::load(loader, "attn", attention, width)?,
            mlp_norm: Norm::load(loader, "mlp_norm", norm, width)?,
            mlp: Mlp::load(loader, "mlp", mlp, width)?,
        })
    }

    /// x: `[batch, height, width, channels]` to the same shape. Windows begin `moved` places down and to the right.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn forward(&self, x: &Tensor, moved: usize) -> Result<Tensor, ModelError> {
        let seen = self.attention.forward(&self.norm.forward(x)?, moved)?;
        let x = x.add(&seen).map_err(ModelError::at("residual"))?;
        x.add(&self.mlp.forward(&self.mlp_norm.forward(&x)?)?).map_err(ModelError::at("residual"))
    }
}
