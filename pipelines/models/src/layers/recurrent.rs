//! Recurrent layers with long and short memory (<https://www.bioinf.jku.at/publications/older/2604.pdf>).

use accel_backends::tensor::{Linear, Tensor, TensorError};

use crate::ModelError;
use crate::rules::Loader;

/// Some layers, one over the other, with their weights.
#[derive(Debug)]
pub struct Recurrent {
    name: String,
    width: usize,
    layers: Vec<(Linear, Linear)>,
}

impl Recurrent {
    /// Reads the layers of that name, whose inputs and states are of one width.
    ///
    /// # Errors
    ///
    /// When their weights cannot be read.
    pub fn load(loader: &Loader<'_>, name: &str, width: usize, layers: usize) -> Result<Self, ModelError> {
        let part =
            |number: usize, part: &str| loader.linear(&format!("{name}.{number}.{part}"), 4 * width, width, true);
        let layer = |number| Ok::<_, ModelError>((part(number, "input")?, part(number, "state")?));
        Ok(Self { name: loader.name(name), width, layers: (0..layers).map(layer).collect::<Result<_, _>>()? })
    }

    /// x: `[batch, places, width]` to the same shape.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let mut x = x.clone();
        for (input, state) in &self.layers {
            x = self.layer(&x, input, state).map_err(ModelError::at(&self.name))?;
        }
        Ok(x)
    }

    fn layer(&self, x: &Tensor, input: &Linear, state: &Linear) -> Result<Tensor, TensorError> {
        let [batch, places, _] = x.sizes()?;
        let told = x.linear(input)?;
        let nothing = Tensor::new(x.engine(), vec![0.0; batch * self.width], &[batch, self.width])?;
        let (mut short, mut long) = (nothing.clone(), nothing);
        let mut all = Vec::with_capacity(places);
        for place in 0..places {
            let gates = told.at(1, place)?.add(&short.linear(state)?)?;
            let [input, forget, new, output] = gates.chunks(1)?;
            long = long.mul(&forget.sigmoid()?)?.add(&input.sigmoid()?.mul(&new.tanh()?)?)?;
            short = long.tanh()?.mul(&output.sigmoid()?)?;
            all.push(short.clone());
        }
        Tensor::stack(&all, 1)
    }
}
