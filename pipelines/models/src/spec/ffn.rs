//! What feed-forward parts are made of, mixtures of experts among them.

use super::{Activation, ChannelMixSpec};

/// What each token goes through.
#[derive(Clone, Debug, PartialEq)]
pub enum FfnSpec {
    /// Nothing.
    None,
    /// One feed-forward part.
    Dense(MlpSpec),
    /// Some of many.
    Experts(Box<MoeSpec>),
    /// One that sees the token before too.
    ChannelMix(ChannelMixSpec),
}

/// A feed-forward part.
#[derive(Clone, Debug, PartialEq)]
pub struct MlpSpec {
    /// Elements between its matrices.
    pub inner: usize,
    /// What the gate goes through, or the first layer where there is none.
    pub activation: Activation,
    /// Whether there is a gate.
    pub gated: bool,
    /// Whether its matrices have biases.
    pub bias: bool,
    /// Whether gate and up lie in one tensor, one after the other.
    pub joined: bool,
    /// The gate is at most this, and the other is within it either way and has 1 added.
    pub limit: Option<f32>,
}

impl MlpSpec {
    /// A gated one.
    pub fn gated(inner: usize, activation: Activation) -> Self {
        Self { inner, activation, gated: true, bias: false, joined: false, limit: None }
    }

    /// One without gate, with biases.
    pub fn plain(inner: usize, activation: Activation) -> Self {
        Self { inner, activation, gated: false, bias: true, joined: false, limit: None }
    }
}

/// Feed-forward parts of which each token goes through some.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeSpec {
    /// How many there are.
    pub experts: usize,
    /// Each of them.
    pub expert: MlpSpec,
    /// How they are chosen.
    pub router: RouterSpec,
    /// One for all tokens, beside those that are chosen.
    pub shared: Option<SharedExpertSpec>,
}

/// A feed-forward part for all tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct SharedExpertSpec {
    /// The part.
    pub mlp: MlpSpec,
    /// Whether a sigmoid of the state weighs it.
    pub gated: bool,
}

/// How experts are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct RouterSpec {
    /// How many of a token.
    pub chosen: usize,
    /// What makes weights of scores.
    pub scores: RouterScores,
    /// Whether the weights of those chosen are made to sum to 1.
    pub normalised: bool,
    /// Factor of the weights.
    pub scale: f32,
    /// Whether its layer has a bias.
    pub bias: bool,
    /// Whether scores have a bias for choosing, not for weighing.
    pub correction: bool,
    /// Experts are chosen from the best of so many groups.
    pub groups: Option<RouterGroups>,
    /// Of each sequence an expert takes so many tokens at most; others go through none.
    pub capacity: Option<usize>,
    /// Whether padding goes through none.
    pub skips_padding: bool,
}

impl RouterSpec {
    /// So many experts by their scores alone.
    pub fn plain(chosen: usize, scores: RouterScores) -> Self {
        Self {
            chosen,
            scores,
            normalised: false,
            scale: 1.0,
            bias: false,
            correction: false,
            groups: None,
            capacity: None,
            skips_padding: false,
        }
    }
}

/// What makes weights of scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RouterScores {
    /// Their softmax over all experts.
    Softmax,
    /// Their sigmoids.
    Sigmoid,
    /// The softmax of those chosen.
    SoftmaxOfChosen,
    /// One is chosen after the other, each with its softmax among those left whose scores are near its own
    /// (<https://arxiv.org/abs/2409.12136>).
    SparseMixer {
        /// Half of how far a score may be from its own, as a part of the larger of the two.
        jitter: f32,
    },
}

/// Groups of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouterGroups {
    /// How many.
    pub groups: usize,
    /// How many of them a token chooses from.
    pub chosen: usize,
    /// A group is as good as so many of its best together.
    pub best: usize,
}
