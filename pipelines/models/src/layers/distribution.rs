//! Numbers as distributions of them (`time_series_utils.py` of Hugging Face).

use accel_backends::tensor::{Linear, Tensor, TensorError};

use crate::ModelError;
use crate::rules::Loader;
use crate::spec::time_series::DistributionSpec;

/// A layer for each parameter of a distribution.
#[derive(Debug)]
pub struct Distribution {
    spec: DistributionSpec,
    layers: Vec<Linear>,
}

impl Distribution {
    /// Reads the layer of that name, or those of parameters, `<name>.0` and so on.
    ///
    /// # Errors
    ///
    /// When a weight cannot be read.
    pub fn load(
        loader: &Loader<'_>,
        name: &str,
        spec: DistributionSpec,
        numbers: usize,
        inputs: usize,
    ) -> Result<Self, ModelError> {
        let layers = match spec {
            DistributionSpec::Point => vec![loader.linear(name, numbers, inputs, true)?],
            DistributionSpec::StudentT => parameters(loader, name, 3, numbers, inputs)?,
            DistributionSpec::Normal | DistributionSpec::NegativeBinomial => {
                parameters(loader, name, 2, numbers, inputs)?
            }
        };
        Ok(Self { spec, layers })
    }

    /// The parameters of each number, each `[.., numbers]`; a single number is its own. x: `[.., inputs]`.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Vec<Tensor>, TensorError> {
        let mut parameters = self.layers.iter().map(|layer| x.linear(layer)).collect::<Result<Vec<_>, _>>()?;
        let kept = |x: &Tensor| positive(x)?.max(&x.like(f32::EPSILON)?);
        match (self.spec, parameters.as_mut_slice()) {
            (DistributionSpec::StudentT, [freedom, _, scale]) => {
                *freedom = positive(freedom)?.shift(2.0)?;
                *scale = kept(scale)?;
            }
            (DistributionSpec::Normal, [_, scale]) => *scale = kept(scale)?,
            (DistributionSpec::NegativeBinomial, [count, _]) => *count = positive(count)?,
            _ => {}
        }
        Ok(parameters)
    }
}

fn parameters(
    loader: &Loader<'_>,
    name: &str,
    count: usize,
    numbers: usize,
    inputs: usize,
) -> Result<Vec<Linear>, ModelError> {
    (0..count).map(|parameter| loader.linear(&format!("{name}.{parameter}"), numbers, inputs, true)).collect()
}

/// `(x + sqrt(x^2 + 4)) / 2`
fn positive(x: &Tensor) -> Result<Tensor, TensorError> {
    x.add(&x.square()?.shift(4.0)?.sqrt()?)?.scale(0.5)
}
