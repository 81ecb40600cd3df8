//! What transformers of diffusion are made of, in which a text's tokens and an image's see each other.

use super::NormSpec;

/// A transformer of diffusion.
#[derive(Clone, Debug, PartialEq)]
pub struct DitSpec {
    /// What tokens of an image are.
    pub image: ImageTokensSpec,
    /// Channels of a token, or of the image, that come in.
    pub inputs: usize,
    /// Channels that go out.
    pub outputs: usize,
    /// Elements of a token's state.
    pub hidden: usize,
    /// Heads.
    pub heads: usize,
    /// Elements of a head.
    pub head: usize,
    /// Elements of a state of the text.
    pub text: usize,
    /// Elements of the text's summary.
    pub summary: usize,
    /// Whether it is told how closely to follow the text.
    pub guidance: bool,
    /// Moments are multiplied by it.
    pub moment_scale: f32,
    /// How many elements of a head each axis of positions turns; empty where positions do not turn.
    pub axes: Vec<usize>,
    /// The norm of queries and keys.
    pub qk_norm: Option<NormSpec>,
    /// Layers with weights of their own for the text.
    pub joint: Vec<JointLayerSpec>,
    /// How many layers follow that treat all tokens alike.
    pub single: usize,
}

/// What tokens of an image are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageTokensSpec {
    /// They come as they are.
    Given,
    /// Patches of so many places on each side, with the middle of a table of positions added.
    Patches {
        /// Places.
        patch: usize,
        /// Rows and columns of the table.
        table: usize,
    },
}

/// A layer with weights of its own for the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JointLayerSpec {
    /// Whether the text ends here: what would become of it, no later layer sees.
    pub last: bool,
    /// Whether the image's tokens attend to each other once more, alone.
    pub twice: bool,
}
