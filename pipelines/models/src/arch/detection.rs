//! Model types of the family that finds objects, one file each, and what their configurations share.

pub mod detr;

use crate::ModelError;
use crate::arch::unsupported;
use crate::arch::vision::{resnet, stages};
use crate::config::{Config, ConfigError};
use crate::spec::AttentionSpec;
use crate::spec::detection::PlaceSpec;
use crate::spec::vision::BackboneSpec;

/// What sees the image, and the stages whose maps are used.
fn backbone(config: &Config) -> Result<(BackboneSpec, Vec<usize>), ModelError> {
    if config.truth_or("use_timm_backbone", true)? {
        let supported = vec!["false: backbones of the library's own"];
        return Err(unsupported("use_timm_backbone", "true".into(), supported));
    }
    let section = config.section("backbone_config")?.unwrap_or_default();
    let kind = section.optional_text("model_type")?.unwrap_or_else(|| "resnet".into());
    if kind != "resnet" {
        return Err(unsupported("the backbone", kind, vec!["resnet"]));
    }
    let backbone = resnet::backbone(&section)?;
    let stages = stages(&section, backbone.stages.len())?;
    Ok((BackboneSpec::Residual(backbone), stages))
}

/// What says where places are; `shift` is added to the numbers of rows where they become waves.
fn places(config: &Config, shift: f32) -> Result<PlaceSpec, ModelError> {
    let kind = config.optional_text("position_embedding_type")?.unwrap_or_else(|| "sine".into());
    match kind.as_str() {
        "sine" => Ok(PlaceSpec::Waves { shift }),
        "learned" => Ok(PlaceSpec::Learned),
        _ => Err(unsupported("the position_embedding_type", kind, vec!["sine", "learned"])),
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
