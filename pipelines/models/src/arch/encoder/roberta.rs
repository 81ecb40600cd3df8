//! `RoBERTa` (`transformers/models/roberta`; <https://arxiv.org/abs/1907.11692>): BERT's layers, with positions that leave
//! padding out, and heads of its own.

use super::{bert, encoder_head};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::encoder::{EncoderSpec, TokensSpec, Whole};
use crate::spec::{Activation, LogitsSpec, PositionSpec, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::EncoderOnly,
    hugging_face: HuggingFace { model_type: "roberta", classes: CLASSES, spec, stack: bert::STACK, heads: HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "RobertaModel", head: HeadKind::States, base: "" },
    Class { name: "RobertaForMaskedLM", head: HeadKind::MaskedToken, base: "roberta." },
    Class { name: "RobertaForCausalLM", head: HeadKind::NextToken, base: "roberta." },
    Class { name: "RobertaForSequenceClassification", head: HeadKind::SequenceLabels, base: "roberta." },
    Class { name: "RobertaForMultipleChoice", head: HeadKind::Choice, base: "roberta." },
    Class { name: "RobertaForTokenClassification", head: HeadKind::TokenLabels, base: "roberta." },
    Class { name: "RobertaForQuestionAnswering", head: HeadKind::Span, base: "roberta." },
];

/// The names of the heads of everything that has RoBERTa's layout.
pub(super) const HEADS: &[Rule] = &[
    Rule::new("head.transform", "lm_head.dense"),
    Rule::new("head.transform_norm", "lm_head.layer_norm"),
    Rule::new("head.next_token.bias", "lm_head.bias"),
    Rule::new("head.next_token", "lm_head.decoder"),
    Rule::new("head.dense", "classifier.dense"),
    Rule::new("head.labels", "classifier.out_proj"),
    Rule::new("head.labels", "classifier"),
    Rule::new("head.token_labels", "classifier"),
    Rule::new("head.span", "qa_outputs"),
];

/// What the configurations of everything that has RoBERTa's layout say.
pub(super) fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let logits = LogitsSpec { bias: true, ..LogitsSpec::plain(config.truth_or("tie_word_embeddings", true)?) };
    let transform = Some((Activation::Gelu, bert::norm(config)?));
    // Choices are made from the pooled state, labels from the first one by a layer of the head.
    let whole = match kind {
        HeadKind::Choice => Whole::Pooled,
        _ => Whole::Dense(Activation::Tanh),
    };
    let head = encoder_head(config, kind, whole, TokensSpec { logits, transform })?;
    let pooler = matches!(kind, HeadKind::States | HeadKind::Choice).then_some(Activation::Tanh);
    let mut stack = bert::stack(config)?;
    if let PositionSpec::Learned { first, padding: without, .. } = &mut stack.embed.positions {
        let padding = config.optional_integer("pad_token_id")?.unwrap_or(1);
        *first = usize::try_from(padding + 1).map_err(|_| config.wrong("pad_token_id", "the id of a token"))?;
        *without = Some(padding);
    }
    Ok(Spec::Encoder(Box::new(EncoderSpec { stack, pooler, head })))
}
