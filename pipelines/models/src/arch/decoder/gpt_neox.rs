//! GPT-NeoX (`transformers/models/gpt_neox`; <https://arxiv.org/abs/2204.06745>).

use super::{Parts, activation, heads, layers, sequential, turned};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, decoder_head, rope};
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::{
    AttentionSpec, BiasSpec, EmbedSpec, LayerSpec, LogitsSpec, MlpSpec, NormSpec, QkvLayout, ResidualSpec, RopeAxes,
    RopeSpec, RopeStyle, Spec,
};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::DecoderOnly,
    hugging_face: HuggingFace { model_type: "gpt_neox", classes: CLASSES, spec, stack: STACK, heads: HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "GPTNeoXForCausalLM", head: HeadKind::NextToken, base: "gpt_neox." },
    Class { name: "GPTNeoXModel", head: HeadKind::States, base: "" },
    Class { name: "GPTNeoXForSequenceClassification", head: HeadKind::SequenceLabels, base: "gpt_neox." },
    Class { name: "GPTNeoXForTokenClassification", head: HeadKind::TokenLabels, base: "gpt_neox." },
    Class { name: "GPTNeoXForQuestionAnswering", head: HeadKind::Span, base: "gpt_neox." },
];

const STACK: &[Rule] = &[
    Rule::new("embed", "embed_in"),
    Rule::new("layers.{}.attn_norm", "layers.{}.input_layernorm"),
    Rule::new("layers.{}.attn.qkv", "layers.{}.attention.query_key_value"),
    Rule::new("layers.{}.attn.out", "layers.{}.attention.dense"),
    Rule::new("layers.{}.mlp_norm", "layers.{}.post_attention_layernorm"),
    Rule::new("layers.{}.mlp.up", "layers.{}.mlp.dense_h_to_4h"),
    Rule::new("layers.{}.mlp.down", "layers.{}.mlp.dense_4h_to_h"),
    Rule::new("final_norm", "final_layer_norm"),
];

const HEADS: &[Rule] = &[
    Rule::new("head.next_token", "embed_out"),
    Rule::new("head.labels", "score"),
    Rule::new("head.token_labels", "classifier"),
    Rule::new("head.span", "qa_outputs"),
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let hidden = config.size("hidden_size")?;
    // As many heads of keys as of queries, which share the elements of a state: no keys say otherwise.
    let (heads, _, head) = heads(config, ["num_attention_heads", "", ""], hidden)?;
    let norm = NormSpec::layer(config.optional_number("layer_norm_eps")?.unwrap_or(1e-5));
    let bias = config.truth_or("attention_bias", true)?;
    let attention = AttentionSpec {
        layout: QkvLayout::Interleaved,
        qkv_bias: bias,
        out_bias: bias,
        rope: Some(0),
        ..AttentionSpec::plain(heads, heads, head)
    };
    let mlp = MlpSpec::plain(config.size("intermediate_size")?, activation(config, "hidden_act", "gelu")?);
    let parallel = config.truth_or("use_parallel_residual", true)?;
    let residual = if parallel { ResidualSpec::Parallel } else { ResidualSpec::Sequential };
    let layer = LayerSpec { residual, ..sequential(norm, attention, mlp) };
    let base = config.optional_number("rotary_emb_base")?.unwrap_or(10_000.0);
    let rotated = turned(config, "rotary_pct", 0.25, head)?;
    let parts = Parts {
        hidden,
        embed: EmbedSpec::plain(config.size("vocab_size")?, hidden),
        layers: vec![layer; layers(config, "num_hidden_layers")?],
        context: config.optional_size("max_position_embeddings")?.unwrap_or(2048),
        ropes: vec![RopeSpec {
            base,
            rotated,
            style: RopeStyle::Halves,
            scaling: rope::scaling(config, base, rotated)?,
            axes: RopeAxes::One,
        }],
        bias: BiasSpec::None,
        final_norm: Some(norm),
    };
    let logits = LogitsSpec::plain(config.truth_or("tie_word_embeddings", false)?);
    Ok(parts.decoder(decoder_head(config, kind, logits)?))
}
