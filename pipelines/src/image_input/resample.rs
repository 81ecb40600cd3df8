//! Changes the size of a picture exactly as Pillow does.
//!
//! Models were trained on pictures that Pillow made, and its filters are its own: they widen when they shrink a picture,
//! their weights are whole numbers of 22 bits after the point, and the result is rounded to 8 bits between the two passes.
//! Crates for resizing have other weights (`fast_image_resize` has 16 bits) and so other roundings. Rows come first and columns second, as in every Pillow up to 12.1; Pillow 13 turns the order round for some upright
//! pictures. Follows `src/libImaging/Resample.c` and, for the nearest pixel, `src/libImaging/Geometry.c` of Pillow 12.1.

use crate::error::PipelineError;

use super::{ImageSize, PIXELS_MAX, RgbImage};

/// How the pixels of another size are made; the numbers are Pillow's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The nearest pixel: 0.
    Nearest,
    /// A windowed sine over three pixels each way: 1.
    Lanczos,
    /// A triangle over one pixel each way: 2.
    Bilinear,
    /// A cubic over two pixels each way, with a = -0.5: 3.
    Bicubic,
    /// The mean of the pixels underneath: 4.
    Box,
    /// A Hamming window over one pixel each way: 5.
    Hamming,
}

/// Bits after the point of a weight: 8 of 32 are for the value, two more for sums above it and below zero.
const WEIGHT_BITS: u32 = 32 - 8 - 2;
const CHANNELS: usize = 3;

impl Filter {
    /// The filter of Pillow's number.
    pub(super) fn from_number(number: usize) -> Option<Self> {
        [Self::Nearest, Self::Lanczos, Self::Bilinear, Self::Bicubic, Self::Box, Self::Hamming].get(number).copied()
    }

    /// How far the filter reaches each way, in pixels of the smaller picture.
    fn support(self) -> f64 {
        match self {
            Self::Nearest => 0.0,
            Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let distance = x.abs();
        match self {
            Self::Nearest => 0.0,
            Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear => (1.0 - distance).max(0.0),
            Self::Hamming if distance == 0.0 => 1.0,
            Self::Hamming if distance >= 1.0 => 0.0,
            Self::Hamming => {
                let angle = distance * std::f64::consts::PI;
                // Pillow has these two in single precision.
                libm::sin(angle) / angle * (f64::from(0.54_f32) + f64::from(0.46_f32) * libm::cos(angle))
            }
            Self::Bicubic => {
                const A: f64 = -0.5;
                if distance < 1.0 {
                    ((A + 2.0) * distance - (A + 3.0)) * distance * distance + 1.0
                } else if distance < 2.0 {
                    (((distance - 5.0) * distance + 8.0) * distance - 4.0) * A
                } else {
                    0.0
                }
            }
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

/// Makes a picture of another size.
///
/// # Errors
///
/// When the result, or what is between the passes, has no pixels or more than [`PIXELS_MAX`].
pub(super) fn resize(image: &RgbImage, size: ImageSize, filter: Filter) -> Result<RgbImage, PipelineError> {
    let from = image.size();
    let between = ImageSize { height: from.height, width: size.width };
    for pixels in [size.pixels(), between.pixels()] {
        if pixels > PIXELS_MAX {
            return Err(PipelineError::too_large("a resized image", pixels, PIXELS_MAX, "pixels"));
        }
    }
    if size.pixels() == 0 {
        let reason = format!("{from} pixels are too few: after resizing, {size} would be left");
        return Err(PipelineError::input("the image", reason));
    }
    if size == from {
        return Ok(image.clone());
    }
    if filter == Filter::Nearest {
        return Ok(nearest(image, size));
    }
    let wide = if size.width == from.width {
        None
    } else {
        Some(across(image.pixels(), from, &windows(from.width, size.width, filter)))
    };
    let wide_pixels = wide.as_deref().unwrap_or(image.pixels());
    let pixels = if size.height == from.height {
        wide_pixels.to_vec()
    } else {
        down(wide_pixels, size.width, &windows(from.height, size.height, filter))
    };
    RgbImage::new(size, pixels)
}

/// The pixels that make one, and their weights.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

/// The windows of a line of `to` pixels over one of `from`.
fn windows(from: usize, to: usize, filter: Filter) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    let filter_scale = scale.max(1.0);
    let support = filter.support() * filter_scale;
    let narrow = 1.0 / filter_scale;
    let window = |place: usize| {
        let center = (place as f64 + 0.5) * scale;
        // Casts cut towards zero and stop at the type's ends, as the C casts with their checks do.
        let first = (center - support + 0.5) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        let mut weights: Vec<f64> =
            (first..end).map(|pixel| filter.weight((pixel as f64 - center + 0.5) * narrow)).collect();
        let sum: f64 = weights.iter().sum();
        if sum != 0.0 {
            weights.iter_mut().for_each(|weight| *weight /= sum);
        }
        Window { first, weights: weights.into_iter().map(fixed_point).collect() }
    };
    (0..to).map(window).collect()
}

fn fixed_point(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << WEIGHT_BITS);
    if weight < 0.0 { (scaled - 0.5) as i32 } else { (scaled + 0.5) as i32 }
}

fn rounded(sum: i32) -> u8 {
    (sum >> WEIGHT_BITS).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (WEIGHT_BITS - 1);

fn across(pixels: &[u8], from: ImageSize, windows: &[Window]) -> Vec<u8> {
    let mut out = Vec::with_capacity(from.height * windows.len() * CHANNELS);
    for row in pixels.chunks_exact(from.width * CHANNELS) {
        for window in windows {
            let mut sums = [HALF; CHANNELS];
            let under = row[window.first * CHANNELS..].chunks_exact(CHANNELS);
            for (weight, pixel) in window.weights.iter().zip(under) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += weight * i32::from(*value);
                }
            }
            out.extend(sums.map(rounded));
        }
    }
    out
}

fn down(pixels: &[u8], width: usize, windows: &[Window]) -> Vec<u8> {
    let row_values = width * CHANNELS;
    let mut out = Vec::with_capacity(windows.len() * row_values);
    let mut sums = vec![0; row_values];
    for window in windows {
        sums.fill(HALF);
        let under = pixels[window.first * row_values..].chunks_exact(row_values);
        for (weight, row) in window.weights.iter().zip(under) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += weight * i32::from(*value);
            }
        }
        out.extend(sums.iter().map(|sum| rounded(*sum)));
    }
    out
}

fn nearest(image: &RgbImage, size: ImageSize) -> RgbImage {
    let from = image.size();
    let columns = nearest_places(from.width, size.width);
    let mut pixels = Vec::with_capacity(size.pixels() * CHANNELS);
    for row in nearest_places(from.height, size.height) {
        for column in &columns {
            let at = (row * from.width + column) * CHANNELS;
            pixels.extend_from_slice(&image.pixels()[at..at + CHANNELS]);
        }
    }
    RgbImage { size, pixels }
}

/// The place of each pixel in the line of `from` pixels. Pillow adds up steps, which decides where a place is between two.
fn nearest_places(from: usize, to: usize) -> Vec<usize> {
    let step = from as f64 / to as f64;
    let mut place = step * 0.5;
    let mut next = || {
        let here = (place as usize).min(from - 1);
        place += step;
        here
    };
    (0..to).map(|_| next()).collect()
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let angle = x * std::f64::consts::PI;
    libm::sin(angle) / angle
}
