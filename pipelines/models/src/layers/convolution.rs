//! Convolutions (<https://arxiv.org/abs/1603.07285>), and a norm over groups of their channels
//! (<https://arxiv.org/abs/1803.08494>).

use accel_backends::tensor::{Convolution as Op, Linear, Tensor, TensorError};

use crate::ModelError;
use crate::rules::Loader;

/// A convolution with its weights.
#[derive(Debug)]
pub struct Convolution {
    name: String,
    op: Op,
    layer: Linear,
    transposed: bool,
}

impl Convolution {
    /// Reads the convolution of that name. dims: `[outputs, inputs / groups, taps..]`.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, name: &str, op: Op, dims: &[usize], bias: bool) -> Result<Self, ModelError> {
        let layer = loader.layer(name, dims, bias)?;
        Ok(Self { name: loader.name(name), op, layer, transposed: false })
    }

    /// A square convolution over the two dimensions of images that keeps their size, with a bias.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn image(
        loader: &Loader<'_>,
        name: &str,
        inputs: usize,
        outputs: usize,
        taps: usize,
    ) -> Result<Self, ModelError> {
        let op = Op::new(2).padding(taps.saturating_sub(1) / 2);
        Self::load(loader, name, op, &[outputs, inputs, taps, taps], true)
    }

    /// A convolution of these weights.
    pub fn of(name: String, op: Op, layer: Linear) -> Self {
        Self { name, op, layer, transposed: false }
    }

    /// A transposed convolution of these weights, `[inputs, outputs / groups, taps..]`.
    pub fn transposed(name: String, op: Op, layer: Linear) -> Self {
        Self { name, op, layer, transposed: true }
    }

    /// x: `[batch, channels, space..]` to `[batch, outputs, space..]`.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let out = if self.transposed {
            x.convolution_transposed(&self.op, &self.layer)
        } else {
            x.convolution(&self.op, &self.layer)
        };
        out.map_err(ModelError::at(&self.name))
    }
}

/// Weights that are stored as directions and the lengths of them (<https://arxiv.org/abs/1602.07868>): `direction` of
/// these dims, `magnitude` of length 1 in all dimensions but `axis`.
///
/// # Errors
///
/// When they cannot be read.
pub fn weight_of_length(loader: &Loader<'_>, name: &str, dims: &[usize], axis: usize) -> Result<Tensor, ModelError> {
    let lengths: Vec<usize> = dims.iter().enumerate().map(|(at, &size)| if at == axis { size } else { 1 }).collect();
    let magnitude = loader.tensor(&format!("{name}.magnitude"), &lengths)?;
    let direction = loader.tensor(&format!("{name}.direction"), dims)?;
    let made = || -> Result<Tensor, TensorError> {
        let others: Vec<isize> = (0..dims.len()).filter(|&at| at != axis).map(|at| at as isize).collect();
        let length = direction.square()?.sum(&others)?.sqrt()?;
        let weight = direction.mul(&magnitude.div(&length)?)?;
        Tensor::new(loader.engine, weight.to_vec()?, dims)
    };
    made().map_err(ModelError::at(loader.name(name)))
}

/// A norm over groups of channels with its weights.
#[derive(Debug)]
pub struct GroupNorm {
    name: String,
    groups: usize,
    eps: f32,
    weight: Tensor,
    bias: Tensor,
}

impl GroupNorm {
    /// Reads the norm of that name.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, name: &str, channels: usize, groups: usize, eps: f32) -> Result<Self, ModelError> {
        let weight = loader.vector(name, channels)?;
        let bias = loader.tensor(&format!("{name}.bias"), &[channels])?;
        Ok(Self { name: loader.name(name), groups, eps, weight, bias })
    }

    /// x: `[batch, channels, ..]` to the same shape.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        x.group_norm(self.groups, Some((&self.weight, &self.bias)), self.eps).map_err(ModelError::at(&self.name))
    }
}
