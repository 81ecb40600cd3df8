//! Llama (`transformers/models/llama`; <https://arxiv.org/abs/2302.13971>), and everything with its weights' layout.

use accel_backends::weights::TensorIndex;

use super::{Uniform, activation, heads, layers};
use crate::ModelError;
use crate::arch::{Arch, Class, Gguf, HeadKind, HuggingFace, rope};
use crate::config::Config;
use crate::rules::{Rule, Rules};
use crate::spec::{Activation, AttentionSpec, DecoderSpec, MlpSpec, RopeScaling, RopeSpec, RopeStyle};

/// The model type.
pub const ARCH: Arch = Arch {
    hugging_face: HuggingFace { model_type: "llama", classes: CLASSES, spec, stack: STACK, heads: HEADS },
    gguf: Some(Gguf {
        architecture: "llama",
        spec: gguf_spec,
        rules: Rules { base: "", stack: GGUF_STACK, heads: GGUF_HEADS },
    }),
};

const CLASSES: &[Class] = &[
    Class { name: "LlamaForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "LlamaModel", head: HeadKind::States, base: "" },
    Class { name: "LlamaForSequenceClassification", head: HeadKind::SequenceLabels, base: "model." },
    Class { name: "LlamaForTokenClassification", head: HeadKind::TokenLabels, base: "model." },
    Class { name: "LlamaForQuestionAnswering", head: HeadKind::Span, base: "transformer." },
];

/// The names of Hugging Face's checkpoints.
pub(super) const STACK: &[Rule] = &[
    Rule { to: "embed", from: "embed_tokens" },
    Rule { to: "layers.{}.attn_norm", from: "layers.{}.input_layernorm" },
    Rule { to: "layers.{}.attn.q", from: "layers.{}.self_attn.q_proj" },
    Rule { to: "layers.{}.attn.k", from: "layers.{}.self_attn.k_proj" },
    Rule { to: "layers.{}.attn.v", from: "layers.{}.self_attn.v_proj" },
    Rule { to: "layers.{}.attn.out", from: "layers.{}.self_attn.o_proj" },
    Rule { to: "layers.{}.mlp_norm", from: "layers.{}.post_attention_layernorm" },
    Rule { to: "layers.{}.mlp.gate", from: "layers.{}.mlp.gate_proj" },
    Rule { to: "layers.{}.mlp.up", from: "layers.{}.mlp.up_proj" },
    Rule { to: "layers.{}.mlp.down", from: "layers.{}.mlp.down_proj" },
    Rule { to: "final_norm", from: "norm" },
];

/// The names of all heads that Hugging Face's generic classes put on a stack (`modeling_layers.py`).
pub(super) const HEADS: &[Rule] = &[
    Rule { to: "head.next_token", from: "lm_head" },
    Rule { to: "head.labels", from: "score" },
    Rule { to: "head.span", from: "qa_outputs" },
];

const GGUF_STACK: &[Rule] = &[
    Rule { to: "embed", from: "token_embd" },
    Rule { to: "layers.{}.attn_norm", from: "blk.{}.attn_norm" },
    Rule { to: "layers.{}.attn.q", from: "blk.{}.attn_q" },
    Rule { to: "layers.{}.attn.k", from: "blk.{}.attn_k" },
    Rule { to: "layers.{}.attn.v", from: "blk.{}.attn_v" },
    Rule { to: "layers.{}.attn.out", from: "blk.{}.attn_output" },
    Rule { to: "layers.{}.mlp_norm", from: "blk.{}.ffn_norm" },
    Rule { to: "layers.{}.mlp.gate", from: "blk.{}.ffn_gate" },
    Rule { to: "layers.{}.mlp.up", from: "blk.{}.ffn_up" },
    Rule { to: "layers.{}.mlp.down", from: "blk.{}.ffn_down" },
    Rule { to: "final_norm", from: "output_norm" },
    Rule { to: "rope.factors", from: "rope_freqs" },
];

const GGUF_HEADS: &[Rule] = &[Rule { to: "head.next_token", from: "output" }];

fn spec(config: &Config) -> Result<DecoderSpec, ModelError> {
    let hidden = config.size("hidden_size")?;
    let keys = ["num_attention_heads", "num_key_value_heads", "head_dim"];
    let (heads, kv_heads, head) = heads(config, keys, hidden)?;
    let base = config.optional_number("rope_theta")?.unwrap_or(10_000.0);
    let attention_bias = config.truth_or("attention_bias", false)?;
    Ok(Uniform {
        vocabulary: config.size("vocab_size")?,
        hidden,
        layers: layers(config, "num_hidden_layers")?,
        context: config.optional_size("max_position_embeddings")?.unwrap_or(2048),
        eps: config.optional_number("rms_norm_eps")?.unwrap_or(1e-6),
        attention: AttentionSpec {
            heads,
            kv_heads,
            head,
            qkv_bias: attention_bias,
            out_bias: attention_bias,
            rope: 0,
            window: None,
        },
        mlp: MlpSpec {
            inner: config.size("intermediate_size")?,
            activation: activation(config, "hidden_act", "silu")?,
            bias: config.truth_or("mlp_bias", false)?,
        },
        rope: RopeSpec { base, rotated: head, style: RopeStyle::Halves, scaling: rope::scaling(config, base, head)? },
        tied: config.truth_or("tie_word_embeddings", false)?,
    }
    .decoder())
}

/// GGUF writers permute queries and keys of this type, so that neighbours turn together.
fn gguf_spec(config: &Config, index: &TensorIndex) -> Result<DecoderSpec, ModelError> {
    if let Some(experts) = config.optional_size("llama.expert_count").ok().flatten() {
        let (what, found) = ("llama.expert_count".to_owned(), experts.to_string());
        return Err(ModelError::Unsupported { what, found, supported: "models without experts".into() });
    }
    let hidden = config.size("llama.embedding_length")?;
    let keys = ["llama.attention.head_count", "llama.attention.head_count_kv", "llama.attention.key_length"];
    let (heads, kv_heads, head) = heads(config, keys, hidden)?;
    if config.optional_size("llama.attention.value_length")?.is_some_and(|value| value != head) {
        return Err(config.wrong("llama.attention.value_length", format!("the {head} of the keys")).into());
    }
    let rotated = config.optional_size("llama.rope.dimension_count")?.unwrap_or(head);
    if rotated > head || !rotated.is_multiple_of(2) {
        return Err(config.wrong("llama.rope.dimension_count", format!("an even number of at most {head}")).into());
    }
    let vocabulary = match (config.optional_size("llama.vocab_size")?, index.get("token_embd.weight")) {
        (Some(vocabulary), _) => vocabulary,
        (None, Some(table)) => table.dims.first().copied().unwrap_or(0),
        (None, None) => return Err(config.wrong("llama.vocab_size", "a positive whole number").into()),
    };
    Ok(Uniform {
        vocabulary,
        hidden,
        layers: layers(config, "llama.block_count")?,
        context: config.size("llama.context_length")?,
        eps: config.number("llama.attention.layer_norm_rms_epsilon")?,
        attention: AttentionSpec {
            heads,
            kv_heads,
            head,
            qkv_bias: index.get("blk.0.attn_q.bias").is_some(),
            out_bias: index.get("blk.0.attn_output.bias").is_some(),
            rope: 0,
            window: None,
        },
        mlp: MlpSpec {
            inner: config.size("llama.feed_forward_length")?,
            activation: Activation::Silu,
            bias: index.get("blk.0.ffn_gate.bias").is_some(),
        },
        rope: RopeSpec {
            base: config.optional_number("llama.rope.freq_base")?.unwrap_or(10_000.0),
            rotated,
            style: RopeStyle::Pairs,
            scaling: gguf_rope_scaling(config, index)?,
        },
        tied: index.get("output.weight").is_none(),
    }
    .decoder())
}

fn gguf_rope_scaling(config: &Config, index: &TensorIndex) -> Result<RopeScaling, ModelError> {
    let key = "llama.rope.scaling.type";
    let kind = config.optional_text(key)?.unwrap_or_else(|| "none".to_owned());
    match kind.as_str() {
        _ if index.get("rope_freqs.weight").is_some() => Ok(RopeScaling::Factors),
        "none" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: config.number("llama.rope.scaling.factor")? }),
        _ => Err(ModelError::Unsupported { what: config.path(key), found: kind, supported: "none, linear".into() }),
    }
}
