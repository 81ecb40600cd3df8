//! What a model is made of, as nested values: everything that code needs to know, and no name of a model type.

pub use accel_backends::tensor::{Activation, RopeStyle};

/// A decoder of text.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderSpec {
    /// Its layers.
    pub stack: StackSpec,
    /// What is made of the stack's states.
    pub head: HeadSpec,
    /// The most positions of a sequence.
    pub context: usize,
}

/// What is made of a stack's states: a class of checkpoints has one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadSpec {
    /// Nothing: the states themselves.
    States,
    /// Logits of the next token.
    NextToken {
        /// Whether the matrix is the table of embeddings.
        tied: bool,
    },
    /// Logits of a sequence's labels, from its last token that is no padding.
    SequenceLabels {
        /// How many labels.
        labels: usize,
        /// The id of padding, where there is one.
        padding: Option<i64>,
    },
    /// Logits of each token's labels.
    TokenLabels {
        /// How many labels.
        labels: usize,
    },
    /// For each token, logits of being the first and the last of an answer.
    Span,
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
}
