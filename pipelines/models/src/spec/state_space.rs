//! Layers that carry a state of fixed size from token to token.

use super::{Activation, NormSpec};

/// A state space whose steps are chosen by each channel (Mamba).
#[derive(Clone, Debug, PartialEq)]
pub struct MambaSpec {
    /// Channels.
    pub inner: usize,
    /// Places of a channel's state.
    pub places: usize,
    /// Tokens that the convolution sees, its own included.
    pub taps: usize,
    /// Elements that the steps of all channels are made from.
    pub step_rank: usize,
    /// What the convolution's results and the gate go through.
    pub activation: Activation,
    /// Whether the layers from and to the token's state have biases.
    pub bias: bool,
    /// Whether the convolution has a bias.
    pub conv_bias: bool,
    /// The norm of what makes steps, of inputs and of outputs.
    pub norm: Option<NormSpec>,
}

/// A state space whose steps are chosen by heads of channels (Mamba-2).
#[derive(Clone, Debug, PartialEq)]
pub struct Mamba2Spec {
    /// Heads.
    pub heads: usize,
    /// Channels of a head.
    pub head: usize,
    /// Groups of heads that share inputs and outputs.
    pub groups: usize,
    /// Places of a channel's state.
    pub places: usize,
    /// Tokens that the convolution sees, its own included.
    pub taps: usize,
    /// What the convolution's results go through.
    pub activation: Activation,
    /// Whether the layers from and to the token's state have biases.
    pub bias: bool,
    /// Whether the convolution has a bias.
    pub conv_bias: bool,
    /// The least and the largest step.
    pub steps: (f32, f32),
    /// The norm of the gated results.
    pub norm: NormSpec,
}

/// Means of the values so far, weighed by keys that fade (RWKV's time mix).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeMixSpec {
    /// Elements of keys and values.
    pub inner: usize,
}

/// A feed-forward part that sees the token before too (RWKV's channel mix).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelMixSpec {
    /// Elements between its matrices.
    pub inner: usize,
}
