//! Encoders with a decoder of text.

use super::{Activation, LogitsSpec, StackSpec};

/// An encoder with a decoder of text.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderDecoderSpec {
    /// What makes states of what is given.
    pub encoder: StackSpec,
    /// What is given.
    pub source: SourceSpec,
    /// What makes text of these states; none where they are the answer.
    pub decoder: Option<StackSpec>,
    /// Whether both read tokens by one table.
    pub shared: bool,
    /// What is made of the decoder's states, or of the encoder's.
    pub head: EncoderDecoderHead,
    /// The token that the decoder starts with.
    pub start: Option<i64>,
    /// The id of padding.
    pub padding: Option<i64>,
    /// The most positions of the decoder's sequence.
    pub context: usize,
}

/// What an encoder is given.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceSpec {
    /// Tokens.
    Tokens,
    /// Features `[channels, time]` of sound: through two convolutions, the second with a stride of 2, and with learned
    /// positions.
    Features {
        /// Channels.
        channels: usize,
        /// Positions in the table.
        positions: usize,
    },
}

/// What is made of states.
#[derive(Clone, Debug, PartialEq)]
pub enum EncoderDecoderHead {
    /// Nothing.
    States,
    /// Logits of the next token; perhaps with a bias that the file has as a row.
    NextToken {
        /// The logits.
        logits: LogitsSpec,
        /// Whether there is such a row.
        row: bool,
    },
    /// Logits of labels from the state of the last token with that id, through a layer and a tanh.
    Labels {
        /// How many labels.
        labels: usize,
        /// The id.
        end: i64,
        /// What follows the layer.
        activation: Activation,
    },
    /// For each token, logits of being the first and the last of an answer.
    Span,
    /// Logits of each token's labels.
    TokenLabels(usize),
    /// Logits of labels from the mean of all states, each through a layer to so many elements first.
    MeanLabels {
        /// How many labels.
        labels: usize,
        /// Elements between.
        width: usize,
        /// Whether the states are a weighted sum of those of all layers.
        weighted: bool,
    },
}
