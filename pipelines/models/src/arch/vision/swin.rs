//! Swin (`transformers/models/swin`; <https://arxiv.org/abs/2103.14030>).

use super::Heads;
use crate::ModelError;
use crate::arch::decoder::activation;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, ImageHead, unsupported};
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::vision::{
    BackboneSpec, ImageSize, PatchSpec, PoolOf, PoolSpec, StatesShape, WindowStageSpec, WindowsSpec,
};
use crate::spec::{MlpSpec, NormSpec, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::Vision,
    hugging_face: HuggingFace { model_type: "swin", classes: CLASSES, spec, stack: STACK, heads: HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "SwinForImageClassification", head: HeadKind::Image(ImageHead::Labels), base: "swin." },
    Class { name: "SwinModel", head: HeadKind::States, base: "" },
    Class { name: "SwinForMaskedImageModeling", head: HeadKind::Image(ImageHead::Pixels), base: "swin." },
    Class { name: "SwinBackbone", head: HeadKind::Image(ImageHead::Maps), base: "" },
];

const STACK: &[Rule] = &[
    Rule::new("patches", "embeddings.patch_embeddings.projection"),
    Rule::new("patch_norm", "embeddings.norm"),
    Rule::new("mask_token", "embeddings.mask_token"),
    Rule::new("stages.{}.blocks.{}.attn_norm", "encoder.layers.{}.blocks.{}.layernorm_before"),
    Rule::new("stages.{}.blocks.{}.attn.q", "encoder.layers.{}.blocks.{}.attention.self.query"),
    Rule::new("stages.{}.blocks.{}.attn.k", "encoder.layers.{}.blocks.{}.attention.self.key"),
    Rule::new("stages.{}.blocks.{}.attn.v", "encoder.layers.{}.blocks.{}.attention.self.value"),
    Rule::new(
        "stages.{}.blocks.{}.attn.distance",
        "encoder.layers.{}.blocks.{}.attention.self.relative_position_bias_table",
    ),
    Rule::new("stages.{}.blocks.{}.attn.out", "encoder.layers.{}.blocks.{}.attention.output.dense"),
    Rule::new("stages.{}.blocks.{}.mlp_norm", "encoder.layers.{}.blocks.{}.layernorm_after"),
    Rule::new("stages.{}.blocks.{}.mlp.up", "encoder.layers.{}.blocks.{}.intermediate.dense"),
    Rule::new("stages.{}.blocks.{}.mlp.down", "encoder.layers.{}.blocks.{}.output.dense"),
    Rule::new("stages.{}.merged_norm", "encoder.layers.{}.downsample.norm"),
    Rule::new("stages.{}.merged", "encoder.layers.{}.downsample.reduction"),
    Rule::new("final_norm", "layernorm"),
    Rule::new("stage_norms.0", "hidden_states_norms.stem"),
    Rule::new("stage_norms.{}", "hidden_states_norms.stage{}"),
];

const HEADS: &[Rule] = &[Rule::new("head.labels", "classifier"), Rule::new("head.pixels", "decoder.0")];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let maps = kind == HeadKind::Image(ImageHead::Maps);
    if config.truth_or("use_absolute_embeddings", false)? {
        // The reference itself cannot: its table has a row more than there are patches.
        let found = config.path("use_absolute_embeddings");
        return Err(unsupported("embeddings of places", found, vec!["windows without them"]));
    }
    let width = config.optional_size("embed_dim")?.unwrap_or(96);
    let depths = config.optional_sizes("depths")?.unwrap_or_else(|| vec![2, 2, 6, 2]);
    let heads = config.optional_sizes("num_heads")?.unwrap_or_else(|| vec![3, 6, 12, 24]);
    let divides = |(stage, &heads): (usize, &usize)| stage < 16 && (width << stage).is_multiple_of(heads);
    if heads.len() != depths.len() || !heads.iter().enumerate().all(divides) {
        return Err(config.wrong("num_heads", "a divisor of each stage's states").into());
    }
    let (ratio, act) = (config.optional_number("mlp_ratio")?.unwrap_or(4.0), activation(config, "hidden_act", "gelu")?);
    let stage = |(number, (&blocks, &heads)): (usize, (&usize, &usize))| WindowStageSpec {
        blocks,
        heads,
        mlp: MlpSpec::plain((ratio * (width << number) as f64) as usize, act),
    };
    let norm = NormSpec::layer(config.optional_number("layer_norm_eps")?.unwrap_or(1e-5));
    let plain = NormSpec::layer(1e-5);
    let backbone = WindowsSpec {
        embed: PatchSpec {
            channels: config.optional_size("num_channels")?.unwrap_or(3),
            image: ImageSize::Padded,
            patch: config.optional_area("patch_size")?.unwrap_or([4; 2]),
            width,
            bias: true,
            patch_norm: Some(plain),
            mask: kind == HeadKind::Image(ImageHead::Pixels),
            class: false,
            positions: false,
            norm: None,
        },
        stages: depths.iter().zip(&heads).enumerate().map(stage).collect(),
        window: config.optional_size("window_size")?.unwrap_or(7),
        always_moved: maps,
        norm,
        merge_norm: plain,
        final_norm: (!maps).then_some(norm),
        qkv_bias: config.truth_or("qkv_bias", true)?,
    };
    let pool = PoolSpec::plain(PoolOf::Places);
    let heads = Heads {
        states: (Some(pool.clone()), StatesShape::Sequence),
        labels: pool,
        side: Some(config.optional_size("encoder_stride")?.unwrap_or(32)),
        stages: Some((Some(plain), depths.len())),
    };
    heads.model(config, kind, BackboneSpec::Windows(backbone))
}
