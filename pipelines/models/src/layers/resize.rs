//! Maps in another size.
//!
//! A line of a resized map is a sum of lines of the map, with weights that follow from the sizes alone: so resizing is
//! two matrix products, the same on every device.

use accel_backends::tensor::{Tensor, TensorError};

/// What lies between the places of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The nearest place.
    Nearest,
    /// A line between two places.
    Linear,
    /// A cubic through four places, with `a = -0.75`.
    Cubic,
}

/// A map `[.., height, width]` in another height and width. Pixels are squares whose edges meet those of the map, as with
/// `align_corners=False`.
///
/// # Errors
///
/// When it has less than two dimensions.
pub fn resize(map: &Tensor, to: [usize; 2], filter: Filter) -> Result<Tensor, TensorError> {
    let from = [map.dim(-2)?, map.dim(-1)?];
    scaled(map, to, [0, 1].map(|axis| from[axis] as f64 / to[axis] as f64), filter)
}

/// The same, where one place of the new map is so many of the old, whatever the sizes.
///
/// # Errors
///
/// When it has less than two dimensions.
pub fn scaled(map: &Tensor, to: [usize; 2], steps: [f64; 2], filter: Filter) -> Result<Tensor, TensorError> {
    let from = [map.dim(-2)?, map.dim(-1)?];
    if from == to && steps == [1.0, 1.0] {
        return Ok(map.clone());
    }
    let matrix = |axis: usize| {
        Tensor::new(map.engine(), weights(from[axis], to[axis], steps[axis], filter), &[to[axis], from[axis]])
    };
    matrix(0)?.matmul(map)?.matmul(&matrix(1)?.transpose(0, 1)?)
}

/// Of each place of `to` the weights of those of `from`: `[to, from]`.
pub fn weights(from: usize, to: usize, step: f64, filter: Filter) -> Vec<f32> {
    let mut weights = vec![0.0; from * to];
    let last = from as i64 - 1;
    for (place, row) in weights.chunks_exact_mut(from.max(1)).enumerate() {
        // In f32, as the reference has it.
        let (place, step) = (place as f32, step as f32);
        let mut add = |at: i64, weight: f32| row[at.clamp(0, last) as usize] += weight;
        match filter {
            Filter::Nearest => add((place * step) as i64, 1.0),
            Filter::Linear => {
                let at = ((place + 0.5) * step - 0.5).max(0.0);
                let (first, rest) = (at as i64, at - at.floor());
                add(first, 1.0 - rest);
                add(first + 1, rest);
            }
            Filter::Cubic => {
                let at = (place + 0.5) * step - 0.5;
                let (first, rest) = (at.floor() as i64, at - at.floor());
                let near = |x: f32| (1.25 * x - 2.25) * x * x + 1.0;
                let far = |x: f32| ((-0.75 * x + 3.75) * x - 6.0) * x + 3.0;
                let parts = [far(rest + 1.0), near(rest), near(1.0 - rest), far(2.0 - rest)];
                (first - 1..).zip(parts).for_each(|(at, weight)| add(at, weight));
            }
        }
    }
    weights
}
