//! XLM-RoBERTa (`transformers/models/xlm_roberta`; <https://arxiv.org/abs/1911.02116>): `RoBERTa` for a hundred languages.

use super::{bert, roberta};
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::EncoderOnly,
    hugging_face: HuggingFace {
        model_type: "xlm-roberta",
        classes: CLASSES,
        spec: roberta::spec,
        stack: bert::STACK,
        heads: roberta::HEADS,
    },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "XLMRobertaModel", head: HeadKind::States, base: "" },
    Class { name: "XLMRobertaForMaskedLM", head: HeadKind::MaskedToken, base: "roberta." },
    Class { name: "XLMRobertaForCausalLM", head: HeadKind::NextToken, base: "roberta." },
    Class { name: "XLMRobertaForSequenceClassification", head: HeadKind::SequenceLabels, base: "roberta." },
    Class { name: "XLMRobertaForMultipleChoice", head: HeadKind::Choice, base: "roberta." },
    Class { name: "XLMRobertaForTokenClassification", head: HeadKind::TokenLabels, base: "roberta." },
    Class { name: "XLMRobertaForQuestionAnswering", head: HeadKind::Span, base: "roberta." },
];
