//! Mixtral (`transformers/models/mixtral`; <https://arxiv.org/abs/2401.04088>): Llama's layout, with experts.

use super::{Parts, activation, chosen, heads, layers, llama, sequential};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, decoder_head, rope};
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::{
    AttentionSpec, BiasSpec, EmbedSpec, FfnSpec, LayerSpec, LogitsSpec, MlpSpec, MoeSpec, NormSpec, RopeAxes, RopeSpec,
    RopeStyle, RouterScores, RouterSpec, Spec,
};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::MixtureOfExperts,
    hugging_face: HuggingFace { model_type: "mixtral", classes: CLASSES, spec, stack: STACK, heads: llama::HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "MixtralForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "MixtralModel", head: HeadKind::States, base: "" },
    Class { name: "MixtralForSequenceClassification", head: HeadKind::SequenceLabels, base: "model." },
    Class { name: "MixtralForTokenClassification", head: HeadKind::TokenLabels, base: "model." },
    Class { name: "MixtralForQuestionAnswering", head: HeadKind::Span, base: "model." },
];

/// The names of checkpoints.
pub(super) const STACK: &[Rule] = &[
    Rule::new("embed", "embed_tokens"),
    Rule::new("layers.{}.attn_norm", "layers.{}.input_layernorm"),
    Rule::new("layers.{}.attn.q", "layers.{}.self_attn.q_proj"),
    Rule::new("layers.{}.attn.k", "layers.{}.self_attn.k_proj"),
    Rule::new("layers.{}.attn.v", "layers.{}.self_attn.v_proj"),
    Rule::new("layers.{}.attn.out", "layers.{}.self_attn.o_proj"),
    Rule::new("layers.{}.mlp_norm", "layers.{}.post_attention_layernorm"),
    Rule::new("layers.{}.moe.router", "layers.{}.block_sparse_moe.gate"),
    Rule::new("layers.{}.moe.experts.{}.gate", "layers.{}.block_sparse_moe.experts.{}.w1"),
    Rule::new("layers.{}.moe.experts.{}.up", "layers.{}.block_sparse_moe.experts.{}.w3"),
    Rule::new("layers.{}.moe.experts.{}.down", "layers.{}.block_sparse_moe.experts.{}.w2"),
    Rule::new("final_norm", "norm"),
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let hidden = config.size("hidden_size")?;
    let keys = ["num_attention_heads", "num_key_value_heads", "head_dim"];
    let (heads, kv_heads, head) = heads(config, keys, hidden)?;
    let norm = NormSpec::rms(config.optional_number("rms_norm_eps")?.unwrap_or(1e-5));
    let attention = AttentionSpec {
        rope: Some(0),
        window: config.optional_size("sliding_window")?,
        ..AttentionSpec::plain(heads, kv_heads, head)
    };
    let expert = MlpSpec::gated(config.size("intermediate_size")?, activation(config, "hidden_act", "silu")?);
    let experts = config.optional_size("num_local_experts")?.unwrap_or(8);
    let moe = MoeSpec {
        experts,
        expert: expert.clone(),
        router: RouterSpec {
            normalised: true,
            ..RouterSpec::plain(chosen(config, Some(2), experts)?, RouterScores::Softmax)
        },
        shared: None,
    };
    let layer = LayerSpec { ffn: FfnSpec::Experts(Box::new(moe)), ..sequential(norm, attention, expert) };
    let base = config.optional_number("rope_theta")?.unwrap_or(1e6);
    let parts = Parts {
        hidden,
        embed: EmbedSpec::plain(config.size("vocab_size")?, hidden),
        layers: vec![layer; layers(config, "num_hidden_layers")?],
        context: config.optional_size("max_position_embeddings")?.unwrap_or(131_072),
        ropes: vec![RopeSpec {
            base,
            rotated: head,
            style: RopeStyle::Halves,
            scaling: rope::scaling(config, base, head)?,
            axes: RopeAxes::One,
        }],
        bias: BiasSpec::None,
        final_norm: Some(norm),
    };
    let logits = LogitsSpec::plain(config.truth_or("tie_word_embeddings", false)?);
    Ok(parts.decoder(decoder_head(config, kind, logits)?))
}
