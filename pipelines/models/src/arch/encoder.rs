//! Model types of the encoder family, one file each, and what their configurations share.

pub mod bert;
pub mod camembert;
pub mod data2vec_text;
pub mod deberta_v2;
pub mod distilbert;
pub mod dpr;
pub mod ernie;
pub mod roberta;
pub mod xlm_roberta;

use super::labels;
use crate::ModelError;
use crate::config::Config;
use crate::spec::encoder::{EncoderHead, TokensSpec, Whole};

use super::HeadKind;

/// The head of an encoder, with what its classes make of whole sequences and of tokens.
fn encoder_head(config: &Config, kind: HeadKind, whole: Whole, tokens: TokensSpec) -> Result<EncoderHead, ModelError> {
    Ok(match kind {
        HeadKind::States => EncoderHead::States,
        HeadKind::NextToken | HeadKind::MaskedToken => EncoderHead::Tokens(tokens),
        HeadKind::NextSentence => EncoderHead::NextSentence,
        HeadKind::Pretraining => EncoderHead::Pretraining(tokens),
        HeadKind::SequenceLabels => EncoderHead::Labels { labels: labels(config)?, from: whole },
        HeadKind::Choice => EncoderHead::Choice(whole),
        HeadKind::TokenLabels => EncoderHead::TokenLabels(labels(config)?),
        HeadKind::Span => EncoderHead::Span,
        _ => return Err(super::no_such_head(kind)),
    })
}
