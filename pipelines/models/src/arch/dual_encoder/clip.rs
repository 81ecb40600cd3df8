//! CLIP (`transformers/models/clip`; <https://arxiv.org/abs/2103.00020>), and each of its halves by itself.

use crate::ModelError;
use crate::arch::decoder::{activation, sequential};
use crate::arch::vision::{attention, layers, patch_stack};
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, ImageHead, labels, no_such_head};
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::dual_encoder::{DualEncoderSpec, ImageSpec, TextPoolOf, TextPoolSpec, TextSpec};
use crate::spec::vision::{BackboneSpec, ImageSize, PatchSpec, PatchesSpec, PoolOf, PoolSpec, VisionHead, VisionSpec};
use crate::spec::{EmbedSpec, MlpSpec, NormSpec, PositionSpec, Spec, StackSpec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::Multimodal,
    hugging_face: HuggingFace {
        model_type: "clip",
        classes: &[
            Class { name: "CLIPModel", head: HeadKind::Image(ImageHead::Similarity), base: "" },
            Class { name: "CLIPForImageClassification", head: HeadKind::Image(ImageHead::Labels), base: "" },
            // Of Diffusers, whose concepts whoever asks compares vectors with (`safety_checker.py`).
            Class {
                name: "StableDiffusionSafetyChecker",
                head: HeadKind::Image(ImageHead::Projected),
                base: "vision_model.",
            },
        ],
        spec,
        stack: STACK,
        heads: &[Rule::new("head.labels", "classifier"), Rule::new("image.projection", "visual_projection")],
    },
    gguf: None,
};

/// The model type of the half that reads.
pub const TEXT: Arch = Arch {
    architecture: Architecture::EncoderOnly,
    hugging_face: HuggingFace {
        model_type: "clip_text_model",
        classes: &[
            Class { name: "CLIPTextModel", head: HeadKind::Image(ImageHead::Text { projected: false }), base: "" },
            Class {
                name: "CLIPTextModelWithProjection",
                head: HeadKind::Image(ImageHead::Text { projected: true }),
                base: "",
            },
        ],
        spec: text_spec,
        stack: STACK,
        heads: &[],
    },
    gguf: None,
};

/// The model type of the half that sees.
pub const VISION: Arch = Arch {
    architecture: Architecture::Vision,
    hugging_face: HuggingFace {
        model_type: "clip_vision_model",
        classes: &[
            Class { name: "CLIPVisionModel", head: HeadKind::States, base: "" },
            Class { name: "CLIPVisionModelWithProjection", head: HeadKind::Image(ImageHead::Projected), base: "" },
        ],
        spec: vision_spec,
        stack: STACK,
        heads: &[],
    },
    gguf: None,
};

/// The names of both halves.
pub(super) const STACK: &[Rule] = &[
    Rule::new("text.embed", "text_model.embeddings.token_embedding"),
    Rule::new("text.positions", "text_model.embeddings.position_embedding"),
    Rule::new("text.layers.{}.attn_norm", "text_model.encoder.layers.{}.layer_norm1"),
    Rule::new("text.layers.{}.attn.q", "text_model.encoder.layers.{}.self_attn.q_proj"),
    Rule::new("text.layers.{}.attn.k", "text_model.encoder.layers.{}.self_attn.k_proj"),
    Rule::new("text.layers.{}.attn.v", "text_model.encoder.layers.{}.self_attn.v_proj"),
    Rule::new("text.layers.{}.attn.out", "text_model.encoder.layers.{}.self_attn.out_proj"),
    Rule::new("text.layers.{}.mlp_norm", "text_model.encoder.layers.{}.layer_norm2"),
    Rule::new("text.layers.{}.mlp.up", "text_model.encoder.layers.{}.mlp.fc1"),
    Rule::new("text.layers.{}.mlp.down", "text_model.encoder.layers.{}.mlp.fc2"),
    Rule::new("text.final_norm", "text_model.final_layer_norm"),
    Rule::new("text.projection", "text_projection"),
    Rule::new("image.patches", "vision_model.embeddings.patch_embedding"),
    Rule::new("image.class", "vision_model.embeddings.class_embedding"),
    Rule::new("image.positions", "vision_model.embeddings.position_embedding.weight"),
    Rule::new("image.embed_norm", "vision_model.pre_layrnorm"),
    Rule::new("image.layers.{}.attn_norm", "vision_model.encoder.layers.{}.layer_norm1"),
    Rule::new("image.layers.{}.attn.q", "vision_model.encoder.layers.{}.self_attn.q_proj"),
    Rule::new("image.layers.{}.attn.k", "vision_model.encoder.layers.{}.self_attn.k_proj"),
    Rule::new("image.layers.{}.attn.v", "vision_model.encoder.layers.{}.self_attn.v_proj"),
    Rule::new("image.layers.{}.attn.out", "vision_model.encoder.layers.{}.self_attn.out_proj"),
    Rule::new("image.layers.{}.mlp_norm", "vision_model.encoder.layers.{}.layer_norm2"),
    Rule::new("image.layers.{}.mlp.up", "vision_model.encoder.layers.{}.mlp.fc1"),
    Rule::new("image.layers.{}.mlp.down", "vision_model.encoder.layers.{}.mlp.fc2"),
    Rule::new("image.pool_norm", "vision_model.post_layernorm"),
    Rule::new("image.projection", "visual_projection"),
    Rule::new("similarity.scale", "logit_scale"),
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    whole(config, kind, end)
}

fn text_spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    text_half(config, kind, end)
}

/// The id 2 was written in error into configurations whose texts end in the largest id.
fn end(token: i64) -> TextPoolOf {
    if token == 2 { TextPoolOf::LargestToken } else { TextPoolOf::Token(token) }
}

/// A model with the keys of CLIP's configuration; `end` tells which state stands for a text, from the id of its end.
pub(super) fn whole(config: &Config, kind: HeadKind, end: fn(i64) -> TextPoolOf) -> Result<Spec, ModelError> {
    let half = |key| config.section(key).map(Option::unwrap_or_default);
    let image = half("vision_config")?;
    match kind {
        HeadKind::Image(ImageHead::Similarity) => {
            let projection = Some(config.optional_size("projection_dim")?.unwrap_or(512));
            let text = TextSpec { projection, ..self::text(&half("text_config")?, end)? };
            let image = ImageSpec { projection, ..self::image(&image)? };
            Ok(Spec::DualEncoder(Box::new(DualEncoderSpec { text: Some(text), image: Some(image), bias: false })))
        }
        HeadKind::Image(ImageHead::Labels) => {
            let head = VisionHead::Labels { pool: PoolSpec::plain(PoolOf::Places), labels: labels(config)? };
            let backbone = self::image(&image)?.backbone;
            Ok(Spec::Vision(Box::new(VisionSpec { backbone, head, part: Some("image") })))
        }
        HeadKind::Image(ImageHead::Projected) => {
            let projection = Some(config.optional_size("projection_dim")?.unwrap_or(512));
            let image = ImageSpec { projection, ..self::image(&image)? };
            Ok(Spec::DualEncoder(Box::new(DualEncoderSpec { text: None, image: Some(image), bias: false })))
        }
        _ => Err(no_such_head(kind)),
    }
}

/// The half that reads.
pub(super) fn text_half(config: &Config, kind: HeadKind, end: fn(i64) -> TextPoolOf) -> Result<Spec, ModelError> {
    let mut text = text(config, end)?;
    if kind == HeadKind::Image(ImageHead::Text { projected: true }) {
        text.projection = Some(config.optional_size("projection_dim")?.unwrap_or(512));
    }
    Ok(Spec::DualEncoder(Box::new(DualEncoderSpec { text: Some(text), image: None, bias: false })))
}

/// The half that sees.
pub(super) fn vision_spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let mut image = image(config)?;
    if kind == HeadKind::Image(ImageHead::Projected) {
        image.projection = Some(config.optional_size("projection_dim")?.unwrap_or(512));
    }
    Ok(Spec::DualEncoder(Box::new(DualEncoderSpec { text: None, image: Some(image), bias: false })))
}

fn text(config: &Config, end: fn(i64) -> TextPoolOf) -> Result<TextSpec, ModelError> {
    let hidden = config.optional_size("hidden_size")?.unwrap_or(512);
    let norm = NormSpec::layer(config.optional_number("layer_norm_eps")?.unwrap_or(1e-5));
    let inner = config.optional_size("intermediate_size")?.unwrap_or(2048);
    let mlp = MlpSpec::plain(inner, activation(config, "hidden_act", "quick_gelu")?);
    let layer = sequential(norm, attention(config, hidden, 8, true)?, mlp);
    let rows = config.optional_size("max_position_embeddings")?.unwrap_or(77);
    let vocabulary = config.optional_size("vocab_size")?.unwrap_or(49_408);
    let embed = EmbedSpec {
        positions: PositionSpec::Learned { rows, first: 0, padding: None },
        ..EmbedSpec::plain(vocabulary, hidden)
    };
    let stack = patch_stack(hidden, layers(config, "num_hidden_layers", 12)?, layer, Some(norm));
    let of = end(config.optional_integer("eos_token_id")?.unwrap_or(49_407));
    let stack = StackSpec { embed, causal: true, ..stack };
    Ok(TextSpec { stack, pool: TextPoolSpec { of, dense: None }, projection: None })
}

fn image(config: &Config) -> Result<ImageSpec, ModelError> {
    let hidden = config.optional_size("hidden_size")?.unwrap_or(768);
    let norm = NormSpec::layer(config.optional_number("layer_norm_eps")?.unwrap_or(1e-5));
    let inner = config.optional_size("intermediate_size")?.unwrap_or(3072);
    let mlp = MlpSpec::plain(inner, activation(config, "hidden_act", "quick_gelu")?);
    let embed = PatchSpec {
        channels: config.optional_size("num_channels")?.unwrap_or(3),
        image: ImageSize::Fixed(config.optional_area("image_size")?.unwrap_or([224; 2])),
        patch: config.optional_area("patch_size")?.unwrap_or([32; 2]),
        width: hidden,
        bias: false,
        patch_norm: None,
        mask: false,
        class: true,
        positions: true,
        norm: Some(norm),
    };
    let layer = sequential(norm, attention(config, hidden, 12, true)?, mlp);
    let stack = patch_stack(hidden, layers(config, "num_hidden_layers", 12)?, layer, None);
    let pool = PoolSpec { of: PoolOf::First, norm: Some(norm), dense: None };
    Ok(ImageSpec { backbone: BackboneSpec::Patches(PatchesSpec { embed, stack }), pool, projection: None })
}
