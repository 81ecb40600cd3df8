//! What a model is made of, as nested values: everything that code needs to know, and no name of a model type.

pub mod codec;
pub mod detection;
pub mod dit;
pub mod dual_encoder;
pub mod encoder;
pub mod encoder_decoder;
pub mod multimodal;
pub mod retrieval;
pub mod segmentation;
pub mod speech;
mod state_space;
pub mod time_series;
pub mod unet;
pub mod vae;
pub mod vision;
pub mod vision_language;

pub use accel_backends::tensor::{Activation, NormKind, RopeStyle};
pub use state_space::{ChannelMixSpec, Mamba2Spec, MambaSpec, TimeMixSpec};

use crate::rules::Rules;
use detection::{DeformableSpec, DetectionSpec};
use dual_encoder::DualEncoderSpec;
use encoder::EncoderSpec;
use encoder_decoder::EncoderDecoderSpec;
use multimodal::MultimodalSpec;
use retrieval::RetrievalSpec;
use segmentation::SegmentationSpec;
use vision::VisionSpec;
use vision_language::VisionLanguageSpec;

/// A model of one of the families.
#[derive(Clone, Debug)]
pub enum Spec {
    /// A decoder of text.
    Decoder(Box<DecoderSpec>),
    /// An encoder of text.
    Encoder(Box<EncoderSpec>),
    /// An encoder with a decoder of text.
    EncoderDecoder(Box<EncoderDecoderSpec>),
    /// A transformer of diffusion.
    Dit(Box<dit::DitSpec>),
    /// A codec of sound.
    Codec(Box<codec::CodecSpec>),
    /// A model of speech.
    Speech(Box<speech::SpeechSpec>),
    /// A model of time series.
    TimeSeries(Box<time_series::TimeSeriesSpec>),
    /// A network that tells what to take off a noisy image.
    Unet(Box<unet::UnetSpec>),
    /// An autoencoder of images.
    Vae(Box<vae::VaeSpec>),
    /// A model of images.
    Vision(Box<VisionSpec>),
    /// A model that finds objects in images.
    Detection(Box<DetectionSpec>),
    /// A model that finds objects by looking at points of images.
    Deformable(Box<DeformableSpec>),
    /// A model that cuts out what prompts point at.
    Segmentation(Box<SegmentationSpec>),
    /// A model that compares images and texts.
    DualEncoder(Box<DualEncoderSpec>),
    /// A model that writes about images.
    VisionLanguage(Box<VisionLanguageSpec>),
    /// A decoder of text that reads images among its tokens.
    Multimodal(Box<MultimodalSpec>),
    /// A generator of text that reads documents.
    Retrieval(Box<RetrievalSpec>),
}

/// A model that is part of another.
#[derive(Clone, Debug)]
pub struct PartSpec<S> {
    /// What it is made of.
    pub spec: S,
    /// Where its weights lie: the first of these whose base the file has.
    pub rules: Vec<Rules>,
}

/// A decoder of text.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderSpec {
    /// Its layers.
    pub stack: StackSpec,
    /// What is made of the stack's states.
    pub head: HeadSpec,
    /// What else is answered of each sequence.
    pub summary: Option<SummarySpec>,
    /// The most positions of a sequence.
    pub context: usize,
}

/// What is made of one state of a sequence, beside what the head makes of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SummarySpec {
    /// Which state.
    pub of: SummaryOf,
    /// Elements that a layer makes of it, where there is one.
    pub outputs: Option<usize>,
    /// What follows.
    pub activation: Activation,
}

/// Which state stands for a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SummaryOf {
    /// The first.
    First,
    /// The last, be it padding.
    Last,
    /// The mean of all, padding too.
    Mean,
    /// The one that is asked for, or else the last.
    Place,
}

/// What is made of a stack's states: a class of checkpoints has one kind.
#[derive(Clone, Debug, PartialEq)]
pub enum HeadSpec {
    /// Nothing: the states themselves.
    States,
    /// Logits of the next token.
    NextToken(LogitsSpec),
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

/// Logits of tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitsSpec {
    /// Whether the matrix is the table of embeddings.
    pub tied: bool,
    /// Whether there is a bias.
    pub bias: bool,
    /// Factor of the logits.
    pub scale: f32,
    /// Logits are bent to stay below it.
    pub softcap: Option<f32>,
}

impl LogitsSpec {
    /// Plain ones.
    pub fn plain(tied: bool) -> Self {
        Self { tied, bias: false, scale: 1.0, softcap: None }
    }
}

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
    /// Queries, keys and values are kept within it.
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
}

impl MlpSpec {
    /// A gated one.
    pub fn gated(inner: usize, activation: Activation) -> Self {
        Self { inner, activation, gated: true, bias: false, joined: false }
    }

    /// One without gate, with biases.
    pub fn plain(inner: usize, activation: Activation) -> Self {
        Self { inner, activation, gated: false, bias: true, joined: false }
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
    /// Whether scores have a bias for choosing, not for weighing.
    pub correction: bool,
    /// Experts are chosen from the best of so many groups.
    pub groups: Option<RouterGroups>,
    /// Of each sequence an expert takes so many tokens at most; others go through none.
    pub capacity: Option<usize>,
}

impl RouterSpec {
    /// So many experts by their scores alone.
    pub fn plain(chosen: usize, scores: RouterScores) -> Self {
        Self { chosen, scores, normalised: false, scale: 1.0, correction: false, groups: None, capacity: None }
    }
}

/// What makes weights of scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouterScores {
    /// Their softmax over all experts.
    Softmax,
    /// Their sigmoids.
    Sigmoid,
    /// The softmax of those chosen.
    SoftmaxOfChosen,
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
}
