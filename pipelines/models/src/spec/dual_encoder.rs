//! What models that compare images and texts are made of.

use super::vision::{BackboneSpec, PoolSpec};
use super::{Activation, StackSpec};

/// A model that compares images and texts, or one half of it.
#[derive(Clone, Debug, PartialEq)]
pub struct DualEncoderSpec {
    /// What reads texts.
    pub text: Option<TextSpec>,
    /// What sees images.
    pub image: Option<ImageSpec>,
    /// Whether similarities have a bias.
    pub bias: bool,
}

/// What reads texts.
#[derive(Clone, Debug, PartialEq)]
pub struct TextSpec {
    /// The stack.
    pub stack: StackSpec,
    /// What one state of a text is made of.
    pub pool: TextPoolSpec,
    /// Elements of the space in which texts and images are compared, where states are projected into it.
    pub projection: Option<usize>,
}

/// What one state of a text is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TextPoolSpec {
    /// Which state.
    pub of: TextPoolOf,
    /// The layer after it: how many elements it makes, and what they go through.
    pub dense: Option<(usize, Activation)>,
}

/// Which state of a text stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextPoolOf {
    /// The first.
    First,
    /// The last, be it padding.
    Last,
    /// That of the first token of this id; the first where there is none.
    Token(i64),
    /// That of the first token of the largest id.
    LargestToken,
}

/// What sees images.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageSpec {
    /// The backbone.
    pub backbone: BackboneSpec,
    /// What one state of an image is made of.
    pub pool: PoolSpec,
    /// Elements of the space in which texts and images are compared, where states are projected into it.
    pub projection: Option<usize>,
}
