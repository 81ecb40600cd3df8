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
            _ => parameters(loader, name, spec.parameters(), numbers, inputs)?,
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

/// The mean of numbers that are told by `parameters`, of a series that was brought to one size by `location` and `scale`.
/// Counts are not moved, and the scale is part of their logits; none where they have it already.
///
/// # Errors
///
/// When the shapes do not fit.
pub fn mean(
    spec: DistributionSpec,
    parameters: &[Tensor],
    location: &Tensor,
    scale: Option<&Tensor>,
) -> Result<Tensor, TensorError> {
    let back = |x: &Tensor| scale.map_or_else(|| Ok(x.clone()), |scale| x.mul(scale)?.add(location));
    match (spec, parameters) {
        (DistributionSpec::Point, [number]) => Ok(number.clone()),
        // Its degrees of freedom are over 2, so that it has a mean.
        (DistributionSpec::StudentT, [_, middle, _]) | (DistributionSpec::Normal, [middle, _]) => back(middle),
        (DistributionSpec::NegativeBinomial, [count, logits]) => {
            let odds = logits.exp()?;
            count.mul(&scale.map_or_else(|| Ok(odds.clone()), |scale| odds.mul(scale))?)
        }
        _ => Err(TensorError::Shape {
            operation: "mean of a distribution",
            expected: format!("{} parameters", spec.parameters()),
            found: parameters.len().to_string(),
        }),
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
