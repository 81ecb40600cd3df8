//! What models of time series are made of, that read a series in patches.

use super::{AttentionSpec, MlpSpec, NormSpec};

/// A model of time series: several channels of numbers, each cut into patches.
#[derive(Clone, Debug, PartialEq)]
pub struct TimeSeriesSpec {
    /// Moments of a series.
    pub length: usize,
    /// Its channels.
    pub channels: usize,
    /// How series are brought to one size first.
    pub scaling: ScalingSpec,
    /// How they are cut.
    pub patches: SeriesPatchesSpec,
    /// The input that tells which numbers were observed, where the class has one.
    pub observed: Option<&'static str>,
    /// Patches that the model does not see.
    pub hidden_patches: Option<HiddenPatchesSpec>,
    /// Elements of a patch's state.
    pub hidden: usize,
    /// Whether one layer makes states of the patches of all channels, or each channel has its own.
    pub shared_embedding: bool,
    /// Whether learned positions are added.
    pub positions: bool,
    /// Whether a learned state stands before those of the patches.
    pub first: bool,
    /// The layers.
    pub layers: Vec<SeriesLayerSpec>,
    /// Whether states are told at last how their series was scaled.
    pub told_scale: bool,
    /// What is made of the states.
    pub head: SeriesHead,
    /// What that is called.
    pub answer: &'static str,
    /// Whether the states are answered too.
    pub states: bool,
}

/// How series are brought to one size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ScalingSpec {
    /// Not at all.
    None,
    /// Divided by the mean of magnitudes.
    Mean {
        /// The least divisor.
        least: f32,
        /// The divisor of a channel of which nothing was seen; none for the channel's mean over the batch.
        unseen: Option<f32>,
    },
    /// To mean 0 and variance 1.
    Deviation {
        /// Added to the variance.
        least: f32,
    },
}

/// How a series is cut into patches, so that the last ends with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeriesPatchesSpec {
    /// How many.
    pub count: usize,
    /// Moments of each.
    pub length: usize,
    /// From one to the next.
    pub stride: usize,
}

/// Patches at the end that the model does not see.
#[derive(Clone, Debug, PartialEq)]
pub struct HiddenPatchesSpec {
    /// How many.
    pub last: usize,
    /// Channels of which it sees all.
    pub seen: Vec<usize>,
    /// What it sees instead.
    pub value: f32,
}

/// A layer.
#[derive(Clone, Debug, PartialEq)]
pub enum SeriesLayerSpec {
    /// By attention.
    Attention(SeriesAttentionSpec),
    /// By feed-forward parts along each dimension.
    Mixer(SeriesMixerSpec),
}

/// A layer by feed-forward parts: along channels, along patches, and along the elements of states.
#[derive(Clone, Debug, PartialEq)]
pub struct SeriesMixerSpec {
    /// The norm of each part.
    pub norm: SeriesNormSpec,
    /// By how much the parts are wider between their matrices.
    pub growth: usize,
    /// Whether each has a gate.
    pub gated: bool,
    /// Whether there is one along channels.
    pub across_channels: bool,
    /// How patches see each other beside their part.
    pub attention: Option<AttentionSpec>,
}

/// A layer by attention.
#[derive(Clone, Debug, PartialEq)]
pub struct SeriesAttentionSpec {
    /// How patches of a channel see each other.
    pub attention: AttentionSpec,
    /// Whether patches of one time see each other then, by the same attention.
    pub across_channels: bool,
    /// What each goes through.
    pub mlp: MlpSpec,
    /// The norm of each part.
    pub norm: SeriesNormSpec,
    /// Whether it stands before its part, or after what the part adds up to.
    pub norm_before: bool,
}

/// A norm of states.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SeriesNormSpec {
    /// Of each element by what was seen in training.
    Batch {
        /// Added to the variance.
        eps: f32,
    },
    /// Of each state.
    Layer(NormSpec),
}

/// What is made of the states of a series.
#[derive(Clone, Debug, PartialEq)]
pub enum SeriesHead {
    /// Nothing: the states themselves.
    States,
    /// The patches, those too that were not seen.
    Patches,
    /// Logits of the series' labels.
    Labels {
        /// How many.
        labels: usize,
        /// One state of a channel's.
        pool: SeriesPool,
        /// What they lie between.
        range: Option<[f32; 2]>,
    },
    /// Numbers of the whole series.
    Numbers {
        /// How many.
        numbers: usize,
        /// One state of a channel's.
        pool: SeriesPool,
        /// What tells them.
        told: DistributionSpec,
        /// What they lie between, where a single number tells them.
        range: Option<[f32; 2]>,
    },
    /// What comes next in each channel.
    Forecast {
        /// How many moments.
        moments: usize,
        /// One state of a channel's.
        pool: SeriesPool,
        /// What tells them.
        told: DistributionSpec,
        /// The channels that are told; none for all.
        channels: Option<Vec<usize>>,
        /// Whether logits of a negative binomial distribution count the series' scale, or do where the future is known.
        scaled_logits: bool,
    },
}

/// How the states of a channel become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeriesPool {
    /// The first stands for all.
    First,
    /// By their mean.
    Mean,
    /// By the largest of each element.
    Largest,
    /// The last stands for all.
    Last,
    /// One after the other.
    All,
    /// The first element of each, then the second of each, and so on.
    Elements,
}

/// What tells a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DistributionSpec {
    /// The number itself.
    Point,
    /// Student's t: degrees of freedom, location, scale.
    StudentT,
    /// A normal distribution: location, scale.
    Normal,
    /// A negative binomial distribution: total count, logits.
    NegativeBinomial,
}

impl DistributionSpec {
    /// How many numbers tell one.
    pub fn parameters(self) -> usize {
        match self {
            Self::Point => 1,
            Self::StudentT => 3,
            Self::Normal | Self::NegativeBinomial => 2,
        }
    }
}
