//! Mistral (`transformers/models/mistral`; <https://arxiv.org/abs/2310.06825>): Llama's layout, with a window.
//!
//! GGUF files call it llama.

use super::{Uniform, activation, heads, layers, llama, rope_scaling};
use crate::ModelError;
use crate::arch::{Arch, HuggingFace};
use crate::config::Config;
use crate::spec::{AttentionSpec, DecoderSpec, MlpSpec, RopeSpec, RopeStyle};

/// The model type.
pub const ARCH: Arch = Arch {
    hugging_face: HuggingFace { model_type: "mistral", class: "MistralForCausalLM", spec, rules: llama::RULES },
    gguf: None,
};

fn spec(config: &Config) -> Result<DecoderSpec, ModelError> {
    let hidden = config.size("hidden_size")?;
    let keys = ["num_attention_heads", "num_key_value_heads", "head_dim"];
    let (heads, kv_heads, head) = heads(config, keys, hidden)?;
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
        rope: RopeSpec {
            base: config.optional_number("rope_theta")?.unwrap_or(10_000.0),
            rotated: head,
            style: RopeStyle::Halves,
            scaling: rope_scaling(config)?,
        },
        tied: config.truth_or("tie_word_embeddings", false)?,
    }
    .decoder())
}
