//! What becomes of a picture without changing its pixels: a square, a crop, patches.
//!
//! Follows `image_transforms.py`, and the processors of LLaVA and Qwen2-VL, of `transformers`.

use crate::error::PipelineError;

use super::{CHANNELS, ImageSize, PIXELS_MAX, RgbImage};

/// How a picture is cut into patches: Qwen2-VL.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patches {
    pub(super) edge: usize,
    /// Patches of so many rows and columns follow each other, since the model merges them.
    pub(super) merge: usize,
    /// A patch has the picture so many times, as a film of one picture.
    pub(super) frames: usize,
}

impl Patches {
    /// How many values a patch has.
    pub(super) fn values(&self) -> usize {
        CHANNELS * self.frames * self.edge * self.edge
    }

    /// Cuts planes, [3, height, width], into patches, [patches, 3, frames, edge, edge], and says how they lie.
    pub(super) fn cut(&self, planes: &[f32], size: ImageSize) -> (Vec<f32>, [usize; 3]) {
        let (rows, columns) = (size.height / self.edge, size.width / self.edge);
        let mut patches = Vec::with_capacity(rows * columns * self.values());
        for place in 0..rows * columns {
            let (block, inside) = (place / (self.merge * self.merge), place % (self.merge * self.merge));
            let blocks_across = columns / self.merge;
            let row = block / blocks_across * self.merge + inside / self.merge;
            let column = block % blocks_across * self.merge + inside % self.merge;
            for plane in planes.chunks_exact(size.pixels()) {
                for _ in 0..self.frames {
                    for line in 0..self.edge {
                        let at = (row * self.edge + line) * size.width + column * self.edge;
                        patches.extend_from_slice(&plane[at..at + self.edge]);
                    }
                }
            }
        }
        (patches, [1, rows, columns])
    }
}

/// `pad_to_square` of LLaVA's processor: the picture in the middle of a square of one colour.
pub(super) fn pad_to_square(image: &RgbImage, colour: [u8; 3]) -> Result<RgbImage, PipelineError> {
    let edge = image.size.height.max(image.size.width);
    let start = ImageSize { height: (edge - image.size.height) / 2, width: (edge - image.size.width) / 2 };
    let size = ImageSize::square(edge);
    if size.pixels() > PIXELS_MAX {
        return Err(PipelineError::too_large("an image padded to a square", size.pixels(), PIXELS_MAX, "pixels"));
    }
    let mut square = colour.repeat(size.pixels());
    let row_bytes = image.size.width * CHANNELS;
    for (row, pixels) in image.pixels.chunks_exact(row_bytes).enumerate() {
        let at = ((row + start.height) * edge + start.width) * CHANNELS;
        square[at..at + row_bytes].copy_from_slice(pixels);
    }
    RgbImage::new(size, square)
}

/// `center_crop` of `image_transforms.py`: the middle, with zeros around it where the picture is smaller.
pub(super) fn center_crop(image: &RgbImage, size: ImageSize) -> Result<RgbImage, PipelineError> {
    let fits = size.height <= image.size.height && size.width <= image.size.width;
    // Halves are rounded down; but on a canvas, both the place of the picture and that of the crop are rounded.
    let start = |edge: usize, crop: usize| {
        let top = (edge as i64 - crop as i64).div_euclid(2);
        let pad = if fits { 0 } else { (crop.max(edge) as i64 - edge as i64 + 1) / 2 };
        (top + pad).max(0) - pad
    };
    let (top, left) = (start(image.size.height, size.height), start(image.size.width, size.width));
    let mut pixels = vec![0; size.pixels() * CHANNELS];
    for row in 0..size.height {
        let Some(from) = usize::try_from(top + row as i64).ok().filter(|from| *from < image.size.height) else {
            continue;
        };
        let first = usize::try_from(-left).unwrap_or(0);
        let skipped = usize::try_from(left).unwrap_or(0);
        let columns = (image.size.width - skipped).min(size.width - first);
        let source = (from * image.size.width + skipped) * CHANNELS;
        let target = (row * size.width + first) * CHANNELS;
        let bytes = columns * CHANNELS;
        pixels[target..target + bytes].copy_from_slice(&image.pixels[source..source + bytes]);
    }
    RgbImage::new(size, pixels)
}
