//! ERNIE (`transformers/models/ernie`; <https://arxiv.org/abs/1904.09223>): BERT, but for types of tasks, which are not
//! supported.

use super::bert;
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, unsupported};
use crate::config::Config;
use crate::spec::Spec;

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::EncoderOnly,
    hugging_face: HuggingFace { model_type: "ernie", classes: CLASSES, spec, stack: bert::STACK, heads: bert::HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "ErnieModel", head: HeadKind::States, base: "" },
    Class { name: "ErnieForMaskedLM", head: HeadKind::MaskedToken, base: "ernie." },
    Class { name: "ErnieForCausalLM", head: HeadKind::NextToken, base: "ernie." },
    Class { name: "ErnieForPreTraining", head: HeadKind::Pretraining, base: "ernie." },
    Class { name: "ErnieForNextSentencePrediction", head: HeadKind::NextSentence, base: "ernie." },
    Class { name: "ErnieForSequenceClassification", head: HeadKind::SequenceLabels, base: "ernie." },
    Class { name: "ErnieForMultipleChoice", head: HeadKind::Choice, base: "ernie." },
    Class { name: "ErnieForTokenClassification", head: HeadKind::TokenLabels, base: "ernie." },
    Class { name: "ErnieForQuestionAnswering", head: HeadKind::Span, base: "ernie." },
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    if config.truth_or("use_task_id", false)? {
        return Err(unsupported(&config.path("use_task_id"), "true".into(), vec!["false"]));
    }
    bert::spec(config, kind)
}
