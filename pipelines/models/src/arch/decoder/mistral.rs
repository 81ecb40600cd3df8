//! Mistral (`transformers/models/mistral`; <https://arxiv.org/abs/2310.06825>): Llama's layout, with a window.
//!
//! GGUF files call it llama.

use super::llama::{self, LAYOUT, Layout};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::spec::Spec;

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::DecoderOnly,
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

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    llama::like_llama(config, kind, Layout { context: 131_072, ..LAYOUT }, |_, attention, _| {
        attention.window = config.optional_size("sliding_window")?;
        Ok(())
    })
}
