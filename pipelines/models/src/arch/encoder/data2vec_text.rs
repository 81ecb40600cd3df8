//! Data2vec's text model (`transformers/models/data2vec`; <https://arxiv.org/abs/2202.03555>): `RoBERTa`, trained otherwise.

use super::{bert, roberta};
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::EncoderOnly,
    hugging_face: HuggingFace {
        model_type: "data2vec-text",
        classes: CLASSES,
        spec: roberta::spec,
        stack: bert::STACK,
        heads: roberta::HEADS,
    },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "Data2VecTextModel", head: HeadKind::States, base: "" },
    Class { name: "Data2VecTextForMaskedLM", head: HeadKind::MaskedToken, base: "data2vec_text." },
    Class { name: "Data2VecTextForCausalLM", head: HeadKind::NextToken, base: "data2vec_text." },
    Class { name: "Data2VecTextForSequenceClassification", head: HeadKind::SequenceLabels, base: "data2vec_text." },
    Class { name: "Data2VecTextForMultipleChoice", head: HeadKind::Choice, base: "data2vec_text." },
    Class { name: "Data2VecTextForTokenClassification", head: HeadKind::TokenLabels, base: "data2vec_text." },
    Class { name: "Data2VecTextForQuestionAnswering", head: HeadKind::Span, base: "data2vec_text." },
];
