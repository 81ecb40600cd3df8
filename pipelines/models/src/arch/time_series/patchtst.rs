//! PatchTST (`transformers/models/patchtst`; <https://arxiv.org/abs/2211.14730>).

use super::{by_mean, hidden_patches, range, scaling, sizes, told};
use crate::ModelError;
use crate::arch::decoder::{activation, layers};
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, no_such_head};
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::time_series::{
    SeriesAttentionSpec, SeriesHead, SeriesLayerSpec, SeriesNormSpec, SeriesPool, TimeSeriesSpec,
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
    let (length, channels, patches) = sizes(config, 1)?;
    let (hidden, heads) = (or("d_model", 128)?, or("num_attention_heads", 4)?);
    if !hidden.is_multiple_of(heads) {
        return Err(config.wrong("num_attention_heads", format!("a divisor of {hidden}")).into());
    }
    let eps = config.optional_number("norm_eps")?.unwrap_or(1e-5);
    let mlp = MlpSpec {
        bias: config.truth_or("bias", true)?,
        ..MlpSpec::plain(or("ffn_dim", 512)?, activation(config, "activation_function", "gelu")?)
    };
    let layer = SeriesLayerSpec::Attention(SeriesAttentionSpec {
        attention: AttentionSpec::plain(heads, heads, hidden / heads).with_biases(),
        across_channels: config.truth_or("channel_attention", false)?,
        mlp,
        norm: match config.optional_text("norm_type")?.as_deref() {
            None | Some("batchnorm") => SeriesNormSpec::Batch { eps: eps as f32 },
            Some("layernorm") => SeriesNormSpec::Layer(NormSpec::layer(eps)),
            Some(_) => return Err(config.wrong("norm_type", "batchnorm or layernorm").into()),
        },
        norm_before: config.truth_or("pre_norm", true)?,
    });
    let count = if config.has("num_hidden_layers") { layers(config, "num_hidden_layers")? } else { 3 };
    let first = config.truth_or("use_cls_token", false)?;
    let hides = match kind {
        HeadKind::Pretraining => true,
        HeadKind::States => config.truth_or("do_mask_input", false)?,
        _ => false,
    };
    let hidden_patches = if hides { hidden_patches(config, channels, patches.count)? } else { None };
    Ok(Spec::TimeSeries(Box::new(TimeSeriesSpec {
        length,
        channels,
        scaling: scaling(config, by_mean)?,
        patches,
        observed: Some("past_observed_mask"),
        hidden_patches,
        hidden,
        shared_embedding: config.truth_or("share_embedding", true)?,
        positions: true,
        first,
        layers: vec![layer; count],
        told_scale: false,
        head: head(config, kind, first)?,
        answer: match kind {
            HeadKind::Pretraining => "prediction_output",
            HeadKind::SequenceLabels => "prediction_logits",
            HeadKind::Numbers => "regression_outputs",
            HeadKind::Forecast => "prediction_outputs",
            _ => "last_hidden_state",
        },
        states: false,
    })))
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
        HeadKind::SequenceLabels => SeriesHead::Labels { labels: or("num_targets", 1)?, pool: pool()?, range: None },
        HeadKind::Numbers => SeriesHead::Numbers {
            numbers: or("num_targets", 1)?,
            pool: pool()?,
            told: told(config)?,
            range: range(config)?,
        },
        HeadKind::Forecast => {
            if !config.truth_or("share_projection", true)? {
                let expected = "true, as the reference fails where channels have heads of their own";
                return Err(config.wrong("share_projection", expected).into());
            }
            SeriesHead::Forecast {
                moments: or("prediction_length", 24)?,
                pool: pool()?,
                told: told(config)?,
                channels: None,
                scaled_logits: false,
            }
        }
        _ => return Err(no_such_head(kind)),
    })
}
