//! What a model is made of, as nested values: everything that code needs to know, and no name of a model type.

pub use accel_backends::tensor::{Activation, RopeStyle};

/// A decoder of text.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderSpec {
    /// Its layers.
    pub stack: StackSpec,
    /// Where logits come from.
    pub head: HeadSpec,
    /// The most positions of a sequence.
    pub context: usize,
}

/// Where logits come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadSpec {
    /// The table of embeddings.
    Tied,
    /// A matrix of its own.
    Own,
}

/// A stack of layers.
#[derive(Clone, Debug, PartialEq)]
pub struct StackSpec {
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// Elements of a token's state.
    pub hidden: usize,
    /// The ways of turning positions, which layers refer to by index.
    pub ropes: Vec<RopeSpec>,
    /// The layers.
    pub layers: Vec<LayerSpec>,
    /// The norm after the last layer.
    pub final_norm: NormSpec,
}

/// A layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// The norm before attention.
    pub attention_norm: NormSpec,
    /// How tokens see each other.
    pub attention: AttentionSpec,
    /// The norm before the feed-forward part.
    pub mlp_norm: NormSpec,
    /// The feed-forward part.
    pub mlp: MlpSpec,
}

/// A root-mean-square norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormSpec {
    /// Added to the mean square.
    pub eps: f32,
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
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Whether the output has a bias.
    pub out_bias: bool,
    /// How positions turn: an index into the stack's ropes.
    pub rope: usize,
    /// How many of the last positions a token sees; none for all.
    pub window: Option<usize>,
}

/// A gated feed-forward part.
#[derive(Clone, Debug, PartialEq)]
pub struct MlpSpec {
    /// Elements between its matrices.
    pub inner: usize,
    /// What the gate goes through.
    pub activation: Activation,
    /// Whether its matrices have biases.
    pub bias: bool,
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
}
