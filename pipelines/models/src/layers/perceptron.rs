//! Several linear layers, with rectifiers between.

use accel_backends::tensor::{Activation, Linear, Tensor, TensorError};

use crate::ModelError;
use crate::rules::Loader;
use crate::spec::segmentation::PerceptronSpec;

/// Several linear layers with their weights.
#[derive(Debug)]
pub struct Perceptron {
    name: String,
    layers: Vec<Linear>,
}

impl Perceptron {
    /// Reads the layers `0`, `1`, .. of that name, from each of `widths` to the next.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, name: &str, widths: &[usize]) -> Result<Self, ModelError> {
        let layer =
            |(number, pair): (usize, &[usize])| loader.linear(&format!("{name}.{number}"), pair[1], pair[0], true);
        let layers = widths.windows(2).enumerate().map(layer).collect::<Result<_, _>>()?;
        Ok(Self { name: loader.name(name), layers })
    }

    /// Reads the layers `first`, `inner.0`, `inner.1`, .. and `last` of that name, all but the last to `inner` elements.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn with_ends(loader: &Loader<'_>, name: &str, spec: &PerceptronSpec) -> Result<Self, ModelError> {
        let inner = spec.inner;
        let layer = |part: &str, outputs, inputs| loader.linear(&format!("{name}.{part}"), outputs, inputs, true);
        let mut layers = vec![layer("first", inner, spec.inputs)?];
        for number in 0..spec.layers.saturating_sub(2) {
            layers.push(layer(&format!("inner.{number}"), inner, inner)?);
        }
        layers.push(layer("last", spec.outputs, inner)?);
        Ok(Self { name: loader.name(name), layers })
    }

    /// x: `[.., first width]` to `[.., last width]`.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let run = || -> Result<Tensor, TensorError> {
            let mut x = x.clone();
            for (number, layer) in self.layers.iter().enumerate() {
                x = x.linear(layer)?;
                if number + 1 < self.layers.len() {
                    x = x.activate(Activation::Relu)?;
                }
            }
            Ok(x)
        };
        run().map_err(ModelError::at(&self.name))
    }
}
