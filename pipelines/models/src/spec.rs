//! What a model is made of, as nested values: everything that code needs to know, and no name of a model type.

mod attention;
pub mod codec;
pub mod detection;
pub mod dit;
pub mod dual_encoder;
pub mod encoder;
pub mod encoder_decoder;
mod ffn;
pub mod multimodal;
pub mod retrieval;
pub mod segmentation;
pub mod speech;
mod stack;
mod state_space;
pub mod time_series;
pub mod unet;
pub mod vae;
pub mod vision;
pub mod vision_language;

pub use accel_backends::tensor::{Activation, NormKind, RopeStyle};
pub use attention::{
    AttentionSpec, LatentSpec, ProjectedSpec, QkNormSpec, QkvLayout, RelativeSpec, RopeAxes, RopeScaling, RopeSpec,
};
pub use ffn::{FfnSpec, MlpSpec, MoeSpec, RouterGroups, RouterScores, RouterSpec, SharedExpertSpec};
pub use stack::{
    BiasSpec, DistancesSpec, EmbedSpec, LayerSpec, MixerSpec, NgramSpec, NormSpec, NormsSpec, PositionSpec,
    ProjectionSpec, ResidualSpec, SinusoidLayout, StackSpec, TypeSpec,
};
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
