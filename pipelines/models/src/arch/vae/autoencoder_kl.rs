//! The autoencoder of latent diffusion (`diffusers/models/autoencoders/autoencoder_kl.py`;
//! <https://arxiv.org/abs/2112.10752>).

use super::{HALVES, halves};
use crate::ModelError;
use crate::arch::unet::BLOCKS;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::spec::Spec;
use crate::spec::vae::VaeSpec;

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::Diffusion,
    hugging_face: HuggingFace {
        model_type: "diffusers-autoencoder-kl",
        classes: &[Class { name: "AutoencoderKL", head: HeadKind::States, base: "" }],
        spec,
        stack: HALVES,
        heads: BLOCKS,
    },
    gguf: None,
};

fn spec(config: &Config, _: HeadKind) -> Result<Spec, ModelError> {
    let [encoder, decoder] = halves(config)?;
    Ok(Spec::Vae(Box::new(VaeSpec {
        inputs: config.optional_size("in_channels")?.unwrap_or(3),
        outputs: config.optional_size("out_channels")?.unwrap_or(3),
        latents: config.optional_size("latent_channels")?.unwrap_or(4),
        encoder,
        decoder,
        after_encoder: config.truth_or("use_quant_conv", true)?,
        before_decoder: config.truth_or("use_post_quant_conv", true)?,
    })))
}
