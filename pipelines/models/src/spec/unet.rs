//! What networks of blocks over images are made of: the U of a diffusion, and the two halves of an autoencoder.

use super::{Activation, StackSpec};

/// A network in the shape of a U, which tells what to take off a noisy image.
#[derive(Clone, Debug, PartialEq)]
pub struct UnetSpec {
    /// Channels of the image that comes in.
    pub inputs: usize,
    /// Channels of the one that goes out.
    pub outputs: usize,
    /// Taps of the first convolution, on each side.
    pub first_taps: usize,
    /// Taps of the last.
    pub last_taps: usize,
    /// Whether values from 0 to 1 are stretched to -1 to 1 first.
    pub centred: bool,
    /// What is made of the moment.
    pub moment: MomentSpec,
    /// Layers over it.
    pub time: TimeEmbedSpec,
    /// What is added for a class.
    pub class: ClassSpec,
    /// Whether that is put beside the moment's embedding and not added.
    pub class_beside: bool,
    /// What is added for texts, images and sizes.
    pub addition: AdditionSpec,
    /// What the sum goes through.
    pub time_activation: Activation,
    /// What the blocks attend to.
    pub source: SourceSpec,
    /// Blocks on the way down.
    pub down: Vec<BlockSpec>,
    /// The block in the middle.
    pub mid: Option<BlockSpec>,
    /// Blocks on the way up.
    pub up: Vec<BlockSpec>,
    /// Channels of the first and the last block.
    pub channels: usize,
    /// Groups of the last norm.
    pub groups: usize,
    /// Added to variances.
    pub eps: f32,
    /// What the last norm's states go through.
    pub activation: Activation,
}

/// Sines and cosines of a number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WavesSpec {
    /// How many together.
    pub width: usize,
    /// Which come first.
    pub cosines_first: bool,
    /// The slowest wave's step is so much nearer to the full period.
    pub shift: f32,
}

/// What is made of a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MomentSpec {
    /// Waves of falling frequencies.
    Waves(WavesSpec),
    /// Waves of learned frequencies (<https://arxiv.org/abs/2006.10739>).
    Learned(WavesSpec),
}

/// Two layers over a vector.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimeEmbedSpec {
    /// Elements of the vector.
    pub inputs: usize,
    /// Elements of the result.
    pub width: usize,
    /// Between the layers.
    pub activation: Activation,
    /// After them.
    pub last: Activation,
    /// Elements of a condition that may be added to the vector.
    pub condition: Option<usize>,
}

impl TimeEmbedSpec {
    /// A plain one.
    pub fn plain(inputs: usize, width: usize) -> Self {
        Self { inputs, width, activation: Activation::Silu, last: Activation::Identity, condition: None }
    }
}

/// What is added for a class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ClassSpec {
    /// Nothing.
    None,
    /// A row of a table.
    Table(usize),
    /// What is made of a moment, with layers of its own.
    Moment(TimeEmbedSpec),
    /// The input itself.
    Identity,
    /// Two layers over the input.
    Layers(TimeEmbedSpec),
    /// One layer over so many elements.
    Linear(usize),
}

/// What is added to the moment's embedding for texts, images and sizes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AdditionSpec {
    /// Nothing.
    None,
    /// A summary of the text's states, of so many elements, by attention of so many heads.
    Text {
        /// Elements of a state.
        inputs: usize,
        /// Heads.
        heads: usize,
    },
    /// Of a text's and an image's embedding, of so many elements each.
    TextImage(usize),
    /// Of a text's embedding and the waves of some numbers.
    TextTime(WavesSpec, TimeEmbedSpec),
    /// Of an image's embedding of so many elements.
    Image(usize),
}

/// What blocks attend to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SourceSpec {
    /// The states of a text as they come.
    AsIs,
    /// Those through a layer.
    Text {
        /// Their elements.
        inputs: usize,
        /// The layer's outputs.
        width: usize,
    },
    /// Some made of an image's embedding, then those of the text through a layer.
    TextImage {
        /// Elements of the text's.
        inputs: usize,
        /// Elements of the image's, and of a state that is attended to.
        width: usize,
        /// How many are made of an image.
        count: usize,
    },
    /// Some made of an image's embedding.
    Image {
        /// Its elements.
        inputs: usize,
        /// Elements of a state.
        width: usize,
        /// How many are made.
        count: usize,
    },
}

/// Layers over images of one size, and a way to the next size.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockSpec {
    /// The layers.
    pub layers: Vec<BlockLayerSpec>,
    /// The way to the next size.
    pub resample: Option<ResampleSpec>,
}

/// A layer of a block.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockLayerSpec {
    /// What each place and its neighbours go through.
    pub resnet: ResnetSpec,
    /// How places see each other and the source.
    pub mixer: Option<ImageMixerSpec>,
}

/// From one size of images to the next.
#[derive(Clone, Debug, PartialEq)]
pub enum ResampleSpec {
    /// To half, by a convolution.
    Down {
        /// Channels.
        channels: usize,
        /// Zeros before and after.
        padding: (usize, usize),
    },
    /// To double, each place as four, then a convolution.
    Up {
        /// Channels.
        channels: usize,
    },
    /// Within a residual part.
    Resnet(ResnetSpec),
}

/// A residual part of two convolutions (<https://arxiv.org/abs/1512.03385>).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResnetSpec {
    /// Channels that come in.
    pub inputs: usize,
    /// Channels that go out.
    pub outputs: usize,
    /// Groups of its norms.
    pub groups: usize,
    /// Added to variances.
    pub eps: f32,
    /// After the norms.
    pub activation: Activation,
    /// What the moment adds.
    pub time: Option<ResnetTimeSpec>,
    /// The sum is divided by it.
    pub divisor: f32,
    /// Whether the image changes its size on the way.
    pub size: ResnetSize,
}

/// What a moment adds to a residual part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResnetTimeSpec {
    /// Elements of the moment's embedding.
    pub width: usize,
    /// Whether it scales and shifts what the second norm gives, or is added before.
    pub scale_shift: bool,
    /// Whether it goes through the activation first.
    pub activated: bool,
}

/// Whether an image changes its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResnetSize {
    /// It stays.
    Same,
    /// To half, by means.
    Half,
    /// To double, each place as four.
    Double,
}

/// How places of an image see each other.
#[derive(Clone, Debug, PartialEq)]
pub enum ImageMixerSpec {
    /// By one attention.
    Attention(ImageAttentionSpec),
    /// By a stack of layers.
    Stack(Box<ImageStackSpec>),
}

/// Attention of places to each other, and perhaps to the source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ImageAttentionSpec {
    /// Channels.
    pub channels: usize,
    /// Heads.
    pub heads: usize,
    /// Groups of the norm before.
    pub groups: usize,
    /// Added to variances.
    pub eps: f32,
    /// Elements of the source's states, where places see them too.
    pub source: Option<usize>,
    /// Whether places see nothing but the source.
    pub source_only: bool,
    /// Whether the source's states are normalised.
    pub source_norm: SourceNormSpec,
    /// The sum is divided by it.
    pub divisor: f32,
}

/// A norm of the source's states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceNormSpec {
    /// None.
    None,
    /// Of each state.
    Layer,
    /// Of groups of channels, over all states.
    Groups(usize),
}

/// A stack of layers over the places of an image.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageStackSpec {
    /// Channels of the image.
    pub channels: usize,
    /// Groups of the norm before.
    pub groups: usize,
    /// Whether the ways in and out of the stack are convolutions of one tap, or the same as linear layers.
    pub convolutions: bool,
    /// The layers.
    pub stack: StackSpec,
}
