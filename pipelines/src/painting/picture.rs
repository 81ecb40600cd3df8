//! From what an autoencoder decodes to a file (`VaeImageProcessor.postprocess` of Diffusers).

use accel_protocol::limits::RESULT_BYTES;
use accel_protocol::{FileBytes, TaskResult};
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};

use crate::error::PipelineError;
use crate::image_input::{ImageSize, RgbImage};

/// Room for what is beside the picture in its event.
const BESIDE: usize = 1 << 10;

/// A picture of values from -1 to 1, `[3, height, width]`; what is beyond is cut off.
///
/// # Errors
///
/// When a value is no number, or the values are not as many as the size says.
pub fn of_values(values: &[f32], size: ImageSize) -> Result<RgbImage, PipelineError> {
    if values.iter().any(|value| value.is_nan()) {
        return Err(PipelineError::NotNumbers { output: "the decoded picture".into() });
    }
    let plane = size.pixels();
    let [red, green, blue] = match values.chunks_exact(plane.max(1)).collect::<Vec<_>>()[..] {
        [red, green, blue] => [red, green, blue],
        ref other => {
            let reason = format!("expected 3 channels of {size}, found {}", other.len());
            return Err(PipelineError::input("the decoded picture", reason));
        }
    };
    let byte = |value: f32| ((value * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
    let pixels = (0..plane).flat_map(|at| [byte(red[at]), byte(green[at]), byte(blue[at])]).collect();
    RgbImage::new(size, pixels)
}

/// A picture as PNG.
///
/// # Errors
///
/// When the file is larger than a result may be.
pub fn png(picture: &RgbImage) -> Result<TaskResult, PipelineError> {
    let mut file = Vec::new();
    let ImageSize { height, width } = picture.size();
    let encoder = PngEncoder::new_with_quality(&mut file, CompressionType::Best, FilterType::Adaptive);
    let written = encoder.write_image(picture.pixels(), width as u32, height as u32, ExtendedColorType::Rgb8);
    written.map_err(|error| PipelineError::input("the picture", error))?;
    if file.len() > RESULT_BYTES - BESIDE {
        let what = "the picture as PNG, of which smaller sides leave less";
        return Err(PipelineError::too_large(what, file.len(), RESULT_BYTES - BESIDE, "bytes"));
    }
    Ok(TaskResult::Picture(FileBytes(file)))
}
