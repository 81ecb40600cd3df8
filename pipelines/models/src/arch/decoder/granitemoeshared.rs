//! Granite MoE Shared (`transformers/models/granitemoeshared`): Granite MoE with a feed-forward part for all tokens.

use super::{granitemoe, llama};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::rules::{Rule, joined};
use crate::spec::Spec;

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::MixtureOfExperts,
    hugging_face: HuggingFace {
        model_type: "granitemoeshared",
        classes: CLASSES,
        spec,
        stack: STACK,
        heads: llama::HEADS,
    },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "GraniteMoeSharedForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "GraniteMoeSharedModel", head: HeadKind::States, base: "" },
];

/// The names of checkpoints with a part for all tokens beside the experts.
pub(super) const STACK: &[Rule] = &joined::<{ SHARED.len() + granitemoe::STACK.len() }>(SHARED, granitemoe::STACK);

const SHARED: &[Rule] = &[
    Rule::first_half("layers.{}.moe.shared.gate", "layers.{}.shared_mlp.input_linear"),
    Rule::second_half("layers.{}.moe.shared.up", "layers.{}.shared_mlp.input_linear"),
    Rule::new("layers.{}.moe.shared.down", "layers.{}.shared_mlp.output_linear"),
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    // None, where it says nought or nothing.
    let inner = config.optional_count("shared_intermediate_size")?.filter(|&inner| inner > 0);
    granitemoe::like_granite_moe(config, kind, granitemoe::turns(config, true)?, inner)
}
