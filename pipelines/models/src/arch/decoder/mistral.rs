//! Mistral (`transformers/models/mistral`; <https://arxiv.org/abs/2310.06825>): Llama's layout, with a window.
//!
//! GGUF files call it llama.

use super::{Uniform, activation, heads, layers, llama};
use crate::ModelError;
use crate::arch::{Arch, Class, HeadKind, HuggingFace, rope};
use crate::config::Config;
use crate::spec::{AttentionSpec, DecoderSpec, MlpSpec, RopeSpec, RopeStyle};

/// The model type.
pub const ARCH: Arch = Arch {
    hugging_face: HuggingFace {
        model_type: "mistral",
        classes: CLASSES,
        spec,
        stack: llama::STACK,
        heads: llama::HEADS,
    },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "MistralForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "MistralModel", head: HeadKind::States, base: "" },
    Class { name: "MistralForSequenceClassification", head: HeadKind::SequenceLabels, base: "model." },
    Class { name: "MistralForTokenClassification", head: HeadKind::TokenLabels, base: "model." },
    Class { name: "MistralForQuestionAnswering", head: HeadKind::Span, base: "model." },
];

fn spec(config: &Config) -> Result<DecoderSpec, ModelError> {
    let hidden = config.size("hidden_size")?;
    let keys = ["num_attention_heads", "num_key_value_heads", "head_dim"];
    let (heads, kv_heads, head) = heads(config, keys, hidden)?;
    let base = config.optional_number("rope_theta")?.unwrap_or(10_000.0);
    Ok(Uniform {
        vocabulary: config.size("vocab_size")?,
        hidden,
        layers: layers(config, "num_hidden_layers")?,
        context: config.optional_size("max_position_embeddings")?.unwrap_or(131_072),
        eps: config.optional_number("rms_norm_eps")?.unwrap_or(1e-6),
        attention: AttentionSpec {
            heads,
            kv_heads,
            head,
            qkv_bias: false,
            out_bias: false,
            rope: 0,
            window: config.optional_size("sliding_window")?,
        },
        mlp: MlpSpec {
            inner: config.size("intermediate_size")?,
            activation: activation(config, "hidden_act", "silu")?,
            bias: false,
        },
        rope: RopeSpec { base, rotated: head, style: RopeStyle::Halves, scaling: rope::scaling(config, base, head)? },
        tied: config.truth_or("tie_word_embeddings", false)?,
    }
    .decoder())
}
