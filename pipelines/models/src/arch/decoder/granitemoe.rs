//! Granite MoE (`transformers/models/granitemoe`): Granite with experts.

use super::{granite, llama, with_experts};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, unsupported};
use crate::config::Config;
use crate::rules::Rule;
use crate::rules::stacked::{Form, Part};
use crate::spec::{MlpSpec, MoeSpec, RouterScores, RouterSpec, SharedExpertSpec, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::MixtureOfExperts,
    hugging_face: HuggingFace { model_type: "granitemoe", classes: CLASSES, spec, stack: STACK, heads: llama::HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "GraniteMoeForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "GraniteMoeModel", head: HeadKind::States, base: "" },
];

/// The names of checkpoints with experts, of which one tensor of a layer holds all gates and what they go with.
pub(super) const STACK: &[Rule] = &[
    Rule::new("embed", "embed_tokens"),
    Rule::new("layers.{}.attn_norm", "layers.{}.input_layernorm"),
    Rule::new("layers.{}.attn.q", "layers.{}.self_attn.q_proj"),
    Rule::new("layers.{}.attn.k", "layers.{}.self_attn.k_proj"),
    Rule::new("layers.{}.attn.v", "layers.{}.self_attn.v_proj"),
    Rule::new("layers.{}.attn.out", "layers.{}.self_attn.o_proj"),
    Rule::new("layers.{}.mlp_norm", "layers.{}.post_attention_layernorm"),
    Rule::new("layers.{}.moe.router", "layers.{}.block_sparse_moe.router.layer"),
    Rule::stacked("layers.{}.moe.experts.{}.gate", INPUT, Form::AsIs, Part::FirstHalf),
    Rule::stacked("layers.{}.moe.experts.{}.up", INPUT, Form::AsIs, Part::SecondHalf),
    Rule::stacked("layers.{}.moe.experts.{}.down", "layers.{}.block_sparse_moe.output_linear", Form::AsIs, Part::Whole),
    Rule::new("final_norm", "norm"),
];

const INPUT: &str = "layers.{}.block_sparse_moe.input_linear";

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    like_granite_moe(config, kind, turns(config, true)?, None)
}

/// Whether positions turn queries and keys.
pub(super) fn turns(config: &Config, default: bool) -> Result<bool, ModelError> {
    let key = "position_embedding_type";
    match config.optional_text(key)?.as_deref() {
        None => Ok(default),
        Some("rope") => Ok(true),
        Some("nope") => Ok(false),
        Some(other) => Err(unsupported(&config.path(key), other.to_owned(), vec!["rope, nope"])),
    }
}

/// Granite with experts in each layer, unless there are none, and perhaps a feed-forward part of so many elements for all
/// tokens.
pub(super) fn like_granite_moe(
    config: &Config,
    kind: HeadKind,
    turns: bool,
    shared: Option<usize>,
) -> Result<Spec, ModelError> {
    let spec = granite::like_granite(config, kind, |attention, _| attention.rope = attention.rope.filter(|_| turns))?;
    let experts = config.optional_count("num_local_experts")?.unwrap_or(8);
    if experts == 0 {
        return Ok(spec);
    }
    let chosen = config.optional_size("num_experts_per_tok")?.unwrap_or(2);
    if chosen > experts {
        return Err(config.wrong("num_experts_per_tok", format!("at most the {experts} experts")).into());
    }
    Ok(with_experts(spec, |expert| MoeSpec {
        experts,
        router: RouterSpec::plain(chosen, RouterScores::SoftmaxOfChosen),
        shared: shared.map(|inner| SharedExpertSpec { mlp: MlpSpec { inner, ..expert.clone() }, gated: false }),
        expert,
    }))
}
