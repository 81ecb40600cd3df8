//! Qwen2-MoE (`transformers/models/qwen2_moe`; <https://arxiv.org/abs/2407.10671>): Qwen2 with experts in some layers, and
//! among them one for all tokens.

use super::llama::{self, LAYOUT, Layout};
use super::{qwen2, qwen3_moe};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::rules::{Rule, joined};
use crate::spec::{FfnSpec, MlpSpec, SharedExpertSpec, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::MixtureOfExperts,
    hugging_face: HuggingFace { model_type: "qwen2_moe", classes: CLASSES, spec, stack: STACK, heads: llama::HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "Qwen2MoeForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "Qwen2MoeModel", head: HeadKind::States, base: "" },
    Class { name: "Qwen2MoeForSequenceClassification", head: HeadKind::SequenceLabels, base: "model." },
    Class { name: "Qwen2MoeForTokenClassification", head: HeadKind::TokenLabels, base: "model." },
    Class { name: "Qwen2MoeForQuestionAnswering", head: HeadKind::Span, base: "model." },
];

const SHARED: &[Rule] = &[
    Rule::new("layers.{}.moe.shared_gate", "layers.{}.mlp.shared_expert_gate"),
    Rule::new("layers.{}.moe.shared.gate", "layers.{}.mlp.shared_expert.gate_proj"),
    Rule::new("layers.{}.moe.shared.up", "layers.{}.mlp.shared_expert.up_proj"),
    Rule::new("layers.{}.moe.shared.down", "layers.{}.mlp.shared_expert.down_proj"),
];

const STACK: &[Rule] = &joined::<{ SHARED.len() + qwen3_moe::SPARSE.len() }>(SHARED, qwen3_moe::SPARSE);

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    // Unlike in Qwen2, all layers have the window or none.
    let window = qwen2::window(config)?;
    let bias = config.truth_or("qkv_bias", true)?;
    let sparse = qwen3_moe::sparse(config)?;
    llama::like_llama_with(config, kind, Layout { context: 32_768, ..LAYOUT }, |number, attention, mlp| {
        (attention.qkv_bias, attention.window) = (bias, window);
        if !sparse(number) {
            return Ok(FfnSpec::Dense(mlp));
        }
        let of_size = |key, default| {
            let inner = config.optional_size(key)?.unwrap_or(default);
            Ok::<_, ModelError>(MlpSpec { inner, ..mlp.clone() })
        };
        let shared = SharedExpertSpec { mlp: of_size("shared_expert_intermediate_size", 5632)?, gated: true };
        qwen3_moe::mixture(config, [60, 4], of_size("moe_intermediate_size", 1408)?, Some(shared))
    })
}
