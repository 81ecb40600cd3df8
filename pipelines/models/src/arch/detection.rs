//! Model types of the family that finds objects, one file each, and what their configurations share.

pub mod deformable_detr;
pub mod detr;

use crate::ModelError;
use crate::arch::unsupported;
use crate::arch::vision::{resnet, stages};
use crate::config::{Config, ConfigError};
use crate::rules::Rule;
use crate::spec::AttentionSpec;
use crate::spec::detection::PlaceSpec;
use crate::spec::vision::{BackboneSpec, ResidualNetSpec};

/// The weights of a `ResNet` as a part, by the names of the library's own and by those of timm.
const BACKBONE: &[Rule] = &[
    Rule::new("backbone.stem.conv", "backbone.conv_encoder.model.embedder.embedder.convolution"),
    Rule::new("backbone.stem.norm.", "backbone.conv_encoder.model.embedder.embedder.normalization."),
    Rule::new(
        "backbone.stages.{}.blocks.{}.convs.{}.conv",
        "backbone.conv_encoder.model.encoder.stages.{}.layers.{}.layer.{}.convolution",
    ),
    Rule::new(
        "backbone.stages.{}.blocks.{}.convs.{}.norm.",
        "backbone.conv_encoder.model.encoder.stages.{}.layers.{}.layer.{}.normalization.",
    ),
    Rule::new(
        "backbone.stages.{}.blocks.{}.shortcut.conv",
        "backbone.conv_encoder.model.encoder.stages.{}.layers.{}.shortcut.convolution",
    ),
    Rule::new(
        "backbone.stages.{}.blocks.{}.shortcut.norm.",
        "backbone.conv_encoder.model.encoder.stages.{}.layers.{}.shortcut.normalization.",
    ),
    Rule::new("backbone.stem.conv", "backbone.conv_encoder.model.conv1"),
    Rule::new("backbone.stem.norm.", "backbone.conv_encoder.model.bn1."),
    Rule::new("backbone.stages.0.", "backbone.conv_encoder.model.layer1."),
    Rule::new("backbone.stages.1.", "backbone.conv_encoder.model.layer2."),
    Rule::new("backbone.stages.2.", "backbone.conv_encoder.model.layer3."),
    Rule::new("backbone.stages.3.", "backbone.conv_encoder.model.layer4."),
    Rule::new("*.blocks.{}.convs.0.conv", "*.{}.conv1"),
    Rule::new("*.blocks.{}.convs.0.norm.", "*.{}.bn1."),
    Rule::new("*.blocks.{}.convs.1.conv", "*.{}.conv2"),
    Rule::new("*.blocks.{}.convs.1.norm.", "*.{}.bn2."),
    Rule::new("*.blocks.{}.convs.2.conv", "*.{}.conv3"),
    Rule::new("*.blocks.{}.convs.2.norm.", "*.{}.bn3."),
    Rule::new("*.blocks.{}.shortcut.conv", "*.{}.downsample.0"),
    Rule::new("*.blocks.{}.shortcut.norm.", "*.{}.downsample.1."),
];

/// What sees the image, and the stages whose maps are used; those of timm's backbones where none is named.
fn backbone(config: &Config, timm_stages: &[usize]) -> Result<(BackboneSpec, Vec<usize>), ModelError> {
    let name = config.optional_text("backbone")?;
    if config.truth_or("use_timm_backbone", true)? {
        return timm_backbone(config, &name.unwrap_or_else(|| "resnet50".into()), timm_stages);
    }
    let section = config.section("backbone_config")?;
    if let (None, Some(name)) = (&section, name.filter(|name| name != "resnet50")) {
        let supported = vec!["resnet50", "one that backbone_config describes"];
        return Err(unsupported(&config.path("backbone"), name, supported));
    }
    let section = section.unwrap_or_default();
    let kind = section.optional_text("model_type")?.unwrap_or_else(|| "resnet".into());
    if kind != "resnet" {
        return Err(unsupported(&section.path("model_type"), kind, vec!["resnet"]));
    }
    let backbone = resnet::backbone(&section)?;
    let stages = stages(&section, backbone.stages.len())?;
    Ok((BackboneSpec::Residual(backbone), stages))
}

/// A backbone that timm knows by a name.
fn timm_backbone(config: &Config, name: &str, stages: &[usize]) -> Result<(BackboneSpec, Vec<usize>), ModelError> {
    let options = config.section("backbone_kwargs")?.unwrap_or_default();
    let channels = match options.optional_size("in_chans")? {
        Some(channels) => channels,
        None => config.optional_size("num_channels")?.unwrap_or(3),
    };
    let stages = options.optional_sizes("out_indices")?.unwrap_or_else(|| stages.to_vec());
    // What timm counts as 0 comes before the pooling that the first stage's states here have behind them.
    if stages.is_empty() || stages.iter().any(|&stage| stage > 4) || !stages.is_sorted() {
        return Err(options.wrong("out_indices", "stages from 1 to 4").into());
    }
    const KNOWN: [&str; 3] = ["in_chans", "out_indices", "output_stride"];
    if let Some(key) = options.keys().find(|key| !KNOWN.contains(key)) {
        return Err(unsupported(&config.path("backbone_kwargs"), key.to_owned(), KNOWN.to_vec()));
    }
    let stride_max = match options.optional_size("output_stride")? {
        // timm itself takes no others.
        Some(stride) if ![8, 16, 32].contains(&stride) => {
            return Err(options.wrong("output_stride", "8, 16 or 32").into());
        }
        None if config.truth_or("dilation", false)? => Some(16),
        stride => stride,
    };
    let mut backbone = ResidualNetSpec { stride_max, ..resnet::timm(name, channels)? };
    // timm leaves away what comes after the last stage that is asked for.
    backbone.stages.truncate(stages.last().copied().unwrap_or(0));
    Ok((BackboneSpec::Residual(backbone), stages))
}

/// What says where places are; `shift` is added to the numbers of rows where they become waves.
fn places(config: &Config, shift: f32) -> Result<PlaceSpec, ModelError> {
    let kind = config.optional_text("position_embedding_type")?.unwrap_or_else(|| "sine".into());
    match kind.as_str() {
        "sine" => Ok(PlaceSpec::Waves { shift }),
        "learned" => Ok(PlaceSpec::Learned),
        _ => Err(unsupported(&config.path("position_embedding_type"), kind, vec!["sine", "learned"])),
    }
}

/// Attention with biases everywhere, of heads that the configuration names.
fn attention(config: &Config, key: &str, hidden: usize) -> Result<AttentionSpec, ConfigError> {
    let heads = config.optional_size(key)?.unwrap_or(8);
    if !hidden.is_multiple_of(heads) {
        return Err(config.wrong(key, format!("a divisor of {hidden}")));
    }
    Ok(AttentionSpec::plain(heads, heads, hidden / heads).with_biases())
}
