//! Phi-3 (`transformers/models/phi3`; <https://arxiv.org/abs/2404.14219>): Llama with queries, keys and values in one
//! tensor, and gate and up in another.

use super::llama::{self, LAYOUT, Layout};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::rules::{Rule, joined};
use crate::spec::{QkvLayout, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::DecoderOnly,
    hugging_face: HuggingFace { model_type: "phi3", classes: CLASSES, spec, stack: STACK, heads: llama::HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "Phi3ForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "Phi3Model", head: HeadKind::States, base: "" },
    Class { name: "Phi3ForSequenceClassification", head: HeadKind::SequenceLabels, base: "model." },
    Class { name: "Phi3ForTokenClassification", head: HeadKind::TokenLabels, base: "model." },
];

const JOINED: &[Rule] = &[
    Rule::new("layers.{}.attn.qkv", "layers.{}.self_attn.qkv_proj"),
    Rule::new("layers.{}.mlp.gate_up", "layers.{}.mlp.gate_up_proj"),
];

const STACK: &[Rule] = &joined::<{ JOINED.len() + llama::STACK.len() }>(JOINED, llama::STACK);

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let window = config.optional_size("sliding_window")?;
    let layout =
        Layout { context: 4096, norm_eps: ("rms_norm_eps", 1e-5), turned: Some("partial_rotary_factor"), ..LAYOUT };
    llama::like_llama(config, kind, layout, |_, attention, mlp| {
        (attention.layout, attention.window, mlp.joined) = (QkvLayout::Joined, window, true);
        Ok(())
    })
}
