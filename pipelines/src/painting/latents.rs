//! Latent images: how large they are, what painting them takes, and the autoencoder that makes pictures of them.

use accel_backends::tensor::{Engine, Tensor};
use accel_models::ModelError;
use accel_models::config::Config;
use accel_models::family::vae::Vae;
use accel_models::model::Model;
use accel_models::spec::Spec;
use accel_protocol::Painting;
use accel_protocol::limits::PAINTING_SIDE;

use super::parts::PartModel;
use super::{not_supported, picture};
use crate::error::PipelineError;
use crate::image_input::{ImageSize, RgbImage};

/// How many images of the widest layer are alive at once, with room: measured, they are seven.
pub const ALIVE: u64 = 8;
/// How many samples a sampler keeps of a job, with room.
const KEPT: u64 = 8;
/// The most blocks of an autoencoder; those in use have four.
const BLOCKS_MAX: usize = 8;
const VALUE_BYTES: u64 = size_of::<f32>() as u64;

/// The sizes of pictures, and what painting them takes.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Height and width by default, in pixels; none where the files do not say.
    pub default: Option<[usize; 2]>,
    /// Pixels of a side for each place of a latent image.
    pub scale: usize,
    /// What sides are multiples of, in pixels.
    pub side_step: usize,
    /// Channels of a latent image.
    pub channels: usize,
    /// Values that the network has at once whatever the size.
    pub network_least: u64,
    /// Values of the network's widest layers, for each place.
    pub network_width: u64,
    /// Values of the decoder's widest layers, for each pixel.
    pub decoder_width: u64,
}

impl Sizes {
    /// The height and width of a job's latent image.
    ///
    /// # Errors
    ///
    /// When the sides are none that the model paints.
    pub fn places(&self, painting: &Painting) -> Result<[usize; 2], PipelineError> {
        let mut places = [0; 2];
        for (at, (name, asked)) in
            [("the height", painting.height), ("the width", painting.width)].into_iter().enumerate()
        {
            let side = asked.map(|side| side as usize).or(self.default.map(|size| size[at]));
            let missing = || PipelineError::input(name, "the model's files say none; ask for one");
            let (side, step) = (side.ok_or_else(missing)?, self.side_step);
            if side == 0 || !side.is_multiple_of(step) {
                return Err(PipelineError::input(name, format!("expected a multiple of {step} pixels, found {side}")));
            }
            if side > PAINTING_SIDE as usize {
                return Err(PipelineError::too_large("a side of the picture", side, PAINTING_SIDE as usize, "pixels"));
            }
            places[at] = side / self.scale;
        }
        Ok(places)
    }

    /// The size of the picture of a latent image.
    pub fn picture(&self, places: [usize; 2]) -> ImageSize {
        let [height, width] = places.map(|side| side * self.scale);
        ImageSize { height, width }
    }

    /// What one step of a job takes at most beside its samples: the network or the decoder at its widest.
    pub fn working_bytes(&self, [height, width]: [usize; 2]) -> u64 {
        let area = (height as u64).saturating_mul(width as u64);
        let scale = self.scale as u64;
        let network = area.saturating_mul(self.network_width).saturating_add(self.network_least);
        let decoder = area.saturating_mul(scale * scale).saturating_mul(self.decoder_width);
        network.max(decoder).saturating_mul(VALUE_BYTES)
    }

    /// What is kept of a job between steps.
    pub fn kept_bytes(&self, [height, width]: [usize; 2]) -> u64 {
        (self.channels as u64 * KEPT * VALUE_BYTES).saturating_mul(height as u64).saturating_mul(width as u64)
    }
}

/// An autoencoder that is known but not loaded.
pub struct Unloaded {
    part: PartModel,
    /// Channels of a latent image.
    pub channels: usize,
    /// Pixels of a side for each place of a latent image.
    pub scale: usize,
    /// Values of the decoder's widest layers, for each pixel.
    pub width: u64,
    factor: f32,
    shift: f32,
}

/// An autoencoder with its weights.
pub struct Autoencoder {
    vae: Vae,
    engine: Engine,
    channels: usize,
    factor: f32,
    shift: f32,
}

impl Unloaded {
    /// Reads all but the weights.
    ///
    /// # Errors
    ///
    /// When a key is wrong, or it makes no pictures.
    pub fn read(part: PartModel) -> Result<Self, PipelineError> {
        let Spec::Vae(spec) = &part.described.spec else {
            return Err(part.error(not_supported("config.json", "a model of another kind", "AutoencoderKL")));
        };
        if spec.outputs != 3 {
            return Err(part.error(not_supported("config.json: out_channels", &spec.outputs.to_string(), "3")));
        }
        let read = |config: &Config| {
            let blocks = config.optional_sizes("block_out_channels")?.unwrap_or_else(|| vec![64]);
            if !(1..=BLOCKS_MAX).contains(&blocks.len()) {
                return Err(config.wrong("block_out_channels", format!("1 to {BLOCKS_MAX} sizes")));
            }
            let factor = config.optional_number("scaling_factor")?.unwrap_or(0.18215) as f32;
            if !factor.is_finite() || factor == 0.0 {
                return Err(config.wrong("scaling_factor", "a number other than 0"));
            }
            let shift = config.optional_number("shift_factor")?.unwrap_or(0.0) as f32;
            Ok((blocks, factor, shift))
        };
        let (blocks, factor, shift) = read(&part.config).map_err(|error| part.error(error))?;
        // The last but one block's images are made as large as the last's.
        let width = ALIVE * blocks.iter().take(2).max().map_or(0, |&channels| channels as u64);
        Ok(Self { channels: spec.latents, scale: 1 << (blocks.len() - 1), width, factor, shift, part })
    }

    /// Bytes of its weights.
    pub fn bytes(&self) -> u64 {
        self.part.bytes()
    }

    /// Reads its weights.
    ///
    /// # Errors
    ///
    /// When that cannot be done.
    pub fn load(self, engine: &Engine) -> Result<Autoencoder, PipelineError> {
        let Self { part, channels, factor, shift, .. } = self;
        match part.load(engine)? {
            Model::Vae(vae) => Ok(Autoencoder { vae: *vae, engine: engine.clone(), channels, factor, shift }),
            _ => Err(not_supported("vae", "a model of another kind", "AutoencoderKL").into()),
        }
    }
}

impl Autoencoder {
    /// The picture of a latent image: `[channels, height, width]`. `shifts`, whether the pipeline counts the autoencoder's
    /// shift.
    ///
    /// # Errors
    ///
    /// When it cannot be decoded, or what comes of it are no numbers.
    pub fn picture(
        &self,
        latents: &[f32],
        [height, width]: [usize; 2],
        size: ImageSize,
        shifts: bool,
    ) -> Result<RgbImage, PipelineError> {
        let shift = if shifts { self.shift } else { 0.0 };
        let latents = latents.iter().map(|value| value / self.factor + shift).collect();
        let at = |source| ModelError::Tensor { place: "vae: latents".into(), source };
        let latents = Tensor::new(&self.engine, latents, &[1, self.channels, height, width]).map_err(at)?;
        picture::of_values(&self.vae.decode(&latents)?.to_vec().map_err(at)?, size)
    }
}
