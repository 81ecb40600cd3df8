//! `ConvNeXt` (`transformers/models/convnext`; <https://arxiv.org/abs/2201.03545>).

use super::Heads;
use crate::ModelError;
use crate::arch::decoder::activation;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, ImageHead};
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::vision::{
    BackboneSpec, DepthwiseSpec, ImageSize, PatchSpec, PoolOf, PoolSpec, StageSpec, StatesShape,
};
use crate::spec::{NormSpec, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::Vision,
    hugging_face: HuggingFace { model_type: "convnext", classes: CLASSES, spec, stack: STACK, heads: HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "ConvNextForImageClassification", head: HeadKind::Image(ImageHead::Labels), base: "convnext." },
    Class { name: "ConvNextModel", head: HeadKind::States, base: "" },
    Class { name: "ConvNextBackbone", head: HeadKind::Image(ImageHead::Maps), base: "" },
];

const STACK: &[Rule] = &[
    Rule::new("patches", "embeddings.patch_embeddings"),
    Rule::new("patch_norm", "embeddings.layernorm"),
    Rule::new("stages.{}.halved_norm", "encoder.stages.{}.downsampling_layer.0"),
    Rule::new("stages.{}.halved", "encoder.stages.{}.downsampling_layer.1"),
    Rule::new("stages.{}.blocks.{}.conv", "encoder.stages.{}.layers.{}.dwconv"),
    Rule::new("stages.{}.blocks.{}.norm", "encoder.stages.{}.layers.{}.layernorm"),
    Rule::new("stages.{}.blocks.{}.up", "encoder.stages.{}.layers.{}.pwconv1"),
    Rule::new("stages.{}.blocks.{}.down", "encoder.stages.{}.layers.{}.pwconv2"),
    Rule::new("stages.{}.blocks.{}.scale", "encoder.stages.{}.layers.{}.layer_scale_parameter"),
    Rule::new("pool_norm", "layernorm"),
    Rule::new("stage_norms.0", "hidden_states_norms.stem"),
    Rule::new("stage_norms.{}", "hidden_states_norms.stage{}"),
];

const HEADS: &[Rule] = &[Rule::new("head.labels", "classifier")];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let widths = config.optional_sizes("hidden_sizes")?.unwrap_or_else(|| vec![96, 192, 384, 768]);
    let depths = config.optional_sizes("depths")?.unwrap_or_else(|| vec![3, 3, 9, 3]);
    let count = config.optional_size("num_stages")?.unwrap_or(4);
    if widths.len() < count || depths.len() < count {
        return Err(config.wrong("hidden_sizes", format!("{count} sizes, and as many depths")).into());
    }
    let stem_norm = NormSpec::layer(1e-6);
    let embed = PatchSpec {
        channels: config.optional_size("num_channels")?.unwrap_or(3),
        image: ImageSize::Cut,
        patch: config.optional_area("patch_size")?.unwrap_or([4; 2]),
        width: widths[0],
        bias: true,
        patch_norm: Some(stem_norm),
        mask: false,
        class: false,
        positions: false,
        norm: None,
    };
    let stage = |(&width, &blocks): (&usize, &usize)| StageSpec { width, blocks };
    let backbone = DepthwiseSpec {
        embed,
        stages: widths.iter().zip(&depths).take(count).map(stage).collect(),
        between: stem_norm,
        norm: stem_norm,
        activation: activation(config, "hidden_act", "gelu")?,
        scaled: config.optional_number("layer_scale_init_value")?.unwrap_or(1e-6) > 0.0,
        response_norm: false,
    };
    let eps = config.optional_number("layer_norm_eps")?.unwrap_or(1e-12);
    let pool = PoolSpec { of: PoolOf::Places, norm: Some(NormSpec::layer(eps)), dense: None };
    let stages = Some((Some(stem_norm), depths.len()));
    let heads = Heads { states: (Some(pool.clone()), StatesShape::Map), labels: pool, side: None, stages };
    heads.model(config, kind, BackboneSpec::Depthwise(backbone))
}
