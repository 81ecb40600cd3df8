//! What autoencoders of images are made of.

use super::Activation;
use super::unet::BlockSpec;

/// An autoencoder of images.
#[derive(Clone, Debug, PartialEq)]
pub struct VaeSpec {
    /// Channels of the image that comes in.
    pub inputs: usize,
    /// Channels of the one that goes out.
    pub outputs: usize,
    /// Channels of what is between.
    pub latents: usize,
    /// From an image to it.
    pub encoder: VaeHalfSpec,
    /// From it to an image.
    pub decoder: VaeHalfSpec,
    /// Whether a convolution of one tap follows the encoder.
    pub after_encoder: bool,
    /// Whether one comes before the decoder.
    pub before_decoder: bool,
}

/// An encoder or a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct VaeHalfSpec {
    /// The blocks in their order.
    pub blocks: Vec<BlockSpec>,
    /// Which of them is the one in the middle.
    pub mid: BlockSpec,
    /// Channels after the first convolution.
    pub first: usize,
    /// Channels before the last.
    pub last: usize,
    /// Groups of the last norm.
    pub groups: usize,
    /// Added to variances.
    pub eps: f32,
    /// After the last norm.
    pub activation: Activation,
}
