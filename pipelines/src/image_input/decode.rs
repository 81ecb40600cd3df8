//! From a file to pixels, as Pillow and `transformers.image_utils.load_image` read it.
//!
//! The picture is turned as its EXIF orientation says, then made RGB: an alpha channel is dropped and not blended, and of
//! 16 bits a channel the upper 8 are kept. PNG and WebP give Pillow's pixels exactly. JPEG decoders may round as they like:
//! against libjpeg-turbo, which Pillow has, single values differ by up to 2 of 255, and by up to 4 where the file has its
//! colours at half the size.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use crate::error::PipelineError;

use super::{ImageSize, PIXELS_MAX, RgbImage};

/// The longest file of a picture that is read.
pub const IMAGE_BYTES_MAX: usize = 64 << 20;
/// The longest edge of a picture; JPEG has no longer ones.
const EDGE_MAX: u32 = 65_535;
/// What decoding may occupy: the picture with four channels of 16 bits, and as much again.
const DECODE_BYTES_MAX: u64 = 16 * PIXELS_MAX as u64;

/// Reads a PNG, JPEG or WebP file. Of an animation the first picture is read.
///
/// # Errors
///
/// When the file is of another format, damaged or cut off, longer than [`IMAGE_BYTES_MAX`], or has more pixels than
/// [`PIXELS_MAX`]; the pixels are counted before any are decoded.
pub fn decode(bytes: &[u8]) -> Result<RgbImage, PipelineError> {
    if bytes.len() > IMAGE_BYTES_MAX {
        return Err(PipelineError::too_large("an image file", bytes.len(), IMAGE_BYTES_MAX, "bytes"));
    }
    let format = image::guess_format(bytes).ok();
    let Some(format @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP)) = format else {
        return Err(PipelineError::Unsupported {
            what: "the image's format",
            found: format.map_or_else(|| "unknown".into(), |format| format!("{format:?}")),
            supported: "PNG, JPEG, WebP".into(),
        });
    };
    if format == ImageFormat::Jpeg && !jpeg_is_whole(bytes) {
        return Err(damaged("the JPEG data end before the picture does"));
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_image_width = Some(EDGE_MAX);
    limits.max_image_height = Some(EDGE_MAX);
    limits.max_alloc = Some(DECODE_BYTES_MAX);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(unreadable)?;
    let (width, height) = decoder.dimensions();
    let pixels = width as usize * height as usize;
    if pixels > PIXELS_MAX {
        return Err(PipelineError::too_large("an image", pixels, PIXELS_MAX, "pixels"));
    }
    let orientation = decoder.orientation().map_err(unreadable)?;
    let decoded = DynamicImage::from_decoder(decoder).map_err(unreadable)?;
    let mut turned = DynamicImage::ImageRgb8(eight_bits(decoded)?);
    turned.apply_orientation(orientation);
    let size = ImageSize { height: turned.height() as usize, width: turned.width() as usize };
    RgbImage::new(size, turned.into_bytes())
}

/// Without alpha, and with 8 bits a channel.
fn eight_bits(image: DynamicImage) -> Result<image::RgbImage, PipelineError> {
    let (width, height) = (image.width(), image.height());
    let upper = |value: &u16| (value >> 8) as u8;
    let pixels = match image {
        DynamicImage::ImageLuma8(_)
        | DynamicImage::ImageLumaA8(_)
        | DynamicImage::ImageRgb8(_)
        | DynamicImage::ImageRgba8(_) => return Ok(image.into_rgb8()),
        // Pillow has a mode of its own for grey pictures of 16 bits, and cuts off what is above 255 when it leaves it.
        DynamicImage::ImageLuma16(grey) => grey.iter().flat_map(|value| [(*value).min(255) as u8; 3]).collect(),
        DynamicImage::ImageLumaA16(grey) => grey.pixels().flat_map(|pixel| [upper(&pixel.0[0]); 3]).collect(),
        DynamicImage::ImageRgb16(rgb) => rgb.iter().map(upper).collect(),
        DynamicImage::ImageRgba16(rgba) => rgba.pixels().flat_map(|pixel| pixel.0[..3].iter().map(upper)).collect(),
        other => return Err(damaged(format!("expected pixels of 8 or 16 bits, found {:?}", other.color()))),
    };
    image::RgbImage::from_raw(width, height, pixels).ok_or_else(|| damaged("the pixels do not fill the picture"))
}

/// Whether the data go on to the mark of the end. The decoder would fill the rest of a cut picture with grey.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    let mut place = 2;
    while let Some(pair) = bytes.get(place..place + 2) {
        match (pair[0], pair[1]) {
            (0xff, 0xd9) => return true,
            // What fills up to a mark, and marks without a length.
            (0xff, 0xff) => place += 1,
            (0xff, 0x00 | 0x01 | 0xd0..=0xd7) => place += 2,
            (0xff, _) => {
                let Some(length) = bytes.get(place + 2..place + 4) else { return false };
                place += 2 + usize::from(u16::from_be_bytes([length[0], length[1]]));
            }
            // The data of a scan.
            _ => place += 1,
        }
    }
    false
}

fn unreadable(error: ImageError) -> PipelineError {
    match error {
        ImageError::Limits(limit) => {
            let reason = format!("{limit}: expected at most {PIXELS_MAX} pixels and edges of {EDGE_MAX}");
            PipelineError::input("the image", reason)
        }
        ImageError::Unsupported(unsupported) => PipelineError::Unsupported {
            what: "the image",
            found: unsupported.to_string(),
            supported: "PNG, JPEG, WebP".into(),
        },
        other => damaged(other),
    }
}

fn damaged(reason: impl ToString) -> PipelineError {
    PipelineError::input("the image", reason)
}
