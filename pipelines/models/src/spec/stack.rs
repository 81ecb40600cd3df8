//! What stacks of layers are made of: embeddings, layers, norms, and how layers are put together.

use super::{Activation, AttentionSpec, FfnSpec, LatentSpec, Mamba2Spec, MambaSpec, NormKind, RopeSpec, TimeMixSpec};

/// A stack of layers.
#[derive(Clone, Debug, PartialEq)]
pub struct StackSpec {
    /// Elements of a token's state.
    pub hidden: usize,
    /// What makes states of tokens.
    pub embed: EmbedSpec,
    /// Whether a token sees later ones.
    pub causal: bool,
    /// The ways of turning positions, which layers refer to by index.
    pub ropes: Vec<RopeSpec>,
    /// What distance adds to the scores of all layers.
    pub bias: BiasSpec,
    /// The layers.
    pub layers: Vec<LayerSpec>,
    /// The norm after the last layer.
    pub final_norm: Option<NormSpec>,
}

/// What makes states of tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbedSpec {
    /// Tokens in the vocabulary; 0 where states are made of something else than tokens.
    pub vocabulary: usize,
    /// Elements of an embedding; where they are not those of a state, a linear layer follows.
    pub width: usize,
    /// Factor of the embeddings.
    pub scale: f32,
    /// What is added for positions.
    pub positions: PositionSpec,
    /// What is added for types of tokens.
    pub types: TypeSpec,
    /// The norm of the sum.
    pub norm: Option<NormSpec>,
    /// Where the norm is, if there is a linear layer.
    pub projection: ProjectionSpec,
    /// Whether padding's states are put to 0.
    pub blank_padding: bool,
    /// What neighbours add to what the first layer gives.
    pub ngrams: Option<NgramSpec>,
}

/// The linear layer from embeddings to states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProjectionSpec {
    /// After the norm, with a bias.
    #[default]
    AfterNorm,
    /// Before the norm, without a bias.
    BeforeNorm,
}

/// A convolution of the first layer's input, which is added to what that layer gives (<https://arxiv.org/abs/2006.03654>).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NgramSpec {
    /// How many neighbours it sees, the token itself among them.
    pub taps: usize,
    /// Channels are split into so many groups.
    pub groups: usize,
    /// What follows.
    pub activation: Activation,
    /// The norm of the sum.
    pub norm: NormSpec,
}

impl EmbedSpec {
    /// Nothing: the states of a stack are made of something else than tokens.
    pub fn none(width: usize) -> Self {
        Self::plain(0, width)
    }

    /// A table alone.
    pub fn plain(vocabulary: usize, width: usize) -> Self {
        Self {
            vocabulary,
            width,
            scale: 1.0,
            positions: PositionSpec::None,
            types: TypeSpec::None,
            norm: None,
            projection: ProjectionSpec::AfterNorm,
            blank_padding: false,
            ngrams: None,
        }
    }
}

/// What is added to embeddings for types of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TypeSpec {
    /// Nothing.
    None,
    /// Rows of a table of so many types.
    Table(usize),
    /// Rows of the table of tokens, where types are given.
    Tokens,
}

/// What is added to embeddings for positions.
#[derive(Clone, Debug, PartialEq)]
pub enum PositionSpec {
    /// Nothing.
    None,
    /// Rows of a table that was learned.
    Learned {
        /// Its rows.
        rows: usize,
        /// The row of the first position.
        first: usize,
        /// The id of padding, where positions count only tokens that are none.
        padding: Option<i64>,
    },
    /// Sines, then cosines, of falling frequencies.
    Sinusoids {
        /// The first position's number.
        first: usize,
        /// The id of padding, where positions count only tokens that are none, and nothing is added to padding.
        padding: Option<i64>,
        /// Whether the slowest wave has the whole period of 10,000, or the step before it.
        layout: SinusoidLayout,
    },
}

/// How sinusoids lie in an embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinusoidLayout {
    /// All sines, then all cosines, frequencies by `10000^(-i / (half - 1))`.
    Halves,
    /// All sines, then all cosines, frequencies by `10000^(-2i / width)`.
    HalvesEven,
    /// Sine and cosine in turn, frequencies by `10000^(-2i / width)`.
    Pairs,
}

/// What distance adds to the scores.
#[derive(Clone, Debug, PartialEq)]
pub enum BiasSpec {
    /// Nothing.
    None,
    /// A slope of each head times the key's position (<https://arxiv.org/abs/2108.12409>).
    Alibi {
        /// Heads of queries.
        heads: usize,
        /// Factor of the slopes.
        scale: f32,
    },
    /// A learned number of each head and bucket of distances (<https://arxiv.org/abs/1910.10683>).
    Buckets {
        /// Heads of queries.
        heads: usize,
        /// How many buckets.
        buckets: usize,
        /// Distances from here on share the last bucket.
        largest: usize,
    },
    /// Not a number but a learned vector of each distance, which layers multiply with their own queries and keys.
    Vectors(DistancesSpec),
}

/// Learned vectors of distances.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DistancesSpec {
    /// Half of the vectors; those beyond them share the outermost.
    pub reach: usize,
    /// Half of either side is one distance each; the others are longer and longer ones, up to this. None where all are one.
    pub largest: Option<usize>,
    /// The norm of the vectors.
    pub norm: Option<NormSpec>,
}

/// A layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// How tokens see each other.
    pub mixer: MixerSpec,
    /// How they see what the sequence is made from.
    pub cross: Option<AttentionSpec>,
    /// What each goes through.
    pub ffn: FfnSpec,
    /// The norms.
    pub norms: NormsSpec,
    /// How the parts add up.
    pub residual: ResidualSpec,
    /// Factor of what a part adds.
    pub residual_scale: f32,
}

/// The norms of a layer, each where it has one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NormsSpec {
    /// Before the mixer.
    pub mixer: Option<NormSpec>,
    /// Of what the mixer gives.
    pub mixer_out: Option<NormSpec>,
    /// After the mixer was added.
    pub mixer_sum: Option<NormSpec>,
    /// Before attention across.
    pub cross: Option<NormSpec>,
    /// After attention across was added.
    pub cross_sum: Option<NormSpec>,
    /// Before the feed-forward part.
    pub ffn: Option<NormSpec>,
    /// Of what the feed-forward part gives.
    pub ffn_out: Option<NormSpec>,
    /// After the feed-forward part was added.
    pub ffn_sum: Option<NormSpec>,
}

impl NormsSpec {
    /// One before each part.
    pub fn before(norm: NormSpec) -> Self {
        Self { mixer: Some(norm), ffn: Some(norm), ..Self::default() }
    }

    /// One after each part was added.
    pub fn after(norm: NormSpec) -> Self {
        Self { mixer_sum: Some(norm), ffn_sum: Some(norm), ..Self::default() }
    }
}

/// How the parts of a layer add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResidualSpec {
    /// The feed-forward part sees what the mixer added.
    Sequential,
    /// The same, and each part is added to what its norm gave.
    FromNorm,
    /// Both see the layer's input, each by its own norm, or the feed-forward part by the mixer's where it has none.
    Parallel,
}

/// A norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormSpec {
    /// What is normalised.
    pub kind: NormKind,
    /// Added to the mean square or the variance.
    pub eps: f32,
    /// Whether it has a weight.
    pub weight: bool,
    /// Whether it has a bias.
    pub bias: bool,
}

impl NormSpec {
    /// By the root of the mean square, with a weight.
    pub fn rms(eps: f64) -> Self {
        Self { kind: NormKind::RootMeanSquare, eps: eps as f32, weight: true, bias: false }
    }

    /// To mean 0 and variance 1, with weight and bias.
    pub fn layer(eps: f64) -> Self {
        Self { kind: NormKind::Layer, eps: eps as f32, weight: true, bias: true }
    }
}

/// How tokens see each other.
#[derive(Clone, Debug, PartialEq)]
pub enum MixerSpec {
    /// By attention.
    Attention(AttentionSpec),
    /// Not at all: they see what the sequence is made from.
    Across(AttentionSpec),
    /// By attention whose queries, keys and values come from narrow states.
    Latent(LatentSpec),
    /// By a state space with a step to a channel.
    Mamba(MambaSpec),
    /// By a state space with a step to a head.
    Mamba2(Mamba2Spec),
    /// By means that fade.
    TimeMix(TimeMixSpec),
}
