//! PatchTSMixer (`transformers/models/patchtsmixer`; <https://arxiv.org/abs/2306.09364>).

use super::{by_deviation, hidden_patches, range, scaling, sizes, told};
use crate::ModelError;
use crate::arch::decoder::layers;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, no_such_head};
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::time_series::{
    ScalingSpec, SeriesHead, SeriesLayerSpec, SeriesMixerSpec, SeriesNormSpec, SeriesPool, TimeSeriesSpec,
};
use crate::spec::{AttentionSpec, NormSpec, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::EncoderOnly,
    hugging_face: HuggingFace { model_type: "patchtsmixer", classes: CLASSES, spec, stack: STACK, heads: HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "PatchTSMixerModel", head: HeadKind::States, base: "" },
    Class { name: "PatchTSMixerForPretraining", head: HeadKind::Pretraining, base: "model." },
    Class { name: "PatchTSMixerForTimeSeriesClassification", head: HeadKind::SequenceLabels, base: "model." },
    Class { name: "PatchTSMixerForRegression", head: HeadKind::Numbers, base: "model." },
    Class { name: "PatchTSMixerForPrediction", head: HeadKind::Forecast, base: "model." },
];

const STACK: &[Rule] = &[
    Rule::new("embed", "encoder.patcher"),
    Rule::new("positions", "encoder.positional_encoder.position_enc"),
    Rule::new(
        "layers.{}.channels.norm.",
        "encoder.mlp_mixer_encoder.mixers.{}.channel_feature_mixer.norm.norm.batchnorm.",
    ),
    Rule::new("layers.{}.channels.norm.", "encoder.mlp_mixer_encoder.mixers.{}.channel_feature_mixer.norm.norm."),
    Rule::new("layers.{}.channels.mlp.up", "encoder.mlp_mixer_encoder.mixers.{}.channel_feature_mixer.mlp.fc1"),
    Rule::new("layers.{}.channels.mlp.down", "encoder.mlp_mixer_encoder.mixers.{}.channel_feature_mixer.mlp.fc2"),
    Rule::new(
        "layers.{}.channels.gate",
        "encoder.mlp_mixer_encoder.mixers.{}.channel_feature_mixer.gating_block.attn_layer",
    ),
    Rule::new("layers.{}.patches.norm.", "encoder.mlp_mixer_encoder.mixers.{}.patch_mixer.norm.norm.batchnorm."),
    Rule::new("layers.{}.patches.norm.", "encoder.mlp_mixer_encoder.mixers.{}.patch_mixer.norm.norm."),
    Rule::new("layers.{}.patches.mlp.up", "encoder.mlp_mixer_encoder.mixers.{}.patch_mixer.mlp.fc1"),
    Rule::new("layers.{}.patches.mlp.down", "encoder.mlp_mixer_encoder.mixers.{}.patch_mixer.mlp.fc2"),
    Rule::new("layers.{}.patches.gate", "encoder.mlp_mixer_encoder.mixers.{}.patch_mixer.gating_block.attn_layer"),
    Rule::new("layers.{}.attn.q", "encoder.mlp_mixer_encoder.mixers.{}.patch_mixer.self_attn_layer.q_proj"),
    Rule::new("layers.{}.attn.k", "encoder.mlp_mixer_encoder.mixers.{}.patch_mixer.self_attn_layer.k_proj"),
    Rule::new("layers.{}.attn.v", "encoder.mlp_mixer_encoder.mixers.{}.patch_mixer.self_attn_layer.v_proj"),
    Rule::new("layers.{}.attn.out", "encoder.mlp_mixer_encoder.mixers.{}.patch_mixer.self_attn_layer.out_proj"),
    Rule::new("layers.{}.attn_norm.", "encoder.mlp_mixer_encoder.mixers.{}.patch_mixer.norm_attn.norm.batchnorm."),
    Rule::new("layers.{}.attn_norm.", "encoder.mlp_mixer_encoder.mixers.{}.patch_mixer.norm_attn.norm."),
    Rule::new("layers.{}.elements.norm.", "encoder.mlp_mixer_encoder.mixers.{}.feature_mixer.norm.norm.batchnorm."),
    Rule::new("layers.{}.elements.norm.", "encoder.mlp_mixer_encoder.mixers.{}.feature_mixer.norm.norm."),
    Rule::new("layers.{}.elements.mlp.up", "encoder.mlp_mixer_encoder.mixers.{}.feature_mixer.mlp.fc1"),
    Rule::new("layers.{}.elements.mlp.down", "encoder.mlp_mixer_encoder.mixers.{}.feature_mixer.mlp.fc2"),
    Rule::new("layers.{}.elements.gate", "encoder.mlp_mixer_encoder.mixers.{}.feature_mixer.gating_block.attn_layer"),
];

const HEADS: &[Rule] = &[
    Rule::new("head.patches", "head.base_pt_block"),
    Rule::new("head.labels", "head.projection"),
    Rule::new("head.numbers", "head.projection"),
    Rule::new("head.numbers", "head.base_forecast_block"),
    Rule::new("head.numbers.{}", "head.projection.proj.{}"),
    Rule::new("head.numbers.{}", "head.base_forecast_block.proj.{}"),
    Rule::new("scale.up", "inject_scale.map_scale_expansion"),
    Rule::new("scale.down", "inject_scale.map_scale_compression"),
    Rule::new("scaled.up", "inject_scale.inverse_trans_expansion"),
    Rule::new("scaled.down", "inject_scale.inverse_trans_compression"),
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let or = |key: &str, default: usize| Ok::<_, ModelError>(config.optional_size(key)?.unwrap_or(default));
    let (length, channels, patches) = sizes(config, 8)?;
    let (hidden, heads) = (or("d_model", 8)?, or("self_attn_heads", 1)?);
    if !hidden.is_multiple_of(heads) {
        return Err(config.wrong("self_attn_heads", format!("a divisor of {hidden}")).into());
    }
    let eps = config.optional_number("norm_eps")?.unwrap_or(1e-5);
    let norm = config.optional_text("norm_mlp")?.unwrap_or_else(|| "LayerNorm".into()).to_lowercase();
    let attention = AttentionSpec::plain(heads, heads, hidden / heads).with_biases();
    let layer = SeriesLayerSpec::Mixer(SeriesMixerSpec {
        norm: match norm.as_str() {
            norm if norm.contains("batch") => SeriesNormSpec::Batch { eps: eps as f32 },
            "layernorm" => SeriesNormSpec::Layer(NormSpec::layer(eps)),
            _ => return Err(config.wrong("norm_mlp", "LayerNorm or BatchNorm").into()),
        },
        growth: or("expansion_factor", 2)?,
        gated: config.truth_or("gated_attn", true)?,
        across_channels: match config.optional_text("mode")?.as_deref() {
            None | Some("common_channel") => false,
            Some("mix_channel") => true,
            Some(_) => return Err(config.wrong("mode", "common_channel or mix_channel").into()),
        },
        attention: config.truth_or("self_attn", false)?.then_some(attention),
    });
    let count = if config.has("num_layers") { layers(config, "num_layers")? } else { 3 };
    let scaling = scaling(config, by_deviation)?;
    let whole = matches!(kind, HeadKind::SequenceLabels | HeadKind::Numbers);
    let hides = kind == HeadKind::Pretraining;
    Ok(Spec::TimeSeries(Box::new(TimeSeriesSpec {
        length,
        channels,
        scaling,
        patches,
        observed: (!whole).then_some("observed_mask"),
        hidden_patches: if hides { hidden_patches(config, channels, patches.count)? } else { None },
        hidden,
        shared_embedding: true,
        positions: config.truth_or("use_positional_encoding", false)?,
        first: false,
        layers: vec![layer; count],
        told_scale: whole && scaling != ScalingSpec::None,
        head: head(config, kind, channels)?,
        answer: match kind {
            HeadKind::States => "last_hidden_state",
            HeadKind::Numbers => "regression_outputs",
            _ => "prediction_outputs",
        },
        states: kind != HeadKind::States,
    })))
}

fn head(config: &Config, kind: HeadKind, channels: usize) -> Result<SeriesHead, ModelError> {
    let or = |key: &str, default: usize| Ok::<_, ModelError>(config.optional_size(key)?.unwrap_or(default));
    let pool = || {
        Ok::<_, ModelError>(match config.optional_text("head_aggregation")?.as_deref() {
            Some("use_last") => SeriesPool::Last,
            Some("max_pool") => SeriesPool::Largest,
            Some("avg_pool") => SeriesPool::Mean,
            None if config.is_null("head_aggregation") => SeriesPool::Elements,
            None => SeriesPool::Largest,
            Some(_) => return Err(config.wrong("head_aggregation", "use_last, max_pool, avg_pool or null").into()),
        })
    };
    Ok(match kind {
        HeadKind::States => SeriesHead::States,
        HeadKind::Pretraining => SeriesHead::Patches,
        HeadKind::SequenceLabels => {
            SeriesHead::Labels { labels: or("num_targets", 3)?, pool: pool()?, range: range(config)? }
        }
        HeadKind::Numbers => {
            let (numbers, told, range) = (or("num_targets", 3)?, told(config)?, range(config)?);
            SeriesHead::Numbers { numbers, pool: pool()?, told, range }
        }
        HeadKind::Forecast => {
            let mut picked = config.places("prediction_channel_indices")?;
            picked.sort_unstable();
            if picked.iter().any(|&channel| channel >= channels) {
                return Err(config.wrong("prediction_channel_indices", format!("numbers below {channels}")).into());
            }
            SeriesHead::Forecast {
                moments: or("prediction_length", 16)?,
                pool: SeriesPool::All,
                told: told(config)?,
                channels: config.has("prediction_channel_indices").then_some(picked),
                scaled_logits: true,
            }
        }
        _ => return Err(no_such_head(kind)),
    })
}
