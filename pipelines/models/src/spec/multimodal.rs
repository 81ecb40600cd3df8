//! What decoders of text that read images among their tokens are made of.

use super::vision::BackboneSpec;
use super::{Activation, DecoderSpec, NormSpec, PartSpec, StackSpec};

/// A decoder of text that reads images among its tokens.
#[derive(Clone, Debug)]
pub struct MultimodalSpec {
    /// What reads and writes.
    pub decoder: PartSpec<DecoderSpec>,
    /// What sees the images.
    pub images: ImagesSpec,
    /// What makes a decoder's embeddings of what is seen.
    pub connector: ConnectorSpec,
    /// The token that an image's embeddings stand in place of.
    pub image: i64,
    /// The token that a video's embeddings stand in place of, where there are videos.
    pub video: Option<i64>,
    /// The token that comes before images and videos, where tokens have places in them.
    pub start: Option<i64>,
}

/// What sees images.
#[derive(Clone, Debug)]
pub enum ImagesSpec {
    /// A model of images of one size.
    Tower {
        /// The model.
        tower: PartSpec<BackboneSpec>,
        /// The part of its names that is the backbone.
        part: Option<&'static str>,
        /// The layers whose states are joined, 0 for what the first is given.
        layers: Vec<usize>,
        /// How many states are left out, from the first on.
        skipped: usize,
    },
    /// A model of images and videos of any size.
    Grid(PartSpec<GridSpec>),
}

/// A stack of the patches of images and videos of any size (<https://arxiv.org/abs/2409.12191>).
#[derive(Clone, Debug, PartialEq)]
pub struct GridSpec {
    /// Channels, frames, height and width of a patch.
    pub patch: [usize; 4],
    /// Patches along a side of the square that becomes one embedding.
    pub merged: usize,
    /// The stack, whose ropes turn by height and width.
    pub stack: StackSpec,
}

/// What makes a decoder's embeddings of states: two layers.
#[derive(Clone, Debug, PartialEq)]
pub struct ConnectorSpec {
    /// Elements of a state.
    pub width: usize,
    /// The norm of the states.
    pub norm: Option<NormSpec>,
    /// How many states become one embedding.
    pub merged: usize,
    /// Elements between the layers.
    pub inner: usize,
    /// What follows the first.
    pub activation: Activation,
    /// Whether the layers have biases.
    pub bias: bool,
}
