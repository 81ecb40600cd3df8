//! What models that cut out what prompts point at are made of.

use super::vision::BackboneSpec;
use super::{Activation, AttentionSpec, MlpSpec};

/// A model that cuts out what prompts point at.
#[derive(Clone, Debug, PartialEq)]
pub struct SegmentationSpec {
    /// What sees the image.
    pub image: BackboneSpec,
    /// Elements of a state.
    pub hidden: usize,
    /// What sees the prompts.
    pub prompt: PromptSpec,
    /// How many layers there are in which prompts and places of the image see each other.
    pub layers: usize,
    /// Attention among prompts.
    pub attention: AttentionSpec,
    /// Attention between prompts and places.
    pub cross: AttentionSpec,
    /// The same, of prompts to places after the last layer.
    pub last: AttentionSpec,
    /// What prompts go through after attention.
    pub mlp: MlpSpec,
    /// Added to the variance in norms of layers.
    pub eps: f64,
    /// How many masks there are, the one that stands for all among them.
    pub masks: usize,
    /// What tells how good each mask is.
    pub quality: PerceptronSpec,
}

/// What sees prompts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PromptSpec {
    /// Pixels along a side of the image.
    pub image: usize,
    /// Places along a side of its map.
    pub grid: usize,
    /// Channels of what a mask is drawn with.
    pub mask: usize,
    /// What these go through.
    pub activation: Activation,
    /// Added to the variance in norms.
    pub eps: f64,
}

/// Several linear layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerceptronSpec {
    /// Elements of what comes in.
    pub inputs: usize,
    /// Elements between layers.
    pub inner: usize,
    /// Elements of what comes out.
    pub outputs: usize,
    /// How many layers, at least the first and the last.
    pub layers: usize,
}
