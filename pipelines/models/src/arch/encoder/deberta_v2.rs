//! DeBERTa's second version (`transformers/models/deberta_v2`; <https://arxiv.org/abs/2006.03654>).

use super::encoder_head;
use crate::ModelError;
use crate::arch::decoder::{activation, layers};
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::{Config, ConfigError};
use crate::rules::Rule;
use crate::spec::encoder::{EncoderSpec, TokensSpec, Whole};
use crate::spec::{
    AttentionSpec, BiasSpec, DistancesSpec, EmbedSpec, FfnSpec, LayerSpec, LogitsSpec, MixerSpec, MlpSpec, NgramSpec,
    NormSpec, NormsSpec, PositionSpec, ProjectedSpec, ProjectionSpec, RelativeSpec, ResidualSpec, Spec, StackSpec,
    TypeSpec,
};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::EncoderOnly,
    hugging_face: HuggingFace { model_type: "deberta-v2", classes: CLASSES, spec, stack: STACK, heads: HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "DebertaV2Model", head: HeadKind::States, base: "" },
    Class { name: "DebertaV2ForMaskedLM", head: HeadKind::MaskedToken, base: "deberta." },
    Class { name: "DebertaV2ForSequenceClassification", head: HeadKind::SequenceLabels, base: "deberta." },
    Class { name: "DebertaV2ForMultipleChoice", head: HeadKind::Choice, base: "deberta." },
    Class { name: "DebertaV2ForTokenClassification", head: HeadKind::TokenLabels, base: "deberta." },
    Class { name: "DebertaV2ForQuestionAnswering", head: HeadKind::Span, base: "deberta." },
];

const STACK: &[Rule] = &[
    Rule::new("embed", "embeddings.word_embeddings"),
    Rule::new("positions", "embeddings.position_embeddings"),
    Rule::new("types", "embeddings.token_type_embeddings"),
    Rule::new("embed_projection", "embeddings.embed_proj"),
    Rule::new("embed_norm", "embeddings.LayerNorm"),
    Rule::new("distances", "encoder.rel_embeddings"),
    Rule::new("distances_norm", "encoder.LayerNorm"),
    Rule::new("ngrams.conv", "encoder.conv.conv"),
    Rule::new("ngrams.norm", "encoder.conv.LayerNorm"),
    Rule::new("layers.{}.attn.q", "encoder.layer.{}.attention.self.query_proj"),
    Rule::new("layers.{}.attn.k", "encoder.layer.{}.attention.self.key_proj"),
    Rule::new("layers.{}.attn.v", "encoder.layer.{}.attention.self.value_proj"),
    Rule::new("layers.{}.attn.distance_q", "encoder.layer.{}.attention.self.pos_query_proj"),
    Rule::new("layers.{}.attn.distance_k", "encoder.layer.{}.attention.self.pos_key_proj"),
    Rule::new("layers.{}.attn.out", "encoder.layer.{}.attention.output.dense"),
    Rule::new("layers.{}.attn_sum_norm", "encoder.layer.{}.attention.output.LayerNorm"),
    Rule::new("layers.{}.mlp.up", "encoder.layer.{}.intermediate.dense"),
    Rule::new("layers.{}.mlp.down", "encoder.layer.{}.output.dense"),
    Rule::new("layers.{}.mlp_sum_norm", "encoder.layer.{}.output.LayerNorm"),
];

/// The head of hidden tokens has had two names.
const HEADS: &[Rule] = &[
    Rule::new("head.transform", "cls.predictions.transform.dense"),
    Rule::new("head.transform", "lm_predictions.lm_head.dense"),
    Rule::new("head.transform_norm", "cls.predictions.transform.LayerNorm"),
    Rule::new("head.transform_norm", "lm_predictions.lm_head.LayerNorm"),
    Rule::new("head.next_token.bias", "cls.predictions.bias"),
    Rule::new("head.next_token.bias", "lm_predictions.lm_head.bias"),
    Rule::new("head.next_token", "cls.predictions.decoder"),
    Rule::new("head.dense", "pooler.dense"),
    Rule::new("head.labels", "classifier"),
    Rule::new("head.token_labels", "classifier"),
    Rule::new("head.span", "qa_outputs"),
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let stack = stack(config)?;
    // The newer head has no matrix of its own in any case.
    let tied = config.truth_or("tie_word_embeddings", true)? || !config.truth_or("legacy", true)?;
    let logits = LogitsSpec { bias: true, ..LogitsSpec::plain(tied) };
    let transform = Some((activation(config, "hidden_act", "gelu")?, norm(config)?));
    if config.optional_size("pooler_hidden_size")?.is_some_and(|size| size != stack.hidden) {
        return Err(config.wrong("pooler_hidden_size", format!("the hidden_size of {}", stack.hidden)).into());
    }
    let whole = Whole::Dense(activation(config, "pooler_hidden_act", "gelu")?);
    let head = encoder_head(config, kind, whole, TokensSpec { logits, transform })?;
    Ok(Spec::Encoder(Box::new(EncoderSpec { stack, pooler: None, head })))
}

fn norm(config: &Config) -> Result<NormSpec, ConfigError> {
    Ok(NormSpec::layer(config.optional_number("layer_norm_eps")?.unwrap_or(1e-7)))
}

/// A size that is left out by any number below 1 too.
fn above_zero(config: &Config, key: &str) -> Result<Option<usize>, ConfigError> {
    match config.optional_integer(key)? {
        Some(1..) => config.optional_size(key),
        _ => Ok(None),
    }
}

/// What a list of words holds: a list, or a text with bars between them.
fn words(config: &Config, key: &str) -> Result<Vec<String>, ConfigError> {
    if config.is_list(key) {
        return config.texts(key);
    }
    let text = config.optional_text(key)?.unwrap_or_default();
    Ok(text.to_lowercase().split('|').map(|word| word.trim().to_owned()).collect())
}

fn stack(config: &Config) -> Result<StackSpec, ModelError> {
    let hidden = config.size("hidden_size")?;
    let norm = norm(config)?;
    let rows = config.optional_size("max_position_embeddings")?.unwrap_or(512);
    let layer = LayerSpec {
        mixer: MixerSpec::Attention(attention(config, hidden)?),
        cross: None,
        ffn: FfnSpec::Dense(MlpSpec::plain(
            config.size("intermediate_size")?,
            activation(config, "hidden_act", "gelu")?,
        )),
        norms: NormsSpec::after(norm),
        residual: ResidualSpec::Sequential,
        residual_scale: 1.0,
    };
    let learned = config.truth_or("position_biased_input", true)?;
    let positions = PositionSpec::Learned { rows, first: 0, padding: None };
    let width = config.optional_size("embedding_size")?.unwrap_or(hidden);
    let embed = EmbedSpec {
        positions: if learned { positions } else { PositionSpec::None },
        types: above_zero(config, "type_vocab_size")?.map_or(TypeSpec::None, TypeSpec::Table),
        norm: Some(norm),
        projection: ProjectionSpec::BeforeNorm,
        blank_padding: true,
        ngrams: ngrams(config, hidden, norm)?,
        ..EmbedSpec::plain(config.size("vocab_size")?, width)
    };
    let relative = config.truth_or("relative_attention", false)?;
    Ok(StackSpec {
        hidden,
        embed,
        causal: false,
        ropes: Vec::new(),
        bias: if relative { BiasSpec::Vectors(distances(config, rows, norm)?) } else { BiasSpec::None },
        layers: vec![layer; layers(config, "num_hidden_layers")?],
        final_norm: None,
    })
}

/// Scores are sums of up to three products, and scaled by how many there may be.
fn attention(config: &Config, hidden: usize) -> Result<AttentionSpec, ConfigError> {
    let heads = config.size("num_attention_heads")?;
    if !hidden.is_multiple_of(heads) {
        return Err(config.wrong("num_attention_heads", format!("a divisor of {hidden}")));
    }
    let head = hidden / heads;
    if config.optional_size("attention_head_size")?.is_some_and(|size| size != head) {
        return Err(
            config.wrong("attention_head_size", format!("{head}, so that {heads} heads are as wide as a state"))
        );
    }
    let kinds = words(config, "pos_att_type")?;
    let [of_queries, of_keys] = ["c2p", "p2c"].map(|kind| kinds.iter().any(|found| found == kind));
    let shared = config.truth_or("share_att_key", false)?;
    let made = if shared { ProjectedSpec::AsTokens } else { ProjectedSpec::Apart { hidden } };
    let part = |wanted: bool| if wanted { made } else { ProjectedSpec::No };
    let relative = RelativeSpec::Shared { keys: part(of_queries), queries: part(of_keys) };
    let products = 1 + usize::from(of_queries) + usize::from(of_keys);
    Ok(AttentionSpec {
        scale: 1.0 / ((head * products) as f32).sqrt(),
        relative: config.truth_or("relative_attention", false)?.then_some(relative),
        blind_padding: true,
        ..AttentionSpec::plain(heads, heads, head).with_biases()
    })
}

fn distances(config: &Config, rows: usize, norm: NormSpec) -> Result<DistancesSpec, ConfigError> {
    let largest = above_zero(config, "max_relative_positions")?.unwrap_or(rows);
    let buckets = above_zero(config, "position_buckets")?;
    if buckets.is_some_and(|buckets| buckets < 2) {
        return Err(config.wrong("position_buckets", "at least 2"));
    }
    let normed = words(config, "norm_rel_ebd")?.iter().any(|word| word == "layer_norm");
    Ok(DistancesSpec {
        reach: buckets.unwrap_or(largest),
        largest: buckets.is_some().then_some(largest),
        norm: normed.then_some(norm),
    })
}

fn ngrams(config: &Config, hidden: usize, norm: NormSpec) -> Result<Option<NgramSpec>, ModelError> {
    let Some(taps) = above_zero(config, "conv_kernel_size")? else { return Ok(None) };
    let groups = config.optional_size("conv_groups")?.unwrap_or(1);
    if !hidden.is_multiple_of(groups) {
        return Err(config.wrong("conv_groups", format!("a divisor of {hidden}")).into());
    }
    if taps.is_multiple_of(2) {
        return Err(config.wrong("conv_kernel_size", "an odd number").into());
    }
    Ok(Some(NgramSpec { taps, groups, activation: activation(config, "conv_act", "tanh")?, norm }))
}
