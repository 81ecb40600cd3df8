//! From people's pictures to the values that a vision model reads.
//!
//! A picture is decoded ([`decode()`]), then goes through the steps of the model's `preprocessor_config.json`
//! ([`ImagePreprocessor`]): resized, cropped, scaled and normalised, padded or cut into patches. The steps are those of the
//! image processors of `transformers` 4.57 that need no torch (`src/transformers/models/*/image_processing_*.py`), in the
//! same order and with the arithmetic of Pillow 12.1, so that the values are equal bit by bit. The processors whose name
//! ends in `Fast` have the same steps; torchvision resizes for them, in other roundings, and what is used here is Pillow's
//! for both.
//!
//! Nothing here depends on a type of tensor, and nothing interprets what a model answers: the sizes that are needed to map
//! boxes and masks back to the picture are handed out with the values.

mod canvas;
mod decode;
mod processors;
mod recipe;
mod resample;
mod target;

use std::fmt;

use accel_backends::files::ModelFiles;

use crate::error::PipelineError;
use crate::preprocessor::Settings;

pub use decode::{IMAGE_BYTES_MAX, decode};
use recipe::{Pad, Recipe};
pub use resample::Filter;

/// The most pixels of a picture that is read: more than a camera of 64 megapixels makes.
pub const PIXELS_MAX: usize = 1 << 26;
/// The most pixels that a model is given at once, over all pictures of a batch; as values they take 12 bytes each.
pub const PREPARED_PIXELS_MAX: usize = 1 << 24;

const CHANNELS: usize = 3;

/// Height and width in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageSize {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl ImageSize {
    /// As many rows as columns.
    pub(crate) const fn square(edge: usize) -> Self {
        Self { height: edge, width: edge }
    }

    /// How many pixels it has; sizes too large for a count are all counted as the largest.
    pub(crate) fn pixels(self) -> usize {
        self.height.saturating_mul(self.width)
    }
}

impl fmt::Display for ImageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {}", self.height, self.width)
    }
}

/// A picture of 8 bits for each of red, green and blue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RgbImage {
    size: ImageSize,
    pixels: Vec<u8>,
}

impl RgbImage {
    /// A picture from its pixels. pixels: [height, width, 3]
    ///
    /// # Errors
    ///
    /// When it has no pixels, or the pixels are not as many as the size says.
    pub fn new(size: ImageSize, pixels: Vec<u8>) -> Result<Self, PipelineError> {
        if size.pixels() == 0 || size.pixels().saturating_mul(CHANNELS) != pixels.len() {
            let reason = format!("expected {size} pixels of 3 bytes and at least one, found {} bytes", pixels.len());
            return Err(PipelineError::input("the image", reason));
        }
        Ok(Self { size, pixels })
    }

    /// Its height and width.
    pub fn size(&self) -> ImageSize {
        self.size
    }

    /// Its pixels, row by row. [height, width, 3]
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }
}

/// What a model reads for one picture.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageInput {
    /// The values, row-major in `shape`: `pixel_values` of one picture.
    pub values: Vec<f32>,
    /// [3, height, width], or [patches, values of a patch] where `grid` says how the patches lie.
    pub shape: Vec<usize>,
    /// The picture as it came, turned upright: boxes and masks are mapped back to it.
    pub original: ImageSize,
    /// The picture's part of the values, without what is padded. It starts at the upper left corner.
    pub resized: ImageSize,
    /// 1 where the picture is and 0 where it is padded, for models that read this: `pixel_mask`. [height, width]
    pub pixel_mask: Option<Vec<u8>>,
    /// Patches in time, height and width, for models that read patches: `image_grid_thw`.
    pub grid: Option<[usize; 3]>,
}

/// The steps that a model's pictures go through.
#[derive(Debug)]
pub struct ImagePreprocessor {
    recipe: Recipe,
}

impl ImagePreprocessor {
    /// Reads a model's `preprocessor_config.json`.
    ///
    /// # Errors
    ///
    /// When it is not there, is damaged, or names a processor or steps that are not known here.
    pub fn read(files: &dyn ModelFiles) -> Result<Self, PipelineError> {
        Ok(Self { recipe: Recipe::read(&Settings::read(files)?)? })
    }

    /// Reads the text of a `preprocessor_config.json`.
    ///
    /// # Errors
    ///
    /// As [`ImagePreprocessor::read`].
    pub fn parse(text: &[u8]) -> Result<Self, PipelineError> {
        Ok(Self { recipe: Recipe::read(&Settings::parse(text)?)? })
    }

    /// Prepares pictures that the model reads together: where the model pads, all are padded to the largest of them.
    ///
    /// # Errors
    ///
    /// When the steps leave no pixels of a picture, or more than [`PREPARED_PIXELS_MAX`] of all.
    pub fn prepare(&self, images: &[RgbImage]) -> Result<Vec<ImageInput>, PipelineError> {
        let recipe = &self.recipe;
        let mut pixels = 0;
        let mut resized = Vec::with_capacity(images.len());
        for image in images {
            let image = recipe.resized(image)?;
            pixels += image.size.pixels();
            at_most(pixels)?;
            resized.push(image);
        }
        let edge = |edge: fn(&RgbImage) -> usize| resized.iter().map(edge).max().unwrap_or(0);
        let largest = ImageSize { height: edge(|image| image.size.height), width: edge(|image| image.size.width) };
        let padded = match recipe.pad {
            Pad::None => None,
            Pad::ToLargest => Some(largest),
            Pad::To(size) if size.height >= largest.height && size.width >= largest.width => Some(size),
            Pad::To(size) => {
                let reason = format!("expected at most {size} pixels after resizing, found {largest}");
                return Err(PipelineError::input("the image", reason));
            }
        };
        if let Some(size) = padded {
            at_most(size.pixels().saturating_mul(images.len()))?;
        }
        let prepared = |(image, resized): (&RgbImage, &RgbImage)| {
            let size = padded.unwrap_or(resized.size);
            let values = planes(resized, size, &recipe.levels(), recipe.flip_channels);
            let pixel_mask = (recipe.pixel_mask && padded.is_some()).then(|| mask(resized.size, size));
            let (values, shape, grid) = match &recipe.patches {
                Some(patches) => {
                    let (values, grid) = patches.cut(&values, size);
                    let shape = vec![grid.iter().product(), patches.values()];
                    (values, shape, Some(grid))
                }
                None => (values, vec![CHANNELS, size.height, size.width], None),
            };
            ImageInput { values, shape, original: image.size, resized: resized.size, pixel_mask, grid }
        };
        Ok(images.iter().zip(&resized).map(prepared).collect())
    }
}

/// From rows of pixels to planes of values, padded with zeros at the right and the bottom.
fn planes(image: &RgbImage, size: ImageSize, levels: &[[f32; 256]; CHANNELS], flip: bool) -> Vec<f32> {
    let mut values = vec![0.0; size.pixels() * CHANNELS];
    for (channel, plane) in values.chunks_exact_mut(size.pixels()).enumerate() {
        let from = if flip { CHANNELS - 1 - channel } else { channel };
        let rows = image.pixels.chunks_exact(image.size.width * CHANNELS);
        for (row, out) in rows.zip(plane.chunks_exact_mut(size.width)) {
            for (value, pixel) in out.iter_mut().zip(row.chunks_exact(CHANNELS)) {
                *value = levels[channel][usize::from(pixel[from])];
            }
        }
    }
    values
}

fn mask(image: ImageSize, size: ImageSize) -> Vec<u8> {
    let inside = |place: usize| place / size.width < image.height && place % size.width < image.width;
    (0..size.pixels()).map(|place| u8::from(inside(place))).collect()
}

fn at_most(pixels: usize) -> Result<(), PipelineError> {
    if pixels <= PREPARED_PIXELS_MAX {
        return Ok(());
    }
    Err(PipelineError::too_large("the images for one run of the model", pixels, PREPARED_PIXELS_MAX, "pixels"))
}
