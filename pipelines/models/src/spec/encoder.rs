//! Encoders of text.

use super::{Activation, LogitsSpec, NormSpec, StackSpec};

/// An encoder of text.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderSpec {
    /// Its layers.
    pub stack: StackSpec,
    /// What the state of the first token goes through, for heads of whole sequences; none where there is no such part.
    pub pooler: Option<Activation>,
    /// What is made of the states.
    pub head: EncoderHead,
}

/// What is made of an encoder's states.
#[derive(Clone, Debug, PartialEq)]
pub enum EncoderHead {
    /// Nothing: the states, and the pooled one where there is a pooler.
    States,
    /// Logits of each token.
    Tokens(TokensSpec),
    /// Logits of whether a second sentence follows the first, from the pooled state.
    NextSentence,
    /// Both of these.
    Pretraining(TokensSpec),
    /// Logits of the sequence's labels.
    Labels {
        /// How many labels.
        labels: usize,
        /// What they are made from.
        from: Whole,
    },
    /// One logit of each of several sequences.
    Choice(Whole),
    /// Logits of each token's labels.
    TokenLabels(usize),
    /// For each token, logits of being the first and the last of an answer.
    Span,
    /// The state of the first token, as the pooled one, perhaps projected to so many elements.
    First(Option<usize>),
    /// A span, and how well the sequence fits a question.
    Reader,
}

/// What stands for a whole sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whole {
    /// The pooled state.
    Pooled,
    /// The state of the first token.
    First,
    /// The state of the first token after a layer and its activation.
    Dense(Activation),
}

/// Logits of each token of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct TokensSpec {
    /// The logits.
    pub logits: LogitsSpec,
    /// A layer before them, its activation and its norm.
    pub transform: Option<(Activation, NormSpec)>,
}
