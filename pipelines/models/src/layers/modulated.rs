//! Norms that something else scales and shifts (<https://arxiv.org/abs/2212.09748>).

use accel_backends::tensor::{Linear, Tensor, TensorError};

use crate::ModelError;
use crate::rules::Loader;
use crate::spec::Activation;

const EPS: f32 = 1e-6;

/// The layer that makes scales, shifts and gates of a condition.
#[derive(Debug)]
pub struct Modulation {
    name: String,
    layer: Linear,
    hidden: usize,
}

impl Modulation {
    /// Reads the layer of that name, which makes so many vectors as long as a state.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, name: &str, hidden: usize, vectors: usize) -> Result<Self, ModelError> {
        let layer = loader.linear(name, vectors * hidden, hidden, true)?;
        Ok(Self { name: loader.name(name), layer, hidden })
    }

    /// Of each condition `[batch, hidden]` its vectors, `[batch, 1, hidden]` each.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn vectors(&self, condition: &Tensor) -> Result<Vec<Tensor>, ModelError> {
        let made = || -> Result<Vec<Tensor>, TensorError> {
            let all = condition.activate(Activation::Silu)?.linear(&self.layer)?.unsqueeze(1)?;
            all.split(2, &vec![self.hidden; all.dim(2)? / self.hidden])
        };
        made().map_err(ModelError::at(&self.name))
    }
}

/// x: `[batch, tokens, hidden]` normalised, then times `1 + scale` and plus `shift`, each `[batch, 1, hidden]`.
///
/// # Errors
///
/// When the shapes do not fit.
pub fn modulated(x: &Tensor, scale: &Tensor, shift: &Tensor) -> Result<Tensor, TensorError> {
    x.layer_norm(None, None, EPS)?.mul(&scale.shift(1.0)?)?.add(shift)
}

/// `x + gate * new`
///
/// # Errors
///
/// When the shapes do not fit.
pub fn gated_sum(x: &Tensor, gate: &Tensor, new: &Tensor) -> Result<Tensor, TensorError> {
    x.add(&new.mul(gate)?)
}
