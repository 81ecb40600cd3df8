//! What is made of several places of a map.

use accel_backends::tensor::{Tensor, TensorError};

use crate::ModelError;
use crate::layers::norm::Norm;
use crate::rules::Loader;
use crate::spec::Activation;
use crate::spec::vision::{PoolOf, PoolSpec};

/// Makes one state of those of an image.
#[derive(Debug)]
pub struct Pool {
    of: PoolOf,
    norm: Option<Norm>,
    dense: Option<(accel_backends::tensor::Linear, Activation)>,
}

impl Pool {
    /// Reads the parts `pool_norm` and `pool`.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: &PoolSpec, width: usize) -> Result<Self, ModelError> {
        let dense =
            |(outputs, activation)| Ok::<_, ModelError>((loader.linear("pool", outputs, width, true)?, activation));
        Ok(Self {
            of: spec.of,
            norm: Norm::load_optional(loader, "pool_norm", spec.norm.as_ref(), width)?,
            dense: spec.dense.map(dense).transpose()?,
        })
    }

    /// x: `[batch, prefix + places, width]` to `[batch, width]`, or as many elements as its layer makes.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn forward(&self, x: &Tensor, prefix: usize) -> Result<Tensor, ModelError> {
        let at = || ModelError::at("pool");
        let pooled = match self.of {
            PoolOf::First => x.at(1, 0),
            PoolOf::Places => {
                let places = x.dim(1).map_err(at())?.saturating_sub(prefix);
                x.narrow(1, prefix, places).and_then(|x| x.mean(&[1])?.squeeze(1))
            }
        };
        let mut x = pooled.map_err(at())?;
        if let Some(norm) = &self.norm {
            x = norm.forward(&x)?;
        }
        match &self.dense {
            Some((dense, activation)) => x.linear(dense).and_then(|x| x.activate(*activation)).map_err(at()),
            None => Ok(x),
        }
    }
}

/// The largest of each window of `taps` times `taps` places, `stride` apart. x: `[batch, channels, height, width]`.
///
/// # Errors
///
/// When the map is smaller than a window.
pub fn largest(x: &Tensor, taps: usize, stride: usize, padding: usize) -> Result<Tensor, TensorError> {
    let x = x.pad(2, padding, padding, f32::MIN)?.pad(3, padding, padding, f32::MIN)?;
    let along = |x: &Tensor, axis: isize| -> Result<Tensor, TensorError> {
        let out = x.dim(axis)?.saturating_sub(taps) / stride + 1;
        let tap = |tap: usize| x.narrow(axis, tap, (out - 1) * stride + 1)?.every(axis, 0, stride);
        (1..taps).try_fold(tap(0)?, |largest, number| largest.max(&tap(number)?))
    };
    along(&along(&x, 2)?, 3)
}
