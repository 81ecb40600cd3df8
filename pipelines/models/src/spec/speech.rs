//! What models of speech are made of, that read samples of sound.

use super::{Activation, NormSpec, StackSpec};

/// A model of speech.
#[derive(Clone, Debug, PartialEq)]
pub struct SpeechSpec {
    /// From samples to features.
    pub convolutions: Vec<SoundConvolutionSpec>,
    /// After each of them, and after that of positions.
    pub activation: Activation,
    /// The norm of features, before a layer makes states of them.
    pub feature_norm: Option<NormSpec>,
    /// Whether such a layer stands there, or features are states already.
    pub projected: bool,
    /// Whether features that are asked to be hidden are replaced by a learned vector, or stay.
    pub hides: bool,
    /// What is added for positions.
    pub positions: SoundPositionsSpec,
    /// How many places become one for the layers, and as many again after them.
    pub squeeze: Option<usize>,
    /// The norm before the first layer.
    pub embed_norm: Option<NormSpec>,
    /// The layers.
    pub stack: StackSpec,
    /// Elements of a narrow part after each layer, where there is one.
    pub layer_adapter: Option<usize>,
    /// What shortens the sequence after the last layer.
    pub adapter: Option<SoundAdapterSpec>,
    /// Whether heads take a weighted sum of the states of all layers.
    pub weighted: bool,
    /// Whether padding that a mask tells of is left out.
    pub masked: bool,
    /// What is made of the states.
    pub head: SpeechHead,
}

/// A convolution over samples or features.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SoundConvolutionSpec {
    /// Channels that come in.
    pub inputs: usize,
    /// Channels that go out.
    pub outputs: usize,
    /// Its taps.
    pub taps: usize,
    /// From one place to the next.
    pub stride: usize,
    /// Whether it has a bias.
    pub bias: bool,
    /// The norm after it.
    pub norm: SoundNormSpec,
}

/// A norm of features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SoundNormSpec {
    /// None.
    None,
    /// Of each channel over all places.
    Channels,
    /// Of each place over all channels.
    Places,
}

/// What is added for positions: convolutions over the states themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoundPositionsSpec {
    /// Taps of each.
    pub taps: usize,
    /// Groups of each.
    pub groups: usize,
    /// How they are stored and normalised.
    pub kind: SoundPositionsKind,
}

/// How convolutions of positions are stored and normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SoundPositionsKind {
    /// One, as directions and lengths.
    OfLength,
    /// One, after a norm of each channel by what was seen in training.
    BatchNorm,
    /// So many, each with a norm of each place after it.
    Several(usize),
}

/// What shortens a sequence of states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoundAdapterSpec {
    /// Elements of its states.
    pub width: usize,
    /// How many convolutions, each gated by half of what it gives.
    pub layers: usize,
    /// Taps of each.
    pub taps: usize,
    /// From one place to the next.
    pub stride: usize,
}

/// What is made of the states of a sound.
#[derive(Clone, Debug, PartialEq)]
pub enum SpeechHead {
    /// Nothing: the states themselves.
    States {
        /// Whether features are answered too.
        features: bool,
    },
    /// Logits of what is said at each place.
    Transcript {
        /// Tokens in the vocabulary.
        vocabulary: usize,
    },
    /// Logits of the whole sound's labels, from the mean of projected states.
    Labels {
        /// How many.
        labels: usize,
        /// Elements of a projected state.
        width: usize,
    },
    /// Logits of each place's labels.
    PlaceLabels {
        /// How many.
        labels: usize,
    },
    /// A vector for who speaks, and logits.
    Speaker {
        /// Convolutions over projected states, with their dilations.
        layers: Vec<(SoundConvolutionSpec, usize)>,
        /// Elements of the vector.
        width: usize,
    },
    /// Projected states, and what features are nearest to among some, projected too.
    Quantised {
        /// Groups of vectors.
        groups: usize,
        /// Vectors of a group.
        vectors: usize,
        /// Elements of a vector of all groups.
        vector: usize,
        /// Elements of a projection.
        width: usize,
        /// Whether those vectors are projected on to where states are, and not states to where they are.
        back: bool,
    },
    /// What pretraining compares: features, and states themselves.
    Compared,
}
