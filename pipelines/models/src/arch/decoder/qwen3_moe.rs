//! Qwen3-MoE (`transformers/models/qwen3_moe`; <https://arxiv.org/abs/2505.09388>): Qwen3 with experts in some layers.

use super::llama::{self, LAYOUT, Layout};
use super::qwen3::QK_NORMS;
use super::{chosen, deepseek_v3, qwen2};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::rules::{Rule, joined};
use crate::spec::{FfnSpec, MlpSpec, MoeSpec, NormSpec, QkNormSpec, RouterScores, RouterSpec, SharedExpertSpec, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::MixtureOfExperts,
    hugging_face: HuggingFace { model_type: "qwen3_moe", classes: CLASSES, spec, stack: STACK, heads: llama::HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "Qwen3MoeForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "Qwen3MoeModel", head: HeadKind::States, base: "" },
    Class { name: "Qwen3MoeForSequenceClassification", head: HeadKind::SequenceLabels, base: "model." },
    Class { name: "Qwen3MoeForTokenClassification", head: HeadKind::TokenLabels, base: "model." },
    Class { name: "Qwen3MoeForQuestionAnswering", head: HeadKind::Span, base: "transformer." },
];

/// Llama's names with experts.
pub(super) const SPARSE: &[Rule] =
    &joined::<{ deepseek_v3::EXPERTS.len() + llama::STACK.len() }>(deepseek_v3::EXPERTS, llama::STACK);

/// The same with norms of queries and keys.
pub(super) const STACK: &[Rule] = &joined::<{ QK_NORMS.len() + SPARSE.len() }>(QK_NORMS, SPARSE);

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    // Unlike in Qwen3, all layers have the window or none.
    let window = qwen2::window(config)?;
    let bias = config.truth_or("attention_bias", false)?;
    let norm = NormSpec::rms(config.optional_number("rms_norm_eps")?.unwrap_or(1e-6));
    let sparse = sparse(config)?;
    llama::like_llama_with(config, kind, Layout { context: 32_768, ..LAYOUT }, |number, attention, mlp| {
        (attention.qkv_bias, attention.out_bias) = (bias, bias);
        attention.qk_norm = Some(QkNormSpec { norm, whole: false });
        attention.window = window;
        if !sparse(number) {
            return Ok(FfnSpec::Dense(mlp));
        }
        let inner = config.optional_size("moe_intermediate_size")?.unwrap_or(768);
        mixture(config, [128, 8], MlpSpec { inner, ..mlp }, None)
    })
}

/// Which layers have experts: each of so many, but for those that are named.
pub(super) fn sparse(config: &Config) -> Result<impl Fn(usize) -> bool, ModelError> {
    let step = config.optional_size("decoder_sparse_step")?.unwrap_or(1);
    let dense = config.optional_integers("mlp_only_layers")?.unwrap_or_default();
    let some = config.optional_count("num_experts")? != Some(0);
    Ok(move |number: usize| some && (number + 1).is_multiple_of(step) && !dense.contains(&(number as i64)))
}

/// Experts of that make, with how many there are and how many are chosen where the configuration says nothing.
pub(super) fn mixture(
    config: &Config,
    [experts, per_token]: [usize; 2],
    expert: MlpSpec,
    shared: Option<SharedExpertSpec>,
) -> Result<FfnSpec, ModelError> {
    let experts = config.optional_size("num_experts")?.unwrap_or(experts);
    let router = RouterSpec {
        normalised: config.truth_or("norm_topk_prob", false)?,
        ..RouterSpec::plain(chosen(config, Some(per_token), experts)?, RouterScores::Softmax)
    };
    Ok(FfnSpec::Experts(Box::new(MoeSpec { experts, expert, router, shared })))
}
