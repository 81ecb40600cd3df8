//! The `rope_scaling` of configurations (`modeling_rope_utils.py`).

use crate::ModelError;
use crate::config::{Config, ConfigError};
use crate::spec::{RopeAxes, RopeScaling};

/// How the `rotated` elements of a head have their frequencies stretched; `base` is that of the frequencies.
pub(super) fn scaling(config: &Config, base: f64, rotated: usize) -> Result<RopeScaling, ModelError> {
    let Some(section) = config.section("rope_scaling")? else { return Ok(RopeScaling::None) };
    stretched(config, &section, base, rotated, config.optional_size(ORIGINAL_CONTEXT)?)
}

/// The same, with factors of sines and cosines that stand beside it (`PhimoeRotaryEmbedding`).
pub(super) fn amplified(config: &Config, base: f64, rotated: usize) -> Result<RopeScaling, ModelError> {
    let Some(section) = config.section("rope_scaling")? else { return Ok(RopeScaling::None) };
    let original_context = section.size(ORIGINAL_CONTEXT)?;
    let original = config.optional_size(ORIGINAL_CONTEXT)?.unwrap_or(original_context);
    let amplitudes = [section.number("short_mscale")?, section.number("long_mscale")?];
    let scaling = Box::new(stretched(config, &section, base, rotated, Some(original))?);
    Ok(RopeScaling::Amplified { scaling, original_context, amplitudes })
}

fn stretched(
    config: &Config,
    section: &Config,
    base: f64,
    rotated: usize,
    original: Option<usize>,
) -> Result<RopeScaling, ModelError> {
    let key = if section.has("rope_type") { "rope_type" } else { "type" };
    let kind = section.text(key)?;
    Ok(match kind.as_str() {
        // What is called so has several axes, and is not stretched.
        "mrope" if section.has(SECTIONS) => RopeScaling::None,
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: section.number("factor")? },
        "dynamic" if rotated > 2 => {
            RopeScaling::Dynamic { factor: section.number("factor")?, context: config.number(CONTEXT)? }
        }
        "dynamic" => return Err(section.wrong(key, "another scaling for heads that turn 2 elements").into()),
        "yarn" => yarn(config, section, base, rotated)?,
        "longrope" => long(config, section, rotated, original)?,
        "llama3" => llama3(config, section)?,
        _ => {
            let supported = "default, linear, dynamic, yarn, longrope, llama3".into();
            return Err(ModelError::Unsupported { what: section.path(key), found: kind, supported });
        }
    })
}

/// The axes that the frequencies of `rotated` elements belong to, where positions are places.
pub(super) fn axes(config: &Config, rotated: usize) -> Result<RopeAxes, ModelError> {
    let section = config.section("rope_scaling")?.unwrap_or_default();
    let sections = section.places(SECTIONS)?;
    if sections.len() != 3 || sections.iter().sum::<usize>() != rotated / 2 {
        return Err(section.wrong(SECTIONS, format!("three sizes that make {} together", rotated / 2)).into());
    }
    Ok(RopeAxes::Split(sections))
}

/// The factor of scores of `width` elements, which YaRN makes larger where `mscale_all_dim` says so
/// (`DeepseekV3Attention`).
pub(super) fn latent_scale(config: &Config, width: usize) -> Result<f32, ModelError> {
    let plain = (width as f64).powf(-0.5);
    let Some(section) = config.section("rope_scaling")? else { return Ok(plain as f32) };
    let weight = section.optional_number("mscale_all_dim")?.unwrap_or(0.0);
    let factor = section.optional_number("factor")?.unwrap_or(1.0);
    let stretched = if weight == 0.0 || factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
    Ok((plain * stretched * stretched) as f32)
}

const SECTIONS: &str = "mrope_section";
const CONTEXT: &str = "max_position_embeddings";
const ORIGINAL_CONTEXT: &str = "original_max_position_embeddings";

/// The `original_max_position_embeddings` of a section, or the context where it says none.
fn original_context(config: &Config, section: &Config) -> Result<f64, ConfigError> {
    section.optional_number(ORIGINAL_CONTEXT)?.map_or_else(|| config.number(CONTEXT), Ok)
}

fn llama3(config: &Config, section: &Config) -> Result<RopeScaling, ConfigError> {
    let (low_turns, high_turns) = (section.number("low_freq_factor")?, section.number("high_freq_factor")?);
    if high_turns <= low_turns {
        return Err(section.wrong("high_freq_factor", "more than low_freq_factor"));
    }
    let (factor, original_context) = (section.number("factor")?, original_context(config, section)?);
    Ok(RopeScaling::Llama3 { factor, low_turns, high_turns, original_context })
}

fn yarn(config: &Config, section: &Config, base: f64, rotated: usize) -> Result<RopeScaling, ConfigError> {
    let factor = section.number("factor")?;
    let positive = |key| Ok::<_, ConfigError>(section.optional_number(key)?.filter(|&number| number != 0.0));
    let stretched = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
    let weights = (positive("mscale")?, positive("mscale_all_dim")?);
    let amplitude = match (section.optional_number("attention_factor")?, weights) {
        (Some(amplitude), _) => amplitude,
        (None, (Some(weight), Some(weight_all))) => stretched(weight) / stretched(weight_all),
        (None, _) => stretched(1.0),
    };
    // The place of the frequency that makes so many turns in the original context.
    let context = original_context(config, section)?;
    let width = rotated as f64;
    let place = |turns: f64| width * (context / (turns * std::f64::consts::TAU)).ln() / (2.0 * base.ln());
    let first = place(positive("beta_fast")?.unwrap_or(32.0));
    let last = place(positive("beta_slow")?.unwrap_or(1.0));
    let (first, last) = if section.truth_or("truncate", true)? { (first.floor(), last.ceil()) } else { (first, last) };
    Ok(RopeScaling::Yarn { factor, ramp: (first.max(0.0), last.min(width - 1.0)), amplitude })
}

/// The original context, which stands beside the context, outside the section, gives the factor too.
fn long(
    config: &Config,
    section: &Config,
    rotated: usize,
    original: Option<usize>,
) -> Result<RopeScaling, ConfigError> {
    let original_context = original.map_or_else(|| config.size(CONTEXT), Ok)?;
    let amplitude = match (section.optional_number("attention_factor")?, original) {
        (Some(amplitude), _) => amplitude,
        (None, Some(original)) => long_amplitude(config.number(CONTEXT)? / original as f64, original_context),
        (None, None) => long_amplitude(section.number("factor")?, original_context),
    };
    let (short, long) = (section.numbers("short_factor", rotated / 2)?, section.numbers("long_factor", rotated / 2)?);
    Ok(RopeScaling::Long { short, long, original_context, amplitude })
}

fn long_amplitude(factor: f64, original_context: usize) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original_context as f64).ln()).sqrt() }
}
