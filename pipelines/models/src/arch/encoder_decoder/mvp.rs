//! MVP (`transformers/models/mvp`; <https://arxiv.org/abs/2206.12131>): BART, but for its prompts, which are not supported.

use super::bart;
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, unsupported};
use crate::config::Config;
use crate::spec::Spec;

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::EncoderDecoder,
    hugging_face: HuggingFace { model_type: "mvp", classes: CLASSES, spec, stack: bart::STACK, heads: bart::HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "MvpForConditionalGeneration", head: HeadKind::NextToken, base: "model." },
    Class { name: "MvpModel", head: HeadKind::States, base: "" },
    Class { name: "MvpForSequenceClassification", head: HeadKind::SequenceLabels, base: "model." },
    Class { name: "MvpForQuestionAnswering", head: HeadKind::Span, base: "model." },
    Class { name: "MvpForCausalLM", head: HeadKind::DecoderNextToken, base: "model.decoder." },
    Class { name: "MvpDecoder", head: HeadKind::DecoderStates, base: "" },
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    if config.truth_or("use_prompt", false)? {
        return Err(unsupported(&config.path("use_prompt"), "true".into(), vec!["false"]));
    }
    bart::spec(config, kind)
}
