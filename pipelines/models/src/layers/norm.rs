//! Norms (<https://arxiv.org/abs/1910.07467>, <https://arxiv.org/abs/1607.06450>).

use accel_backends::tensor::Tensor;

use crate::ModelError;
use crate::rules::Loader;
use crate::spec::NormSpec;

/// A norm with its weights.
#[derive(Debug)]
pub struct Norm {
    name: String,
    spec: NormSpec,
    weight: Option<Tensor>,
    bias: Option<Tensor>,
}

impl Norm {
    /// Reads the norm of that name.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, name: &str, spec: &NormSpec, width: usize) -> Result<Self, ModelError> {
        let vector = |present: bool, suffix: &str| {
            present.then(|| loader.tensor(&format!("{name}.{suffix}"), &[width])).transpose()
        };
        let (weight, bias) = (vector(spec.weight, "weight")?, vector(spec.bias, "bias")?);
        Ok(Self { name: loader.name(name), spec: *spec, weight, bias })
    }

    /// The same, where there is one.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load_optional(
        loader: &Loader<'_>,
        name: &str,
        spec: Option<&NormSpec>,
        width: usize,
    ) -> Result<Option<Self>, ModelError> {
        spec.map(|spec| Self::load(loader, name, spec, width)).transpose()
    }

    /// x: `[.., width]` to the same shape.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        x.norm(self.spec.kind, self.weight.as_ref(), self.bias.as_ref(), self.spec.eps)
            .map_err(ModelError::at(&self.name))
    }

    /// The same over the channels of a map: `[batch, width, height, width]` to the same shape.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn of_map(&self, map: &Tensor) -> Result<Tensor, ModelError> {
        let at = || ModelError::at(&self.name);
        let last = map.permute(&[0, 2, 3, 1]).map_err(at())?;
        self.forward(&last)?.permute(&[0, 3, 1, 2]).map_err(at())
    }
}
