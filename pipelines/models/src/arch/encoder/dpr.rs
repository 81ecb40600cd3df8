//! Dense passage retrieval (`transformers/models/dpr`; <https://arxiv.org/abs/2004.04906>): BERT's layout.

use super::bert;
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::Spec;
use crate::spec::encoder::{EncoderHead, EncoderSpec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::EncoderOnly,
    hugging_face: HuggingFace { model_type: "dpr", classes: CLASSES, spec, stack: bert::STACK, heads: HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "DPRQuestionEncoder", head: HeadKind::States, base: "question_encoder.bert_model." },
    Class { name: "DPRContextEncoder", head: HeadKind::States, base: "ctx_encoder.bert_model." },
    Class { name: "DPRReader", head: HeadKind::Span, base: "span_predictor.encoder.bert_model." },
];

const HEADS: &[Rule] = &[
    Rule::new("head.projection", "question_encoder.encode_proj"),
    Rule::new("head.projection", "ctx_encoder.encode_proj"),
    Rule::new("head.span", "span_predictor.qa_outputs"),
    Rule::new("head.relevance", "span_predictor.qa_classifier"),
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    if kind == HeadKind::Span {
        let (stack, head) = (bert::stack(config)?, EncoderHead::Reader);
        return Ok(Spec::Encoder(Box::new(EncoderSpec { stack, pooler: None, head })));
    }
    // Nought says that there is no projection.
    let width = config.optional_integer("projection_dim")?.unwrap_or(0);
    bert::first(config, usize::try_from(width).ok().filter(|&width| width > 0))
}
