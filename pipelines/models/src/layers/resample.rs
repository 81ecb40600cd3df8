//! Images to other sizes, without weights.

use accel_backends::tensor::{Tensor, TensorError};

/// Each place of x: `[batch, channels, height, width]` as two by two: `[batch, channels, 2 * height, 2 * width]`.
///
/// # Errors
///
/// When it is of another shape.
pub fn doubled(x: &Tensor) -> Result<Tensor, TensorError> {
    let [batch, channels, height, width] = x.sizes()?;
    let apart = x.reshape(&[batch * channels, height, 1, width, 1])?;
    apart.broadcast(&[batch * channels, height, 2, width, 2])?.reshape(&[batch, channels, 2 * height, 2 * width])
}

/// x: `[batch, channels, height, width]` at the nearest places before those of `size`.
///
/// # Errors
///
/// When it is of another shape.
pub fn nearest(x: &Tensor, size: [usize; 2]) -> Result<Tensor, TensorError> {
    let [_, _, height, width] = x.sizes()?;
    if size == [2 * height, 2 * width] {
        return doubled(x);
    }
    // In f32, as the reference has it.
    let places = |from: usize, to: usize| {
        let step = from as f32 / to as f32;
        (0..to).map(|place| ((place as f32 * step) as usize).min(from - 1)).collect::<Vec<_>>()
    };
    x.pick(2, &places(height, size[0]))?.pick(3, &places(width, size[1]))
}

/// Means of two by two places; an odd last row or column goes.
///
/// # Errors
///
/// When it is of another shape.
pub fn halved(x: &Tensor) -> Result<Tensor, TensorError> {
    let [batch, channels, height, width] = x.sizes()?;
    let even = x.narrow(2, 0, height / 2 * 2)?.narrow(3, 0, width / 2 * 2)?;
    let apart = even.reshape(&[batch * channels, height / 2, 2, width / 2, 2])?;
    apart.mean(&[2, 4])?.reshape(&[batch, channels, height / 2, width / 2])
}
