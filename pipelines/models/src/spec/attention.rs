//! What attention is made of, and how it turns positions.

use super::{NormSpec, RopeStyle};

/// Latent attention.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentSpec {
    /// Heads.
    pub heads: usize,
    /// Elements of the state that queries come from, where it is not the token's own.
    pub query_rank: Option<usize>,
    /// Elements of the state that keys and values come from.
    pub kv_rank: usize,
    /// Elements of a query and a key that do not turn.
    pub plain: usize,
    /// Elements of a query and a key that turn.
    pub turned: usize,
    /// Elements of a value.
    pub value_head: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// How positions turn: an index into the stack's ropes.
    pub rope: usize,
    /// Whether the layers from and to the token's state have biases.
    pub bias: bool,
    /// Added to the mean square of narrow states.
    pub norm_eps: f64,
}

/// Attention with grouped queries.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// How queries, keys and values lie in the file.
    pub layout: QkvLayout,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Whether keys have one too, where queries and values do.
    pub key_bias: bool,
    /// Whether the output has a bias.
    pub out_bias: bool,
    /// How positions turn: an index into the stack's ropes.
    pub rope: Option<usize>,
    /// A key is seen only nearer than this; none for all.
    pub window: Option<usize>,
    /// Scores are bent to stay below it.
    pub softcap: Option<f32>,
    /// Norms of queries and keys.
    pub qk_norm: Option<QkNormSpec>,
    /// Whether each head has a sink.
    pub sinks: bool,
    /// Queries, keys and values are kept within it, after their norms.
    pub clip: Option<f32>,
    /// Elements of what keys and values are made from, where it is not the state itself.
    pub source: Option<usize>,
    /// Learned vectors of distances, whose products with queries are added to the scores.
    pub relative: Option<RelativeSpec>,
    /// Whether each token's own state says how much of what distance adds to its scores counts.
    pub bias_gate: bool,
    /// Whether padding sees all tokens alike, padding too, instead of those that are none.
    pub blind_padding: bool,
}

/// Vectors of distances that attention multiplies with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelativeSpec {
    /// A table of the layer's own, with one vector for all heads (<https://arxiv.org/abs/1803.02155>).
    Own {
        /// Distances are below it, either way.
        reach: usize,
        /// Whether the product with the key is added too.
        of_keys: bool,
    },
    /// The stack's, of which the layer makes what it makes of tokens (<https://arxiv.org/abs/2006.03654>).
    Shared {
        /// Keys, which queries are multiplied with.
        keys: ProjectedSpec,
        /// Queries, which keys are multiplied with.
        queries: ProjectedSpec,
    },
}

/// What a layer makes of vectors of distances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProjectedSpec {
    /// Nothing.
    No,
    /// The same that it makes of tokens.
    AsTokens,
    /// Something by a matrix of its own.
    Apart {
        /// Elements of a vector.
        hidden: usize,
    },
}

impl AttentionSpec {
    /// Plain attention: no biases, no turning, scaled by the root of a head's elements.
    pub fn plain(heads: usize, kv_heads: usize, head: usize) -> Self {
        Self {
            heads,
            kv_heads,
            head,
            scale: 1.0 / (head as f32).sqrt(),
            layout: QkvLayout::Apart,
            qkv_bias: false,
            key_bias: true,
            out_bias: false,
            rope: None,
            window: None,
            softcap: None,
            qk_norm: None,
            sinks: false,
            clip: None,
            source: None,
            relative: None,
            bias_gate: false,
            blind_padding: false,
        }
    }

    /// The same with biases everywhere.
    #[must_use]
    pub fn with_biases(self) -> Self {
        Self { qkv_bias: true, out_bias: true, ..self }
    }
}

/// How queries, keys and values lie in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkvLayout {
    /// In three tensors.
    Apart,
    /// In one: all queries, all keys, all values.
    Joined,
    /// In one: of each head of keys its queries, its key, its value.
    Interleaved,
}

/// Norms of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QkNormSpec {
    /// The norm.
    pub norm: NormSpec,
    /// Whether it takes all heads together, or each by itself with one weight for all.
    pub whole: bool,
}

/// How positions turn queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// The base of the frequencies.
    pub base: f64,
    /// Elements of a head that turn.
    pub rotated: usize,
    /// Which elements turn together.
    pub style: RopeStyle,
    /// How frequencies are stretched.
    pub scaling: RopeScaling,
    /// What positions are.
    pub axes: RopeAxes,
}

/// What the positions are that turn queries and keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RopeAxes {
    /// One number: how many tokens came before.
    One,
    /// A number on each axis of a place, each of which so many frequencies belong to, the fastest to the first
    /// (<https://arxiv.org/abs/2409.12191>).
    Split(Vec<usize>),
    /// A number on each of so many axes, each of which has all frequencies of its part of the head.
    Each(usize),
}

/// How frequencies are stretched for longer contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All by one factor.
    Linear {
        /// Frequencies are divided by it.
        factor: f64,
    },
    /// Slow ones by a factor, fast ones not at all, smoothly between: Llama 3.1.
    Llama3 {
        /// Slow frequencies are divided by it.
        factor: f64,
        /// Below so many turns in the original context a frequency is slow.
        low_turns: f64,
        /// Above so many it is fast.
        high_turns: f64,
        /// The context that the model was first trained on.
        original_context: f64,
    },
    /// Each by its own factor, which the file holds as the tensor `rope.factors`.
    Factors,
    /// By a larger base, the further a sequence goes beyond the context.
    Dynamic {
        /// The base grows so that contexts of this many times the length fit.
        factor: f64,
        /// The context that the model was trained on.
        context: f64,
    },
    /// Slow ones by a factor, fast ones not at all, along a ramp between: YaRN (<https://arxiv.org/abs/2309.00071>).
    Yarn {
        /// Slow frequencies are divided by it.
        factor: f64,
        /// The last and the first place that the ramp leaves as they are, among the frequencies.
        ramp: (f64, f64),
        /// Factor of sines and cosines.
        amplitude: f64,
    },
    /// Each by its own factor, of which long sequences have others: LongRoPE (<https://arxiv.org/abs/2402.13753>).
    Long {
        /// The factors up to the original context.
        short: Vec<f64>,
        /// The factors beyond it.
        long: Vec<f64>,
        /// The context that the model was first trained on.
        original_context: usize,
        /// Factor of sines and cosines.
        amplitude: f64,
    },
    /// In one of these ways, but with another factor of sines and cosines, of which long sequences have another still.
    Amplified {
        /// The way.
        scaling: Box<RopeScaling>,
        /// The context that the model was first trained on.
        original_context: usize,
        /// The factor up to it, and the factor beyond.
        amplitudes: [f64; 2],
    },
}

impl RopeScaling {
    /// What it does to frequencies alone.
    pub fn of_frequencies(&self) -> &Self {
        match self {
            Self::Amplified { scaling, .. } => scaling.of_frequencies(),
            other => other,
        }
    }
}
