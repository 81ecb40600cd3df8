//! What models of images are made of.

use super::{Activation, MlpSpec, NormSpec, StackSpec};

/// A model that answers something about an image.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionSpec {
    /// What sees the image.
    pub backbone: BackboneSpec,
    /// What is made of what it sees.
    pub head: VisionHead,
    /// The part of a larger model that the backbone is, where it is one.
    pub part: Option<&'static str>,
}

/// What is made of what a backbone sees.
#[derive(Clone, Debug, PartialEq)]
pub enum VisionHead {
    /// The states themselves.
    States {
        /// How they are answered.
        shape: StatesShape,
        /// What one state of the image is made of, where it is answered too.
        pool: Option<PoolSpec>,
    },
    /// Logits of labels.
    Labels {
        /// What they are made of.
        pool: PoolSpec,
        /// How many labels.
        labels: usize,
    },
    /// The pixels of an image of which parts were hidden: each state becomes a square of them.
    Pixels {
        /// Pixels along a side of the square.
        side: usize,
        /// Channels of a pixel.
        channels: usize,
    },
    /// Maps of some stages.
    Maps {
        /// Which: 0 is what the first stage is given.
        stages: Vec<usize>,
        /// The norm of each.
        norm: Option<NormSpec>,
    },
}

/// How the states of an image are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatesShape {
    /// One after the other.
    Sequence,
    /// As a map.
    Map,
    /// As a map, and the one state of the image as a map of one place.
    Maps,
}

/// What one state of an image is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolSpec {
    /// Which states.
    pub of: PoolOf,
    /// The norm of what is made of them.
    pub norm: Option<NormSpec>,
    /// The layer after it: how many elements it makes, and what they go through.
    pub dense: Option<(usize, Activation)>,
}

impl PoolSpec {
    /// States as they are.
    pub fn plain(of: PoolOf) -> Self {
        Self { of, norm: None, dense: None }
    }
}

/// Which states one of an image is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolOf {
    /// The first, which stands for no place of the image.
    First,
    /// The mean of those that stand for places.
    Places,
}

/// What makes states of an image.
#[derive(Clone, Debug, PartialEq)]
pub enum BackboneSpec {
    /// Patches are tokens of a stack (<https://arxiv.org/abs/2010.11929>).
    Patches(PatchesSpec),
    /// Convolutions of each channel by itself, between layers of each place by itself (<https://arxiv.org/abs/2201.03545>).
    Depthwise(DepthwiseSpec),
    /// Patches that see each other within windows, in some layers all of them (<https://arxiv.org/abs/2203.16527>).
    Plain(PlainSpec),
    /// Attention within windows that move (<https://arxiv.org/abs/2103.14030>).
    Windows(WindowsSpec),
    /// Convolutions whose results are added to what came in (<https://arxiv.org/abs/1512.03385>).
    Residual(ResidualNetSpec),
}

impl BackboneSpec {
    /// Elements of a state.
    pub fn width(&self) -> usize {
        match self {
            Self::Patches(spec) => spec.stack.hidden,
            Self::Depthwise(spec) => spec.stages.last().map_or(spec.embed.width, |stage| stage.width),
            Self::Plain(spec) => spec.neck,
            Self::Windows(spec) => spec.width(spec.stages.len().saturating_sub(1)),
            Self::Residual(spec) => spec.stages.last().map_or(spec.stem, |stage| stage.width),
        }
    }

    /// Elements of the states of a stage: 0 is what the first is given.
    pub fn stage_width(&self, stage: usize) -> usize {
        match self {
            Self::Patches(spec) => spec.stack.hidden,
            Self::Depthwise(spec) => {
                stage.checked_sub(1).and_then(|stage| spec.stages.get(stage)).map_or(spec.embed.width, |it| it.width)
            }
            Self::Plain(spec) => spec.embed.width,
            Self::Windows(spec) => spec.width(stage.saturating_sub(1)),
            Self::Residual(spec) => {
                stage.checked_sub(1).and_then(|stage| spec.stages.get(stage)).map_or(spec.stem, |it| it.width)
            }
        }
    }
}

/// What makes tokens of the patches of an image.
#[derive(Clone, Debug, PartialEq)]
pub struct PatchSpec {
    /// Channels of the image.
    pub channels: usize,
    /// Height and width of the image.
    pub image: ImageSize,
    /// Height and width of a patch.
    pub patch: [usize; 2],
    /// Elements of a token.
    pub width: usize,
    /// Whether there is a bias.
    pub bias: bool,
    /// The norm of the patches' tokens.
    pub patch_norm: Option<NormSpec>,
    /// Whether there is a token for hidden patches.
    pub mask: bool,
    /// Whether a token that stands for no place comes first.
    pub class: bool,
    /// Whether each place has an embedding.
    pub positions: bool,
    /// The norm of all tokens.
    pub norm: Option<NormSpec>,
}

impl PatchSpec {
    /// How many tokens an image of that height and width becomes.
    pub fn tokens(&self, image: [usize; 2]) -> usize {
        let count = |axis: usize| match self.image {
            ImageSize::Padded => image[axis].div_ceil(self.patch[axis].max(1)),
            ImageSize::Fixed(_) | ImageSize::Cut => image[axis] / self.patch[axis].max(1),
        };
        count(0).saturating_mul(count(1)).saturating_add(usize::from(self.class))
    }
}

/// The sizes of images that a model takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageSize {
    /// This height and width, or others if the embeddings of places are stretched on demand.
    Fixed([usize; 2]),
    /// Any; what makes no whole patch is filled up with zeros.
    Padded,
    /// Any; what makes no whole patch is left out.
    Cut,
}

/// Patches as tokens of a stack.
#[derive(Clone, Debug, PartialEq)]
pub struct PatchesSpec {
    /// What makes tokens.
    pub embed: PatchSpec,
    /// The stack.
    pub stack: StackSpec,
}

/// Convolutions of each channel by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct DepthwiseSpec {
    /// What makes the first states.
    pub embed: PatchSpec,
    /// The stages, each but the first with half the height and width of the one before.
    pub stages: Vec<StageSpec>,
    /// The norm between stages.
    pub between: NormSpec,
    /// The norm within a block.
    pub norm: NormSpec,
    /// What a block's wider states go through.
    pub activation: Activation,
    /// Whether channels of what a block gives are scaled.
    pub scaled: bool,
    /// Whether a block's wider states are divided by their size in the whole map (<https://arxiv.org/abs/2301.00808>).
    pub response_norm: bool,
}

/// Blocks that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageSpec {
    /// Elements of a state.
    pub width: usize,
    /// How many blocks.
    pub blocks: usize,
}

/// Attention within windows that move.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowsSpec {
    /// What makes the first states.
    pub embed: PatchSpec,
    /// Of each stage its blocks and its heads; each has twice the elements of the one before, in half the height and width.
    pub stages: Vec<WindowStageSpec>,
    /// Places along a window's side.
    pub window: usize,
    /// Whether windows move even where one holds the whole map.
    pub always_moved: bool,
    /// The norm before each part of a block.
    pub norm: NormSpec,
    /// The norm of four states that become one.
    pub merge_norm: NormSpec,
    /// The norm after the last stage.
    pub final_norm: Option<NormSpec>,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
}

impl WindowsSpec {
    /// Elements of a state of a stage.
    pub fn width(&self, stage: usize) -> usize {
        self.embed.width << stage
    }

    /// The attention of a block with so many heads.
    pub fn attention(&self, heads: usize) -> WindowAttentionSpec {
        let distance = DistanceSpec::Numbers;
        WindowAttentionSpec { heads, window: self.window, qkv_bias: self.qkv_bias, joined: false, distance }
    }
}

/// Attention within windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowAttentionSpec {
    /// Heads.
    pub heads: usize,
    /// Places along a window's side.
    pub window: usize,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether they lie in one tensor, one after the other.
    pub joined: bool,
    /// What the distance of two places adds to their score.
    pub distance: DistanceSpec,
}

/// What the distance of two places adds to their score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DistanceSpec {
    /// Nothing.
    None,
    /// A number of each head.
    Numbers,
    /// The product of the query with vectors of the distance, in rows and in columns.
    Vectors,
}

/// Patches that see each other within windows that do not move.
#[derive(Clone, Debug, PartialEq)]
pub struct PlainSpec {
    /// What makes the first states.
    pub embed: PatchSpec,
    /// The attention of each layer.
    pub layers: Vec<WindowAttentionSpec>,
    /// What each state goes through after attention.
    pub mlp: MlpSpec,
    /// The norm before each part of a layer.
    pub norm: NormSpec,
    /// Channels that convolutions after the last layer make.
    pub neck: usize,
}

/// A stage of windows.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowStageSpec {
    /// How many blocks.
    pub blocks: usize,
    /// Heads of their attention.
    pub heads: usize,
    /// What each state goes through after attention.
    pub mlp: MlpSpec,
}

/// Convolutions whose results are added to what came in.
#[derive(Clone, Debug, PartialEq)]
pub struct ResidualNetSpec {
    /// Channels of the image.
    pub channels: usize,
    /// Channels of what the first stage is given, in a quarter of the image's height and width.
    pub stem: usize,
    /// The stages, each but the first with half the height and width of the one before.
    pub stages: Vec<StageSpec>,
    /// Whether the first has half the height and width of what it is given, too.
    pub halved_first: bool,
    /// How many times smaller than the image a map may become, where that is bounded: stages beyond keep their height and
    /// width, and their convolutions see as far by gaps (<https://arxiv.org/abs/1606.00915>).
    pub stride_max: Option<usize>,
    /// The blocks.
    pub block: ResidualBlock,
    /// What the stem's states and the sums go through.
    pub activation: Activation,
}

/// What a block computes before it is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResidualBlock {
    /// Two convolutions.
    Basic,
    /// Three, of which that in the middle has a quarter of the channels.
    Bottleneck {
        /// Whether the first halves height and width where they are halved, not the second.
        halved_early: bool,
    },
}
