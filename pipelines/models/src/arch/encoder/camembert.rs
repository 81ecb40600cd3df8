//! `CamemBERT` (`transformers/models/camembert`; <https://arxiv.org/abs/1911.03894>): `RoBERTa` for French.

use super::{bert, roberta};
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::EncoderOnly,
    hugging_face: HuggingFace {
        model_type: "camembert",
        classes: CLASSES,
        spec: roberta::spec,
        stack: bert::STACK,
        heads: roberta::HEADS,
    },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "CamembertModel", head: HeadKind::States, base: "" },
    Class { name: "CamembertForMaskedLM", head: HeadKind::MaskedToken, base: "roberta." },
    Class { name: "CamembertForCausalLM", head: HeadKind::NextToken, base: "roberta." },
    Class { name: "CamembertForSequenceClassification", head: HeadKind::SequenceLabels, base: "roberta." },
    Class { name: "CamembertForMultipleChoice", head: HeadKind::Choice, base: "roberta." },
    Class { name: "CamembertForTokenClassification", head: HeadKind::TokenLabels, base: "roberta." },
    Class { name: "CamembertForQuestionAnswering", head: HeadKind::Span, base: "roberta." },
];
