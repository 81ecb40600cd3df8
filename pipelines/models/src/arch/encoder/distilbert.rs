//! `DistilBERT` (`transformers/models/distilbert`; <https://arxiv.org/abs/1910.01108>).
//!
//! `sinusoidal_pos_embds` says how the table of positions was first filled; checkpoints have the table.

use super::encoder_head;
use crate::ModelError;
use crate::arch::decoder::{activation, layers};
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::encoder::{EncoderSpec, TokensSpec, Whole};
use crate::spec::{
    Activation, AttentionSpec, BiasSpec, EmbedSpec, FfnSpec, LayerSpec, LogitsSpec, MixerSpec, MlpSpec, NormSpec,
    NormsSpec, PositionSpec, ResidualSpec, Spec, StackSpec,
};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::EncoderOnly,
    hugging_face: HuggingFace { model_type: "distilbert", classes: CLASSES, spec, stack: STACK, heads: HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "DistilBertModel", head: HeadKind::States, base: "" },
    Class { name: "DistilBertForMaskedLM", head: HeadKind::MaskedToken, base: "distilbert." },
    Class { name: "DistilBertForSequenceClassification", head: HeadKind::SequenceLabels, base: "distilbert." },
    Class { name: "DistilBertForMultipleChoice", head: HeadKind::Choice, base: "distilbert." },
    Class { name: "DistilBertForTokenClassification", head: HeadKind::TokenLabels, base: "distilbert." },
    Class { name: "DistilBertForQuestionAnswering", head: HeadKind::Span, base: "distilbert." },
];

const STACK: &[Rule] = &[
    Rule::new("embed", "embeddings.word_embeddings"),
    Rule::new("positions", "embeddings.position_embeddings"),
    Rule::new("embed_norm", "embeddings.LayerNorm"),
    Rule::new("layers.{}.attn.q", "transformer.layer.{}.attention.q_lin"),
    Rule::new("layers.{}.attn.k", "transformer.layer.{}.attention.k_lin"),
    Rule::new("layers.{}.attn.v", "transformer.layer.{}.attention.v_lin"),
    Rule::new("layers.{}.attn.out", "transformer.layer.{}.attention.out_lin"),
    Rule::new("layers.{}.attn_sum_norm", "transformer.layer.{}.sa_layer_norm"),
    Rule::new("layers.{}.mlp.up", "transformer.layer.{}.ffn.lin1"),
    Rule::new("layers.{}.mlp.down", "transformer.layer.{}.ffn.lin2"),
    Rule::new("layers.{}.mlp_sum_norm", "transformer.layer.{}.output_layer_norm"),
];

const HEADS: &[Rule] = &[
    Rule::new("head.transform", "vocab_transform"),
    Rule::new("head.transform_norm", "vocab_layer_norm"),
    Rule::new("head.next_token", "vocab_projector"),
    Rule::new("head.dense", "pre_classifier"),
    Rule::new("head.labels", "classifier"),
    Rule::new("head.token_labels", "classifier"),
    Rule::new("head.span", "qa_outputs"),
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let (hidden, heads) = (config.size("dim")?, config.size("n_heads")?);
    if !hidden.is_multiple_of(heads) {
        return Err(config.wrong("n_heads", format!("a divisor of {hidden}")).into());
    }
    let norm = NormSpec::layer(1e-12);
    let activation = activation(config, "activation", "gelu")?;
    let layer = LayerSpec {
        mixer: MixerSpec::Attention(AttentionSpec::plain(heads, heads, hidden / heads).with_biases()),
        cross: None,
        ffn: FfnSpec::Dense(MlpSpec::plain(config.size("hidden_dim")?, activation)),
        norms: NormsSpec::after(norm),
        residual: ResidualSpec::Sequential,
        residual_scale: 1.0,
    };
    let rows = config.optional_size("max_position_embeddings")?.unwrap_or(512);
    let stack = StackSpec {
        hidden,
        embed: EmbedSpec {
            positions: PositionSpec::Learned { rows, first: 0, padding: None },
            norm: Some(norm),
            ..EmbedSpec::plain(config.size("vocab_size")?, hidden)
        },
        causal: false,
        ropes: Vec::new(),
        bias: BiasSpec::None,
        layers: vec![layer; layers(config, "n_layers")?],
        final_norm: None,
    };
    let logits = LogitsSpec { bias: true, ..LogitsSpec::plain(config.truth_or("tie_word_embeddings", true)?) };
    let tokens = TokensSpec { logits, transform: Some((activation, norm)) };
    let head = encoder_head(config, kind, Whole::Dense(Activation::Relu), tokens)?;
    Ok(Spec::Encoder(Box::new(EncoderSpec { stack, pooler: None, head })))
}
