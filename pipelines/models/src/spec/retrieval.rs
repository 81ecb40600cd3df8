//! What generators that read documents are made of.

use super::PartSpec;
use super::encoder::EncoderSpec;
use super::encoder_decoder::EncoderDecoderSpec;

/// A generator that reads documents which were found for a question (<https://arxiv.org/abs/2005.11401>).
#[derive(Clone, Debug)]
pub struct RetrievalSpec {
    /// What makes of a question the vector that documents are found by.
    pub question: PartSpec<EncoderSpec>,
    /// What reads each document with the question, and writes.
    pub generator: PartSpec<EncoderDecoderSpec>,
    /// Documents of a question.
    pub documents: usize,
    /// Whether the documents' probabilities of the next token may be added up, and are where nothing else is asked; none
    /// where they never are.
    pub marginal: Option<bool>,
    /// The token that answers start with.
    pub start: Option<i64>,
}
