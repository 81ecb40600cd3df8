//! Models of time series, one file each, and what their configurations share.

pub mod patchtsmixer;
pub mod patchtst;

use crate::ModelError;
use crate::config::Config;
use crate::spec::time_series::{DistributionSpec, HiddenPatchesSpec, ScalingSpec, SeriesPatchesSpec};

/// How series are scaled, whose parameters are attributes that a configuration may have; types differ in what truth is.
fn scaling(
    config: &Config,
    of_true: fn(&Config) -> Result<ScalingSpec, ModelError>,
) -> Result<ScalingSpec, ModelError> {
    if config.optional_integer("scaling_dim")?.is_some_and(|dimension| dimension != 1) {
        return Err(config.wrong("scaling_dim", "1").into());
    }
    if !config.truth_or("keepdim", true)? {
        return Err(config.wrong("keepdim", "true").into());
    }
    match config.truth_or("scaling", false) {
        Ok(true) => of_true(config),
        Ok(false) if config.has("scaling") || config.is_null("scaling") => Ok(ScalingSpec::None),
        Ok(false) => by_deviation(config),
        Err(_) => match config.text("scaling")?.as_str() {
            "mean" => by_mean(config),
            "std" => by_deviation(config),
            _ => Err(config.wrong("scaling", "mean, std, true, false or null").into()),
        },
    }
}

fn by_mean(config: &Config) -> Result<ScalingSpec, ModelError> {
    let least = config.optional_number("minimum_scale")?.unwrap_or(1e-10) as f32;
    Ok(ScalingSpec::Mean { least, unseen: config.optional_number("default_scale")?.map(|scale| scale as f32) })
}

fn by_deviation(config: &Config) -> Result<ScalingSpec, ModelError> {
    Ok(ScalingSpec::Deviation { least: config.optional_number("minimum_scale")?.unwrap_or(1e-5) as f32 })
}

/// Patches that pretraining hides, where they are no matter of chance.
fn hidden_patches(config: &Config, channels: usize, patches: usize) -> Result<Option<HiddenPatchesSpec>, ModelError> {
    match config.optional_text("mask_type")?.as_deref() {
        None | Some("random") => {
            let ratio = config.optional_number("random_mask_ratio")?.unwrap_or(0.5);
            let kept = (patches as f64 * (1.0 - ratio)) as usize;
            if !(0.0..1.0).contains(&ratio) || kept < patches {
                let expected = "0, as the reference hides others by chance, and chance is no input of it";
                return Err(config.wrong("random_mask_ratio", expected).into());
            }
            Ok(None)
        }
        Some("forecast") => match config.optional_sizes("num_forecast_mask_patches")?.unwrap_or_else(|| vec![2])[..] {
            [last] if last < patches => {
                let value = config.optional_number("mask_value")?.unwrap_or(0.0) as f32;
                let seen = config.places("unmasked_channel_indices")?;
                if seen.iter().any(|&channel| channel >= channels) {
                    return Err(config.wrong("unmasked_channel_indices", format!("numbers below {channels}")).into());
                }
                Ok(Some(HiddenPatchesSpec { last, seen, value }))
            }
            _ => {
                let expected = format!("one number below {patches}, as the reference chooses among several by chance");
                Err(config.wrong("num_forecast_mask_patches", expected).into())
            }
        },
        Some(_) => Err(config.wrong("mask_type", "random or forecast").into()),
    }
}

/// Moments, channels and patches of a series; `patch`, the length of a patch and the way to the next by default.
fn sizes(config: &Config, patch: usize) -> Result<(usize, usize, SeriesPatchesSpec), ModelError> {
    let or = |key: &str, default: usize| Ok::<_, ModelError>(config.optional_size(key)?.unwrap_or(default));
    let (length, channels) = (or("context_length", 32)?, or("num_input_channels", 1)?);
    let (patch, stride) = (or("patch_length", patch)?, or("patch_stride", patch)?);
    if patch >= length {
        return Err(config.wrong("patch_length", format!("less than the {length} of context_length")).into());
    }
    Ok((length, channels, SeriesPatchesSpec { count: (length - patch) / stride + 1, length: patch, stride }))
}

/// What numbers lie between, where a configuration says so.
fn range(config: &Config) -> Result<Option<[f32; 2]>, ModelError> {
    if !config.has("output_range") {
        return Ok(None);
    }
    let range = <[f64; 2]>::try_from(config.numbers("output_range", 2)?);
    let range = range.map_err(|_| config.wrong("output_range", "two numbers"))?;
    Ok(Some(range.map(|end| end as f32)))
}

/// What tells a number: itself, where that is what training compared.
fn told(config: &Config) -> Result<DistributionSpec, ModelError> {
    match config.optional_text("loss")?.as_deref() {
        None | Some("mse") => return Ok(DistributionSpec::Point),
        Some("nll") => {}
        Some(_) => return Err(config.wrong("loss", "mse or nll").into()),
    }
    match config.optional_text("distribution_output")?.as_deref() {
        None | Some("student_t") => Ok(DistributionSpec::StudentT),
        Some("normal") => Ok(DistributionSpec::Normal),
        Some("negative_binomial") => Ok(DistributionSpec::NegativeBinomial),
        Some(_) => Err(config.wrong("distribution_output", "student_t, normal or negative_binomial").into()),
    }
}
