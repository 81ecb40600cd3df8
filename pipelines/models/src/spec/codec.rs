//! What codecs of sound are made of: an encoder, tables of codes, and a decoder.

use super::Activation;

/// A codec of sound.
#[derive(Clone, Debug, PartialEq)]
pub struct CodecSpec {
    /// Whether sounds are brought to one loudness first.
    pub normalised: bool,
    /// Samples of a piece, and from one piece to the next, where sounds are cut.
    pub pieces: Option<(usize, usize)>,
    /// From sounds to vectors.
    pub encoder: Vec<CodecLayerSpec>,
    /// From vectors to sounds.
    pub decoder: Vec<CodecLayerSpec>,
    /// How many tables of codes there are.
    pub tables: usize,
    /// Rows of a table.
    pub rows: usize,
    /// Elements of a vector.
    pub width: usize,
    /// How many bits a table takes of each second.
    pub table_bits: f64,
    /// Thousands of bits a second that may be asked for, first that which counts where none is.
    pub bandwidths: Vec<f64>,
}

/// A layer of an encoder or a decoder.
#[derive(Clone, Debug, PartialEq)]
pub enum CodecLayerSpec {
    /// An activation.
    Activation(Activation),
    /// A convolution.
    Convolution(PaddedConvolutionSpec),
    /// A transposed convolution.
    Transposed(PaddedConvolutionSpec),
    /// So many recurrent layers, whose result is added.
    Recurrent {
        /// Elements of a state.
        width: usize,
        /// Layers.
        layers: usize,
    },
    /// Convolutions, each after an activation, whose result is added.
    Residual {
        /// The activation.
        activation: Activation,
        /// The convolutions.
        convolutions: Vec<PaddedConvolutionSpec>,
        /// What the input goes through.
        shortcut: Option<PaddedConvolutionSpec>,
    },
}

/// A convolution over samples that keeps their number, but for its stride.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PaddedConvolutionSpec {
    /// Channels that come in.
    pub inputs: usize,
    /// Channels that go out.
    pub outputs: usize,
    /// Its taps.
    pub taps: usize,
    /// From one place to the next.
    pub stride: usize,
    /// From one tap to the next.
    pub dilation: usize,
    /// Whether it sees nothing that comes later.
    pub causal: bool,
    /// What it sees before the first and after the last sample.
    pub padding: PaddingSpec,
    /// Of what a transposed one gives too much, so much is cut off at the end; the rest at the beginning.
    pub trimmed_at_end: f64,
    /// How its weights are stored.
    pub norm: ConvolutionNormSpec,
}

/// What stands before the first and after the last place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaddingSpec {
    /// Zeros.
    Zeros,
    /// What stands inside, mirrored.
    Mirrored,
    /// The first and the last.
    Repeated,
}

/// How a convolution is normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConvolutionNormSpec {
    /// Its weights are directions and lengths.
    OfLength,
    /// What it gives, over all channels and places.
    Everything,
}
