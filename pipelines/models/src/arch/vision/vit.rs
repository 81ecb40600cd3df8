//! `ViT` (`transformers/models/vit`; <https://arxiv.org/abs/2010.11929>).

use super::{Heads, attention, layers, patch_stack};
use crate::ModelError;
use crate::arch::decoder::{activation, sequential};
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, ImageHead};
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::vision::{BackboneSpec, ImageSize, PatchSpec, PatchesSpec, PoolOf, PoolSpec, StatesShape};
use crate::spec::{Activation, MlpSpec, NormSpec, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::Vision,
    hugging_face: HuggingFace { model_type: "vit", classes: CLASSES, spec, stack: STACK, heads: HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "ViTForImageClassification", head: HeadKind::Image(ImageHead::Labels), base: "vit." },
    Class { name: "ViTModel", head: HeadKind::States, base: "" },
    Class { name: "ViTForMaskedImageModeling", head: HeadKind::Image(ImageHead::Pixels), base: "vit." },
];

/// The names of Hugging Face's checkpoints.
pub(super) const STACK: &[Rule] = &[
    Rule::new("patches", "embeddings.patch_embeddings.projection"),
    Rule::new("class", "embeddings.cls_token"),
    Rule::new("mask_token", "embeddings.mask_token"),
    Rule::new("positions", "embeddings.position_embeddings"),
    Rule::new("layers.{}.attn_norm", "encoder.layer.{}.layernorm_before"),
    Rule::new("layers.{}.attn.q", "encoder.layer.{}.attention.attention.query"),
    Rule::new("layers.{}.attn.k", "encoder.layer.{}.attention.attention.key"),
    Rule::new("layers.{}.attn.v", "encoder.layer.{}.attention.attention.value"),
    Rule::new("layers.{}.attn.out", "encoder.layer.{}.attention.output.dense"),
    Rule::new("layers.{}.mlp_norm", "encoder.layer.{}.layernorm_after"),
    Rule::new("layers.{}.mlp.up", "encoder.layer.{}.intermediate.dense"),
    Rule::new("layers.{}.mlp.down", "encoder.layer.{}.output.dense"),
    Rule::new("final_norm", "layernorm"),
    Rule::new("pool", "pooler.dense"),
];

/// The names of the heads.
pub(super) const HEADS: &[Rule] = &[Rule::new("head.labels", "classifier"), Rule::new("head.pixels", "decoder.0")];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let patches = patches(config, 1e-12, kind == HeadKind::Image(ImageHead::Pixels))?;
    let pooled = config.optional_size("pooler_output_size")?.unwrap_or(patches.embed.width);
    let pooled_by = if config.has("pooler_act") { activation(config, "pooler_act", "tanh")? } else { Activation::Tanh };
    let first = PoolSpec::plain(PoolOf::First);
    let heads = Heads {
        states: (Some(PoolSpec { dense: Some((pooled, pooled_by)), ..first.clone() }), StatesShape::Sequence),
        labels: first,
        side: Some(config.optional_size("encoder_stride")?.unwrap_or(16)),
        stages: None,
    };
    heads.model(config, kind, BackboneSpec::Patches(patches))
}

/// A stack with the keys of `ViT`'s configuration; `mask` tells whether there is a token for hidden patches.
pub(super) fn patches(config: &Config, norm_eps: f64, mask: bool) -> Result<PatchesSpec, ModelError> {
    let hidden = config.optional_size("hidden_size")?.unwrap_or(768);
    let norm = NormSpec::layer(config.optional_number("layer_norm_eps")?.unwrap_or(norm_eps));
    let inner = config.optional_size("intermediate_size")?.unwrap_or(3072);
    let mlp = MlpSpec::plain(inner, activation(config, "hidden_act", "gelu")?);
    let embed = PatchSpec {
        channels: config.optional_size("num_channels")?.unwrap_or(3),
        image: ImageSize::Fixed(config.optional_area("image_size")?.unwrap_or([224; 2])),
        patch: config.optional_area("patch_size")?.unwrap_or([16; 2]),
        width: hidden,
        bias: true,
        patch_norm: None,
        mask,
        class: true,
        positions: true,
        norm: None,
    };
    let layer = sequential(norm, attention(config, hidden, 12, config.truth_or("qkv_bias", true)?)?, mlp);
    Ok(PatchesSpec { embed, stack: patch_stack(hidden, layers(config, "num_hidden_layers", 12)?, layer, Some(norm)) })
}
