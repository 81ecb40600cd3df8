//! BERT (`transformers/models/bert`; <https://arxiv.org/abs/1810.04805>).

use super::encoder_head;
use crate::ModelError;
use crate::arch::decoder::{activation, layers};
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::encoder::{EncoderHead, EncoderSpec, TokensSpec, Whole};
use crate::spec::{
    Activation, AttentionSpec, BiasSpec, EmbedSpec, FfnSpec, LayerSpec, LogitsSpec, MixerSpec, MlpSpec, NormSpec,
    NormsSpec, PositionSpec, RelativeSpec, ResidualSpec, Spec, StackSpec, TypeSpec,
};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::EncoderOnly,
    hugging_face: HuggingFace { model_type: "bert", classes: CLASSES, spec, stack: STACK, heads: HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "BertModel", head: HeadKind::States, base: "" },
    Class { name: "BertForMaskedLM", head: HeadKind::MaskedToken, base: "bert." },
    Class { name: "BertLMHeadModel", head: HeadKind::NextToken, base: "bert." },
    Class { name: "BertForPreTraining", head: HeadKind::Pretraining, base: "bert." },
    Class { name: "BertForNextSentencePrediction", head: HeadKind::NextSentence, base: "bert." },
    Class { name: "BertForSequenceClassification", head: HeadKind::SequenceLabels, base: "bert." },
    Class { name: "BertForMultipleChoice", head: HeadKind::Choice, base: "bert." },
    Class { name: "BertForTokenClassification", head: HeadKind::TokenLabels, base: "bert." },
    Class { name: "BertForQuestionAnswering", head: HeadKind::Span, base: "bert." },
];

/// The names of everything that has BERT's layout.
pub(super) const STACK: &[Rule] = &[
    Rule::new("embed", "embeddings.word_embeddings"),
    Rule::new("positions", "embeddings.position_embeddings"),
    Rule::new("types", "embeddings.token_type_embeddings"),
    Rule::new("embed_norm", "embeddings.LayerNorm"),
    Rule::new("layers.{}.attn.q", "encoder.layer.{}.attention.self.query"),
    Rule::new("layers.{}.attn.k", "encoder.layer.{}.attention.self.key"),
    Rule::new("layers.{}.attn.v", "encoder.layer.{}.attention.self.value"),
    Rule::new("layers.{}.attn.distance", "encoder.layer.{}.attention.self.distance_embedding"),
    Rule::new("layers.{}.attn.out", "encoder.layer.{}.attention.output.dense"),
    Rule::new("layers.{}.attn_sum_norm", "encoder.layer.{}.attention.output.LayerNorm"),
    Rule::new("layers.{}.cross.q", "encoder.layer.{}.crossattention.self.query"),
    Rule::new("layers.{}.cross.k", "encoder.layer.{}.crossattention.self.key"),
    Rule::new("layers.{}.cross.v", "encoder.layer.{}.crossattention.self.value"),
    Rule::new("layers.{}.cross.out", "encoder.layer.{}.crossattention.output.dense"),
    Rule::new("layers.{}.cross_sum_norm", "encoder.layer.{}.crossattention.output.LayerNorm"),
    Rule::new("layers.{}.mlp.up", "encoder.layer.{}.intermediate.dense"),
    Rule::new("layers.{}.mlp.down", "encoder.layer.{}.output.dense"),
    Rule::new("layers.{}.mlp_sum_norm", "encoder.layer.{}.output.LayerNorm"),
    Rule::new("pooler", "pooler.dense"),
];

/// The names of its heads.
pub(super) const HEADS: &[Rule] = &[
    Rule::new("head.transform", "cls.predictions.transform.dense"),
    Rule::new("head.transform_norm", "cls.predictions.transform.LayerNorm"),
    Rule::new("head.next_token.bias", "cls.predictions.bias"),
    Rule::new("head.next_token", "cls.predictions.decoder"),
    Rule::new("head.next_sentence", "cls.seq_relationship"),
    Rule::new("head.labels", "classifier"),
    Rule::new("head.token_labels", "classifier"),
    Rule::new("head.span", "qa_outputs"),
];

/// What the configurations of everything that has BERT's layout and heads say.
pub(super) fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let logits = LogitsSpec { bias: true, ..LogitsSpec::plain(config.truth_or("tie_word_embeddings", true)?) };
    let transform = Some((activation(config, "hidden_act", "gelu")?, norm(config)?));
    let head = encoder_head(config, kind, Whole::Pooled, TokensSpec { logits, transform })?;
    let without = matches!(kind, HeadKind::MaskedToken | HeadKind::NextToken | HeadKind::TokenLabels | HeadKind::Span);
    let pooler = (!without).then_some(Activation::Tanh);
    Ok(Spec::Encoder(Box::new(EncoderSpec { stack: stack(config)?, pooler, head })))
}

/// The norms of everything that has BERT's layout.
pub(super) fn norm(config: &Config) -> Result<NormSpec, ModelError> {
    Ok(NormSpec::layer(config.optional_number("layer_norm_eps")?.unwrap_or(1e-12)))
}

/// A stack with the keys of BERT's configuration.
pub(super) fn stack(config: &Config) -> Result<StackSpec, ModelError> {
    let hidden = config.size("hidden_size")?;
    let heads = config.size("num_attention_heads")?;
    let rows = config.optional_size("max_position_embeddings")?.unwrap_or(512);
    let kind = config.optional_text("position_embedding_type")?.unwrap_or_else(|| "absolute".into());
    let relative = match kind.as_str() {
        "absolute" => None,
        "relative_key" => Some(RelativeSpec::Own { reach: rows, of_keys: false }),
        "relative_key_query" => Some(RelativeSpec::Own { reach: rows, of_keys: true }),
        _ => {
            let supported = "absolute, relative_key, relative_key_query".into();
            let what = config.path("position_embedding_type");
            return Err(ModelError::Unsupported { what, found: kind, supported });
        }
    };
    let positions = match relative {
        None => PositionSpec::Learned { rows, first: 0, padding: None },
        Some(_) => PositionSpec::None,
    };
    let norm = norm(config)?;
    let causal = config.truth_or("is_decoder", false)?;
    let across = config.truth_or("add_cross_attention", false)?;
    if across && !causal {
        return Err(config.wrong("add_cross_attention", "false, as is_decoder is").into());
    }
    let attention = AttentionSpec::plain(heads, heads, hidden / heads).with_biases();
    let layer = LayerSpec {
        mixer: MixerSpec::Attention(AttentionSpec { relative, ..attention.clone() }),
        cross: across.then_some(attention),
        ffn: FfnSpec::Dense(MlpSpec::plain(
            config.size("intermediate_size")?,
            activation(config, "hidden_act", "gelu")?,
        )),
        norms: NormsSpec { cross_sum: across.then_some(norm), ..NormsSpec::after(norm) },
        residual: ResidualSpec::Sequential,
        residual_scale: 1.0,
    };
    Ok(StackSpec {
        hidden,
        embed: EmbedSpec {
            positions,
            types: TypeSpec::Table(config.optional_size("type_vocab_size")?.unwrap_or(2)),
            norm: Some(norm),
            ..EmbedSpec::plain(config.size("vocab_size")?, hidden)
        },
        causal,
        ropes: Vec::new(),
        bias: BiasSpec::None,
        layers: vec![layer; layers(config, "num_hidden_layers")?],
        final_norm: None,
    })
}

/// An encoder whose first token's state stands for the sequence.
pub(super) fn first(config: &Config, width: Option<usize>) -> Result<Spec, ModelError> {
    let head = EncoderHead::First(width);
    Ok(Spec::Encoder(Box::new(EncoderSpec { stack: stack(config)?, pooler: None, head })))
}
