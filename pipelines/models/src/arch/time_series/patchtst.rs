//! PatchTST (`transformers/models/patchtst`; <https://arxiv.org/abs/2211.14730>).

use crate::ModelError;
use crate::arch::decoder::{activation, layers};
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, no_such_head};
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::time_series::{
    DistributionSpec, HiddenPatchesSpec, ScalingSpec, SeriesHead, SeriesLayerSpec, SeriesNormSpec, SeriesPatchesSpec,
    SeriesPool, TimeSeriesSpec,
};
use crate::spec::{AttentionSpec, MlpSpec, NormSpec, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::EncoderOnly,
    hugging_face: HuggingFace { model_type: "patchtst", classes: CLASSES, spec, stack: STACK, heads: HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "PatchTSTModel", head: HeadKind::States, base: "" },
    Class { name: "PatchTSTForPretraining", head: HeadKind::Pretraining, base: "model." },
    Class { name: "PatchTSTForClassification", head: HeadKind::SequenceLabels, base: "model." },
    Class { name: "PatchTSTForRegression", head: HeadKind::Numbers, base: "model." },
    Class { name: "PatchTSTForPrediction", head: HeadKind::Forecast, base: "model." },
];

const STACK: &[Rule] = &[
    Rule::new("embed", "encoder.embedder.input_embedding"),
    Rule::new("embed.{}", "encoder.embedder.input_embedding.{}"),
    Rule::new("first", "encoder.positional_encoder.cls_token"),
    Rule::new("positions", "encoder.positional_encoder.position_enc"),
    Rule::new("layers.{}.attn.q", "encoder.layers.{}.self_attn.q_proj"),
    Rule::new("layers.{}.attn.k", "encoder.layers.{}.self_attn.k_proj"),
    Rule::new("layers.{}.attn.v", "encoder.layers.{}.self_attn.v_proj"),
    Rule::new("layers.{}.attn.out", "encoder.layers.{}.self_attn.out_proj"),
    Rule::new("layers.{}.attn_norm.", "encoder.layers.{}.norm_sublayer1.batchnorm."),
    Rule::new("layers.{}.attn_norm.", "encoder.layers.{}.norm_sublayer1."),
    Rule::new("layers.{}.channels_norm.", "encoder.layers.{}.norm_sublayer2.batchnorm."),
    Rule::new("layers.{}.channels_norm.", "encoder.layers.{}.norm_sublayer2."),
    Rule::new("layers.{}.mlp_norm.", "encoder.layers.{}.norm_sublayer3.batchnorm."),
    Rule::new("layers.{}.mlp_norm.", "encoder.layers.{}.norm_sublayer3."),
    Rule::new("layers.{}.mlp.up", "encoder.layers.{}.ff.0"),
    Rule::new("layers.{}.mlp.down", "encoder.layers.{}.ff.3"),
];

const HEADS: &[Rule] = &[
    Rule::new("head.patches", "head.linear"),
    Rule::new("head.labels", "head.linear"),
    Rule::new("head.numbers", "head.projection"),
    Rule::new("head.numbers.{}", "head.projection.proj.{}"),
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let or = |key: &str, default: usize| Ok::<_, ModelError>(config.optional_size(key)?.unwrap_or(default));
    let (length, channels) = (or("context_length", 32)?, or("num_input_channels", 1)?);
    let (hidden, heads) = (or("d_model", 128)?, or("num_attention_heads", 4)?);
    if !hidden.is_multiple_of(heads) {
        return Err(config.wrong("num_attention_heads", format!("a divisor of {hidden}")).into());
    }
    let (patch, stride) = (or("patch_length", 1)?, or("patch_stride", 1)?);
    if patch >= length {
        return Err(config.wrong("patch_length", format!("less than the {length} of context_length")).into());
    }
    let patches = SeriesPatchesSpec { count: (length - patch) / stride + 1, length: patch, stride };
    let eps = config.optional_number("norm_eps")?.unwrap_or(1e-5);
    let mlp = MlpSpec {
        bias: config.truth_or("bias", true)?,
        ..MlpSpec::plain(or("ffn_dim", 512)?, activation(config, "activation_function", "gelu")?)
    };
    let layer = SeriesLayerSpec {
        attention: AttentionSpec::plain(heads, heads, hidden / heads).with_biases(),
        across_channels: config.truth_or("channel_attention", false)?,
        mlp,
        norm: match config.optional_text("norm_type")?.as_deref() {
            None | Some("batchnorm") => SeriesNormSpec::Batch { eps: eps as f32 },
            Some("layernorm") => SeriesNormSpec::Layer(NormSpec::layer(eps)),
            Some(_) => return Err(config.wrong("norm_type", "batchnorm or layernorm").into()),
        },
        norm_before: config.truth_or("pre_norm", true)?,
    };
    let count = if config.has("num_hidden_layers") { layers(config, "num_hidden_layers")? } else { 3 };
    let first = config.truth_or("use_cls_token", false)?;
    let hides = match kind {
        HeadKind::Pretraining => true,
        HeadKind::States => config.truth_or("do_mask_input", false)?,
        _ => false,
    };
    let hidden_patches = if hides { hidden_patches(config, patches.count)? } else { None };
    Ok(Spec::TimeSeries(Box::new(TimeSeriesSpec {
        length,
        channels,
        scaling: scaling(config)?,
        patches,
        hidden_patches,
        hidden,
        shared_embedding: config.truth_or("share_embedding", true)?,
        first,
        layers: vec![layer; count],
        head: head(config, kind, first)?,
    })))
}

/// The scaler's parameters are attributes that a configuration may have.
fn scaling(config: &Config) -> Result<ScalingSpec, ModelError> {
    let number = |key: &str| Ok::<_, ModelError>(config.optional_number(key)?.map(|number| number as f32));
    if config.optional_integer("scaling_dim")?.is_some_and(|dimension| dimension != 1) {
        return Err(config.wrong("scaling_dim", "1").into());
    }
    if !config.truth_or("keepdim", true)? {
        return Err(config.wrong("keepdim", "true").into());
    }
    let mean =
        || Ok(ScalingSpec::Mean { least: number("minimum_scale")?.unwrap_or(1e-10), unseen: number("default_scale")? });
    let deviation = || Ok(ScalingSpec::Deviation { least: number("minimum_scale")?.unwrap_or(1e-5) });
    match config.truth_or("scaling", false) {
        Ok(true) => mean(),
        Ok(false) if config.has("scaling") || config.is_null("scaling") => Ok(ScalingSpec::None),
        Ok(false) => deviation(),
        Err(_) => match config.text("scaling")?.as_str() {
            "mean" => mean(),
            "std" => deviation(),
            _ => Err(config.wrong("scaling", "mean, std, true, false or null").into()),
        },
    }
}

/// Patches that pretraining hides, where they are no matter of chance.
fn hidden_patches(config: &Config, patches: usize) -> Result<Option<HiddenPatchesSpec>, ModelError> {
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
                Ok(Some(HiddenPatchesSpec { last, seen: config.places("unmasked_channel_indices")?, value }))
            }
            _ => {
                let expected = format!("one number below {patches}, as the reference chooses among several by chance");
                Err(config.wrong("num_forecast_mask_patches", expected).into())
            }
        },
        Some(_) => Err(config.wrong("mask_type", "random or forecast").into()),
    }
}

fn head(config: &Config, kind: HeadKind, first: bool) -> Result<SeriesHead, ModelError> {
    let or = |key: &str, default: usize| Ok::<_, ModelError>(config.optional_size(key)?.unwrap_or(default));
    let pool = || {
        Ok::<_, ModelError>(match config.optional_text("pooling_type")?.as_deref() {
            _ if first => SeriesPool::First,
            Some("mean") => SeriesPool::Mean,
            Some("max") => SeriesPool::Largest,
            None if !config.is_null("pooling_type") => SeriesPool::Mean,
            None if kind == HeadKind::Forecast => SeriesPool::All,
            _ => return Err(config.wrong("pooling_type", "mean or max, or null to forecast").into()),
        })
    };
    Ok(match kind {
        HeadKind::States => SeriesHead::States,
        HeadKind::Pretraining => SeriesHead::Patches,
        HeadKind::SequenceLabels => SeriesHead::Labels { labels: or("num_targets", 1)?, pool: pool()? },
        HeadKind::Numbers => {
            let range = match config.has("output_range") {
                true => Some(<[f64; 2]>::try_from(config.numbers("output_range", 2)?)),
                false => None,
            };
            let range = range.transpose().map_err(|_| config.wrong("output_range", "two numbers"))?;
            let range = range.map(|range| range.map(|end| end as f32));
            SeriesHead::Numbers { numbers: or("num_targets", 1)?, pool: pool()?, told: told(config)?, range }
        }
        HeadKind::Forecast => {
            if !config.truth_or("share_projection", true)? {
                let expected = "true, as the reference fails where channels have heads of their own";
                return Err(config.wrong("share_projection", expected).into());
            }
            SeriesHead::Forecast { moments: or("prediction_length", 24)?, pool: pool()?, told: told(config)? }
        }
        _ => return Err(no_such_head(kind)),
    })
}

/// What tells a number: itself, where that is what training compared.
fn told(config: &Config) -> Result<DistributionSpec, ModelError> {
    if matches!(config.optional_text("loss")?.as_deref(), None | Some("mse")) {
        return Ok(DistributionSpec::Point);
    }
    match config.optional_text("distribution_output")?.as_deref() {
        None | Some("student_t") => Ok(DistributionSpec::StudentT),
        Some("normal") => Ok(DistributionSpec::Normal),
        Some("negative_binomial") => Ok(DistributionSpec::NegativeBinomial),
        Some(_) => Err(config.wrong("distribution_output", "student_t, normal or negative_binomial").into()),
    }
}
