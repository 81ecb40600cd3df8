//! Flux (`diffusers/models/transformers/transformer_flux.py`; <https://huggingface.co/black-forest-labs/FLUX.1-dev>).

use super::LAYERS;
use crate::ModelError;
use crate::arch::decoder::layers;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::dit::{DitSpec, ImageTokensSpec, JointLayerSpec};
use crate::spec::{NormSpec, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::Diffusion,
    hugging_face: HuggingFace {
        model_type: "diffusers-flux",
        classes: &[Class { name: "FluxTransformer2DModel", head: HeadKind::States, base: "" }],
        spec,
        stack: &[Rule::new("image", "x_embedder")],
        heads: LAYERS,
    },
    gguf: None,
};

fn spec(config: &Config, _: HeadKind) -> Result<Spec, ModelError> {
    let inputs = config.optional_size("in_channels")?.unwrap_or(64);
    let patch = config.optional_size("patch_size")?.unwrap_or(1);
    let heads = config.optional_size("num_attention_heads")?.unwrap_or(24);
    let head = config.optional_size("attention_head_dim")?.unwrap_or(128);
    let axes = config.optional_sizes("axes_dims_rope")?.unwrap_or_else(|| vec![16, 56, 56]);
    if axes.iter().sum::<usize>() != head || axes.iter().any(|axis| !axis.is_multiple_of(2)) {
        return Err(config.wrong("axes_dims_rope", format!("even numbers of the sum {head}")).into());
    }
    let depth = |key: &str, default: usize| match config.optional_count(key)? {
        Some(0) => Ok(0),
        Some(_) => layers(config, key),
        None => Ok(default),
    };
    let (joint, single) = (depth("num_layers", 19)?, depth("num_single_layers", 38)?);
    Ok(Spec::Dit(Box::new(DitSpec {
        image: ImageTokensSpec::Given,
        inputs,
        outputs: patch * patch * config.optional_size("out_channels")?.unwrap_or(inputs),
        hidden: heads * head,
        heads,
        head,
        text: config.optional_size("joint_attention_dim")?.unwrap_or(4096),
        summary: config.optional_size("pooled_projection_dim")?.unwrap_or(768),
        guidance: config.truth_or("guidance_embeds", false)?,
        moment_scale: 1000.0,
        axes,
        qk_norm: Some(NormSpec::rms(1e-6)),
        joint: vec![JointLayerSpec { last: false, twice: false }; joint],
        single,
    })))
}
