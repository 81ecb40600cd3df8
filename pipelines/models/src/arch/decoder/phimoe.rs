//! Phi-MoE (`transformers/models/phimoe`; <https://arxiv.org/abs/2404.14219>): Mixtral with norms of layers, and experts
//! chosen one after the other.

use super::llama::{self, LAYOUT, Layout};
use super::mixtral;
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, rope};
use crate::config::Config;
use crate::spec::{FfnSpec, MoeSpec, NormSpec, RouterScores, RouterSpec, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::MixtureOfExperts,
    hugging_face: HuggingFace {
        model_type: "phimoe",
        classes: CLASSES,
        spec,
        stack: mixtral::STACK,
        heads: llama::HEADS,
    },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "PhimoeForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "PhimoeModel", head: HeadKind::States, base: "" },
    Class { name: "PhimoeForSequenceClassification", head: HeadKind::SequenceLabels, base: "model." },
];

/// Experts of a token; another number in a configuration changes nothing (`sparsemixer`).
const CHOSEN: usize = 2;

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let bias = config.truth_or("attention_bias", false)?;
    let slides = config.truth_or("use_sliding_window", true)? && !config.is_null("use_sliding_window");
    let window = config.optional_size("sliding_window")?.filter(|_| slides);
    let experts = config.optional_size("num_local_experts")?.unwrap_or(16);
    if experts < CHOSEN {
        return Err(config.wrong("num_local_experts", format!("at least {CHOSEN}")).into());
    }
    // Not of training alone: it tells which experts are near enough to count.
    let jitter = config.optional_number("router_jitter_noise")?.unwrap_or(0.01) as f32;
    if jitter < 0.0 {
        return Err(config.wrong("router_jitter_noise", "a number of 0 or more").into());
    }
    let layout = Layout {
        context: 131_072,
        norm_eps: ("rms_norm_eps", 1e-5),
        norm: NormSpec::layer,
        rope_base: 1e6,
        rope_scaling: rope::amplified,
        logits_bias: Some("lm_head_bias"),
        ..LAYOUT
    };
    llama::like_llama_with(config, kind, layout, |_, attention, mlp| {
        (attention.qkv_bias, attention.out_bias, attention.window) = (bias, bias, window);
        let router = RouterSpec::plain(CHOSEN, RouterScores::SparseMixer { jitter });
        Ok(FfnSpec::Experts(Box::new(MoeSpec { experts, expert: mlp, router, shared: None })))
    })
}
