//! `ResNet` (`transformers/models/resnet`; <https://arxiv.org/abs/1512.03385>).

use super::Heads;
use crate::ModelError;
use crate::arch::decoder::activation;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, ImageHead, unsupported};
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::vision::{BackboneSpec, PoolOf, PoolSpec, ResidualBlock, ResidualNetSpec, StageSpec, StatesShape};
use crate::spec::{Activation, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::Vision,
    hugging_face: HuggingFace { model_type: "resnet", classes: CLASSES, spec, stack: STACK, heads: HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "ResNetForImageClassification", head: HeadKind::Image(ImageHead::Labels), base: "resnet." },
    Class { name: "ResNetModel", head: HeadKind::States, base: "" },
    Class { name: "ResNetBackbone", head: HeadKind::Image(ImageHead::Maps), base: "" },
];

const STACK: &[Rule] = &[
    Rule::new("stem.conv", "embedder.embedder.convolution"),
    Rule::new("stem.norm.", "embedder.embedder.normalization."),
    Rule::new("stages.{}.blocks.{}.convs.{}.conv", "encoder.stages.{}.layers.{}.layer.{}.convolution"),
    Rule::new("stages.{}.blocks.{}.convs.{}.norm.", "encoder.stages.{}.layers.{}.layer.{}.normalization."),
    Rule::new("stages.{}.blocks.{}.shortcut.conv", "encoder.stages.{}.layers.{}.shortcut.convolution"),
    Rule::new("stages.{}.blocks.{}.shortcut.norm.", "encoder.stages.{}.layers.{}.shortcut.normalization."),
];

const HEADS: &[Rule] = &[Rule::new("head.labels", "classifier.1")];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let backbone = backbone(config)?;
    let pool = PoolSpec::plain(PoolOf::Places);
    let stages = Some((None, backbone.stages.len()));
    let heads = Heads { states: (Some(pool.clone()), StatesShape::Maps), labels: pool, side: None, stages };
    heads.model(config, kind, BackboneSpec::Residual(backbone))
}

/// The backbone of that configuration, also as a part of another model.
pub(in crate::arch) fn backbone(config: &Config) -> Result<ResidualNetSpec, ModelError> {
    let widths = config.optional_sizes("hidden_sizes")?.unwrap_or_else(|| vec![256, 512, 1024, 2048]);
    let depths = config.optional_sizes("depths")?.unwrap_or_else(|| vec![3, 4, 6, 3]);
    if widths.len() != depths.len() {
        return Err(config.wrong("hidden_sizes", format!("{} sizes", depths.len())).into());
    }
    let kind = config.optional_text("layer_type")?.unwrap_or_else(|| "bottleneck".into());
    let block = match kind.as_str() {
        "basic" => ResidualBlock::Basic,
        "bottleneck" => ResidualBlock::Bottleneck { halved_early: config.truth_or("downsample_in_bottleneck", false)? },
        _ => return Err(unsupported("the layer_type", kind, vec!["basic", "bottleneck"])),
    };
    let stage = |(&width, &blocks): (&usize, &usize)| StageSpec { width, blocks };
    Ok(ResidualNetSpec {
        channels: config.optional_size("num_channels")?.unwrap_or(3),
        stem: config.optional_size("embedding_size")?.unwrap_or(64),
        stages: widths.iter().zip(&depths).map(stage).collect(),
        halved_first: config.truth_or("downsample_in_first_stage", false)?,
        stride_max: None,
        block,
        activation: activation(config, "hidden_act", "relu")?,
    })
}

/// The backbone that timm knows by a name, also with the tag of its weights behind it (`timm/models/resnet.py`).
pub(in crate::arch) fn timm(name: &str, channels: usize) -> Result<ResidualNetSpec, ModelError> {
    let (basic, narrow) = (ResidualBlock::Basic, [64, 128, 256, 512]);
    let (bottleneck, wide) = (ResidualBlock::Bottleneck { halved_early: false }, [256, 512, 1024, 2048]);
    let (block, widths, depths) = match name.split_once('.').map_or(name, |(name, _)| name) {
        "resnet18" => (basic, narrow, [2, 2, 2, 2]),
        "resnet34" => (basic, narrow, [3, 4, 6, 3]),
        "resnet50" => (bottleneck, wide, [3, 4, 6, 3]),
        "resnet101" => (bottleneck, wide, [3, 4, 23, 3]),
        "resnet152" => (bottleneck, wide, [3, 8, 36, 3]),
        _ => {
            let supported = vec!["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"];
            return Err(unsupported("the timm backbone", name.to_owned(), supported));
        }
    };
    Ok(ResidualNetSpec {
        channels,
        stem: 64,
        stages: widths.into_iter().zip(depths).map(|(width, blocks)| StageSpec { width, blocks }).collect(),
        halved_first: false,
        stride_max: None,
        block,
        activation: Activation::Relu,
    })
}
