//! Stable Diffusion 3 and 3.5 (`diffusers/models/transformers/transformer_sd3.py`; <https://arxiv.org/abs/2403.03206>).

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
        model_type: "diffusers-sd3",
        classes: &[Class { name: "SD3Transformer2DModel", head: HeadKind::States, base: "" }],
        spec,
        stack: &[Rule::new("image", "pos_embed.proj"), Rule::new("positions", "pos_embed.pos_embed")],
        heads: LAYERS,
    },
    gguf: None,
};

fn spec(config: &Config, _: HeadKind) -> Result<Spec, ModelError> {
    let inputs = config.optional_size("in_channels")?.unwrap_or(16);
    let heads = config.optional_size("num_attention_heads")?.unwrap_or(18);
    let head = config.optional_size("attention_head_dim")?.unwrap_or(64);
    let count = if config.has("num_layers") { layers(config, "num_layers")? } else { 18 };
    let twice = config.places("dual_attention_layers")?;
    if config.optional_size("caption_projection_dim")?.unwrap_or(1152) != heads * head {
        return Err(config.wrong("caption_projection_dim", format!("the {} of all heads", heads * head)).into());
    }
    let qk_norm = match config.optional_text("qk_norm")?.as_deref() {
        None => None,
        Some("rms_norm") => Some(NormSpec::rms(1e-6)),
        Some("layer_norm") => Some(NormSpec::layer(1e-6)),
        Some(found) => {
            let (what, supported) = (config.path("qk_norm"), "rms_norm, layer_norm".into());
            return Err(ModelError::Unsupported { what, found: found.to_owned(), supported });
        }
    };
    let layer = |number| JointLayerSpec { last: number + 1 == count, twice: twice.contains(&number) };
    Ok(Spec::Dit(Box::new(DitSpec {
        image: ImageTokensSpec::Patches {
            patch: config.optional_size("patch_size")?.unwrap_or(2),
            table: config.optional_size("pos_embed_max_size")?.unwrap_or(96),
        },
        inputs,
        outputs: config.optional_size("out_channels")?.unwrap_or(inputs),
        hidden: heads * head,
        heads,
        head,
        text: config.optional_size("joint_attention_dim")?.unwrap_or(4096),
        summary: config.optional_size("pooled_projection_dim")?.unwrap_or(2048),
        guidance: false,
        moment_scale: 1.0,
        axes: Vec::new(),
        qk_norm,
        joint: (0..count).map(layer).collect(),
        single: 0,
    })))
}
