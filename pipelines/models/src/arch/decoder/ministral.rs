//! Ministral (`transformers/models/ministral`): Mistral whose layers have windows each by its kind.

use super::llama::{self, LAYOUT, Layout};
use super::{layers, sliding};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::spec::Spec;

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::DecoderOnly,
    hugging_face: HuggingFace {
        model_type: "ministral",
        classes: CLASSES,
        spec,
        stack: llama::STACK,
        heads: llama::HEADS,
    },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "MinistralForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "MinistralModel", head: HeadKind::States, base: "" },
    Class { name: "MinistralForSequenceClassification", head: HeadKind::SequenceLabels, base: "model." },
    Class { name: "MinistralForTokenClassification", head: HeadKind::TokenLabels, base: "model." },
    Class { name: "MinistralForQuestionAnswering", head: HeadKind::Span, base: "transformer." },
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let window = match config.is_null("sliding_window") {
        true => None,
        false => Some(config.optional_size("sliding_window")?.unwrap_or(4096)),
    };
    let slides = sliding(config, layers(config, "num_hidden_layers")?, |_| true)?;
    llama::like_llama(config, kind, Layout { context: 131_072, ..LAYOUT }, |number, attention, _| {
        attention.window = window.filter(|_| slides.get(number) == Some(&true));
        Ok(())
    })
}
