//! SAM (`transformers/models/sam`; <https://arxiv.org/abs/2304.02643>), and what sees its images by itself.

use crate::ModelError;
use crate::arch::decoder::activation;
use crate::arch::vision::layers;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, ImageHead, no_such_head};
use crate::config::{Config, ConfigError};
use crate::rules::Rule;
use crate::spec::segmentation::{PerceptronSpec, PromptSpec, SegmentationSpec};
use crate::spec::vision::{
    BackboneSpec, DistanceSpec, ImageSize, PatchSpec, PlainSpec, StatesShape, VisionHead, VisionSpec,
    WindowAttentionSpec,
};
use crate::spec::{AttentionSpec, MlpSpec, NormSpec, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::Vision,
    hugging_face: HuggingFace {
        model_type: "sam",
        classes: &[Class { name: "SamModel", head: HeadKind::Image(ImageHead::Prompted), base: "" }],
        spec,
        stack: STACK,
        heads: &[],
    },
    gguf: None,
};

/// The model type of what sees images.
pub const VISION: Arch = Arch {
    architecture: Architecture::Vision,
    hugging_face: HuggingFace {
        model_type: "sam_vision_model",
        classes: &[Class { name: "SamVisionModel", head: HeadKind::States, base: "" }],
        spec: vision_spec,
        stack: STACK,
        heads: &[],
    },
    gguf: None,
};

const STACK: &[Rule] = &[
    Rule::new("image.patches", "vision_encoder.patch_embed.projection"),
    Rule::new("image.positions", "vision_encoder.pos_embed"),
    Rule::new("image.layers.{}.attn_norm", "vision_encoder.layers.{}.layer_norm1"),
    Rule::new("image.layers.{}.attn.out", "vision_encoder.layers.{}.attn.proj"),
    Rule::new("image.layers.{}.attn.rows", "vision_encoder.layers.{}.attn.rel_pos_h"),
    Rule::new("image.layers.{}.attn.columns", "vision_encoder.layers.{}.attn.rel_pos_w"),
    Rule::new("image.layers.{}.attn.", "vision_encoder.layers.{}.attn."),
    Rule::new("image.layers.{}.mlp_norm", "vision_encoder.layers.{}.layer_norm2"),
    Rule::new("image.layers.{}.mlp.up", "vision_encoder.layers.{}.mlp.lin1"),
    Rule::new("image.layers.{}.mlp.down", "vision_encoder.layers.{}.mlp.lin2"),
    Rule::new("image.neck.0.conv", "vision_encoder.neck.conv1"),
    Rule::new("image.neck.0.norm", "vision_encoder.neck.layer_norm1"),
    Rule::new("image.neck.1.conv", "vision_encoder.neck.conv2"),
    Rule::new("image.neck.1.norm", "vision_encoder.neck.layer_norm2"),
    Rule::new("waves", "shared_image_embedding.positional_embedding"),
    Rule::new("waves", "prompt_encoder.shared_embedding.positional_embedding"),
    Rule::new("prompt.points.{}", "prompt_encoder.point_embed.{}"),
    Rule::new("prompt.no_point", "prompt_encoder.not_a_point_embed"),
    Rule::new("prompt.no_mask", "prompt_encoder.no_mask_embed"),
    Rule::new("prompt.mask.0", "prompt_encoder.mask_embed.conv1"),
    Rule::new("prompt.mask.1", "prompt_encoder.mask_embed.conv2"),
    Rule::new("prompt.mask.2", "prompt_encoder.mask_embed.conv3"),
    Rule::new("prompt.mask_norms.0", "prompt_encoder.mask_embed.layer_norm1"),
    Rule::new("prompt.mask_norms.1", "prompt_encoder.mask_embed.layer_norm2"),
    Rule::new("tokens.quality", "mask_decoder.iou_token"),
    Rule::new("tokens.masks", "mask_decoder.mask_tokens"),
    Rule::new("layers.{}.attn.", "mask_decoder.transformer.layers.{}.self_attn."),
    Rule::new("layers.{}.attn_norm", "mask_decoder.transformer.layers.{}.layer_norm1"),
    Rule::new("layers.{}.cross.", "mask_decoder.transformer.layers.{}.cross_attn_token_to_image."),
    Rule::new("layers.{}.cross_norm", "mask_decoder.transformer.layers.{}.layer_norm2"),
    Rule::new("layers.{}.mlp.up", "mask_decoder.transformer.layers.{}.mlp.lin1"),
    Rule::new("layers.{}.mlp.down", "mask_decoder.transformer.layers.{}.mlp.lin2"),
    Rule::new("layers.{}.mlp_norm", "mask_decoder.transformer.layers.{}.layer_norm3"),
    Rule::new("layers.{}.back.", "mask_decoder.transformer.layers.{}.cross_attn_image_to_token."),
    Rule::new("layers.{}.back_norm", "mask_decoder.transformer.layers.{}.layer_norm4"),
    Rule::new("last.", "mask_decoder.transformer.final_attn_token_to_image."),
    Rule::new("last_norm", "mask_decoder.transformer.layer_norm_final_attn"),
    Rule::new("*.q", "*.q_proj"),
    Rule::new("*.k", "*.k_proj"),
    Rule::new("*.v", "*.v_proj"),
    Rule::new("*.out", "*.out_proj"),
    Rule::new("finer.0", "mask_decoder.upscale_conv1"),
    Rule::new("finer_norm", "mask_decoder.upscale_layer_norm"),
    Rule::new("finer.1", "mask_decoder.upscale_conv2"),
    Rule::new("draws.{}.first", "mask_decoder.output_hypernetworks_mlps.{}.proj_in"),
    Rule::new("draws.{}.inner.{}", "mask_decoder.output_hypernetworks_mlps.{}.layers.{}"),
    Rule::new("draws.{}.last", "mask_decoder.output_hypernetworks_mlps.{}.proj_out"),
    Rule::new("quality.first", "mask_decoder.iou_prediction_head.proj_in"),
    Rule::new("quality.inner.{}", "mask_decoder.iou_prediction_head.layers.{}"),
    Rule::new("quality.last", "mask_decoder.iou_prediction_head.proj_out"),
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    if kind != HeadKind::Image(ImageHead::Prompted) {
        return Err(no_such_head(kind));
    }
    let section = |key: &str| Ok::<_, ConfigError>(config.section(key)?.unwrap_or_default());
    let (vision, prompt) = (section("vision_config")?, section("prompt_encoder_config")?);
    let decoder = section("mask_decoder_config")?;
    let hidden = decoder.optional_size("hidden_size")?.unwrap_or(256);
    let image = backbone(&vision)?;
    let same = |config: &Config, key: &str, default: usize, expected: usize| match config.optional_size(key)? {
        None if default == expected => Ok(()),
        Some(found) if found == expected => Ok(()),
        _ => Err(config.wrong(key, expected.to_string())),
    };
    same(&prompt, "hidden_size", 256, hidden)?;
    same(&vision, "output_channels", 256, hidden)?;
    same(&vision, "num_pos_feats", 128, hidden / 2)?;
    let ((pixels, patch), (seen, seen_patch)) = (image_size(&prompt)?, image_size(&vision)?);
    if pixels / patch != seen / seen_patch {
        let expected = format!("what makes {} patches along a side, as the image has", seen / seen_patch);
        return Err(prompt.wrong("image_size", expected).into());
    }
    if prompt.optional_size("num_point_embeddings")?.is_some_and(|count| count < 4) {
        return Err(prompt.wrong("num_point_embeddings", "4 or more").into());
    }
    let masks = decoder.optional_size("num_multimask_outputs")?.unwrap_or(3) + 1;
    let heads = decoder.optional_size("num_attention_heads")?.unwrap_or(8);
    let attention = |narrowed: usize, key: &str| {
        let fits = (hidden / narrowed).is_multiple_of(heads) && hidden / narrowed > 0;
        let head = hidden / narrowed / heads;
        let spec = AttentionSpec::plain(heads, heads, head).with_biases();
        if fits { Ok(spec) } else { Err(decoder.wrong(key, format!("what divides {hidden}"))) }
    };
    let eps = |config: &Config| Ok::<_, ConfigError>(config.optional_number("layer_norm_eps")?.unwrap_or(1e-6));
    let inner = decoder.optional_size("mlp_dim")?.unwrap_or(2048);
    let depth = decoder.optional_size("iou_head_depth")?.unwrap_or(3);
    if depth > DEPTH_MAX {
        return Err(decoder.wrong("iou_head_depth", format!("at most {DEPTH_MAX}")).into());
    }
    Ok(Spec::Segmentation(Box::new(SegmentationSpec {
        image: BackboneSpec::Plain(image),
        hidden,
        prompt: PromptSpec {
            image: pixels,
            grid: pixels / patch,
            mask: prompt.optional_size("mask_input_channels")?.unwrap_or(16),
            activation: activation(&prompt, "hidden_act", "gelu")?,
            eps: eps(&prompt)?,
        },
        layers: layers(&decoder, "num_hidden_layers", 2)?,
        attention: attention(1, "num_attention_heads")?,
        // The reference keeps to two within layers, whatever the configuration says.
        cross: attention(2, "num_attention_heads")?,
        last: attention(decoder.optional_size("attention_downsample_rate")?.unwrap_or(2), "attention_downsample_rate")?,
        mlp: MlpSpec::plain(inner, activation(&decoder, "hidden_act", "relu")?),
        eps: eps(&decoder)?,
        masks,
        quality: PerceptronSpec {
            inputs: hidden,
            inner: decoder.optional_size("iou_head_hidden_dim")?.unwrap_or(256),
            outputs: masks,
            layers: depth,
        },
    })))
}

/// Layers of what tells how good masks are: more than any model has.
const DEPTH_MAX: usize = 64;

fn vision_spec(config: &Config, _: HeadKind) -> Result<Spec, ModelError> {
    let head = VisionHead::States { shape: StatesShape::Map, pool: None };
    let backbone = BackboneSpec::Plain(backbone(config)?);
    Ok(Spec::Vision(Box::new(VisionSpec { backbone, head, part: Some("image") })))
}

/// Pixels along a side of the image and of a patch.
fn image_size(config: &Config) -> Result<(usize, usize), ConfigError> {
    let pixels = config.optional_size("image_size")?.unwrap_or(1024);
    let patch = config.optional_size("patch_size")?.unwrap_or(16);
    if patch <= pixels { Ok((pixels, patch)) } else { Err(config.wrong("patch_size", format!("at most {pixels}"))) }
}

fn backbone(config: &Config) -> Result<PlainSpec, ModelError> {
    let width = config.optional_size("hidden_size")?.unwrap_or(768);
    let heads = config.optional_size("num_attention_heads")?.unwrap_or(12);
    if !width.is_multiple_of(heads) {
        return Err(config.wrong("num_attention_heads", format!("a divisor of {width}")).into());
    }
    let (pixels, patch) = image_size(config)?;
    let window = match config.optional_integer("window_size")? {
        None => Some(14),
        Some(0) => None,
        Some(_) => Some(config.size("window_size")?),
    };
    let whole =
        if config.has("global_attn_indexes") { config.places("global_attn_indexes")? } else { vec![2, 5, 8, 11] };
    let distance = if config.truth_or("use_rel_pos", true)? { DistanceSpec::Vectors } else { DistanceSpec::None };
    let qkv_bias = config.truth_or("qkv_bias", true)?;
    let attention = |layer: usize| WindowAttentionSpec {
        heads,
        window: window.filter(|_| !whole.contains(&layer)).unwrap_or(pixels / patch),
        qkv_bias,
        joined: true,
        distance,
    };
    let inner = match config.optional_size("mlp_dim")? {
        Some(inner) => inner,
        None => (width as f64 * config.optional_number("mlp_ratio")?.unwrap_or(4.0)) as usize,
    };
    Ok(PlainSpec {
        embed: PatchSpec {
            channels: config.optional_size("num_channels")?.unwrap_or(3),
            image: ImageSize::Fixed([pixels; 2]),
            patch: [patch; 2],
            width,
            bias: true,
            patch_norm: None,
            mask: false,
            class: false,
            positions: config.truth_or("use_abs_pos", true)?,
            norm: None,
        },
        layers: (0..layers(config, "num_hidden_layers", 12)?).map(attention).collect(),
        mlp: MlpSpec::plain(inner, activation(config, "hidden_act", "gelu")?),
        norm: NormSpec::layer(config.optional_number("layer_norm_eps")?.unwrap_or(1e-6)),
        neck: config.optional_size("output_channels")?.unwrap_or(256),
    })
}
