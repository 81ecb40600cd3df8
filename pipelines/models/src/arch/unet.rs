//! Networks in the shape of a U, one file each, and what the blocks of Diffusers share.

pub mod unet2d_condition;

use crate::ModelError;
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::unet::{
    BlockLayerSpec, BlockSpec, ImageAttentionSpec, ImageMixerSpec, ImageStackSpec, ResampleSpec, ResnetSize,
    ResnetSpec, ResnetTimeSpec, SourceNormSpec,
};
use crate::spec::{
    Activation, AttentionSpec, BiasSpec, EmbedSpec, FfnSpec, LayerSpec, MixerSpec, MlpSpec, NormSpec, NormsSpec,
    ResidualSpec, StackSpec,
};

/// Blocks of a network, and layers of a block.
pub(super) const IMAGE_BLOCKS_MAX: usize = 64;

/// The ends of names in blocks (`resnet.py`, `attention_processor.py`, `attention.py`), some of which older checkpoints
/// call otherwise.
pub(super) const BLOCKS: &[Rule] = &[
    Rule::new("*.first_norm", "*.norm1"),
    Rule::new("*.first", "*.conv1"),
    Rule::new("*.time", "*.time_emb_proj"),
    Rule::new("*.second_norm", "*.norm2"),
    Rule::new("*.second", "*.conv2"),
    Rule::new("*.shortcut", "*.conv_shortcut"),
    Rule::new("*.convolution", "*.conv"),
    Rule::new("*.norm", "*.group_norm"),
    Rule::new("*.q", "*.to_q"),
    Rule::new("*.q", "*.query"),
    Rule::new("*.k", "*.to_k"),
    Rule::new("*.k", "*.key"),
    Rule::new("*.v", "*.to_v"),
    Rule::new("*.v", "*.value"),
    Rule::new("*.out", "*.to_out.0"),
    Rule::new("*.out", "*.proj_attn"),
    Rule::new("*.source_k", "*.add_k_proj"),
    Rule::new("*.source_v", "*.add_v_proj"),
    Rule::new("*.source_norm", "*.norm_cross"),
    Rule::new("*.in", "*.proj_in"),
    Rule::new("*.out", "*.proj_out"),
    Rule::new("*.layers.{}.attn_norm", "*.transformer_blocks.{}.norm1"),
    Rule::new("*.layers.{}.attn.q", "*.transformer_blocks.{}.attn1.to_q"),
    Rule::new("*.layers.{}.attn.k", "*.transformer_blocks.{}.attn1.to_k"),
    Rule::new("*.layers.{}.attn.v", "*.transformer_blocks.{}.attn1.to_v"),
    Rule::new("*.layers.{}.attn.out", "*.transformer_blocks.{}.attn1.to_out.0"),
    Rule::new("*.layers.{}.cross_norm", "*.transformer_blocks.{}.norm2"),
    Rule::new("*.layers.{}.cross.q", "*.transformer_blocks.{}.attn2.to_q"),
    Rule::new("*.layers.{}.cross.k", "*.transformer_blocks.{}.attn2.to_k"),
    Rule::new("*.layers.{}.cross.v", "*.transformer_blocks.{}.attn2.to_v"),
    Rule::new("*.layers.{}.cross.out", "*.transformer_blocks.{}.attn2.to_out.0"),
    Rule::new("*.layers.{}.mlp_norm", "*.transformer_blocks.{}.norm3"),
    Rule::first_half("*.layers.{}.mlp.up", "*.transformer_blocks.{}.ff.net.0.proj"),
    Rule::second_half("*.layers.{}.mlp.gate", "*.transformer_blocks.{}.ff.net.0.proj"),
    Rule::new("*.layers.{}.mlp.down", "*.transformer_blocks.{}.ff.net.2"),
];

/// So many layers of a block, the first of which changes the channels.
pub(super) fn resnet_layers(
    resnet: ResnetSpec,
    inputs: usize,
    outputs: usize,
    layers: usize,
    mixer: Option<&ImageMixerSpec>,
) -> Vec<BlockLayerSpec> {
    let layer = |number: usize| BlockLayerSpec {
        resnet: ResnetSpec { inputs: if number == 0 { inputs } else { outputs }, outputs, ..resnet },
        mixer: mixer.cloned(),
    };
    (0..layers).map(layer).collect()
}

/// The names of a whole network, whose ends [`BLOCKS`] has.
const UNET: &[Rule] = &[
    Rule::new("frequencies.weight", "time_proj.weight"),
    Rule::new("moment.condition", "time_embedding.cond_proj"),
    Rule::new("moment.up", "time_embedding.linear_1"),
    Rule::new("moment.down", "time_embedding.linear_2"),
    Rule::new("class.up", "class_embedding.linear_1"),
    Rule::new("class.down", "class_embedding.linear_2"),
    Rule::new("class", "class_embedding"),
    Rule::new("addition.up", "add_embedding.linear_1"),
    Rule::new("addition.down", "add_embedding.linear_2"),
    Rule::new("addition.before", "add_embedding.norm1"),
    Rule::new("addition.position", "add_embedding.pool.positional_embedding"),
    Rule::new("addition.q", "add_embedding.pool.q_proj"),
    Rule::new("addition.k", "add_embedding.pool.k_proj"),
    Rule::new("addition.v", "add_embedding.pool.v_proj"),
    Rule::new("addition.out", "add_embedding.proj"),
    Rule::new("addition.after", "add_embedding.norm2"),
    Rule::new("addition.text", "add_embedding.text_proj"),
    Rule::new("addition.text_norm", "add_embedding.text_norm"),
    Rule::new("addition.image", "add_embedding.image_proj"),
    Rule::new("addition.image_norm", "add_embedding.image_norm"),
    Rule::new("source.text", "encoder_hid_proj.text_proj"),
    Rule::new("source.text", "encoder_hid_proj"),
    Rule::new("source.image", "encoder_hid_proj.image_embeds"),
    Rule::new("source.norm", "encoder_hid_proj.norm"),
    Rule::new("first", "conv_in"),
    Rule::new("down.{}.resnets.", "down_blocks.{}.resnets."),
    Rule::new("down.{}.mixers.", "down_blocks.{}.attentions."),
    Rule::new("down.{}.downsample.", "down_blocks.{}.downsamplers.0."),
    Rule::new("mid.resnets.", "mid_block.resnets."),
    Rule::new("mid.mixers.", "mid_block.attentions."),
    Rule::new("up.{}.resnets.", "up_blocks.{}.resnets."),
    Rule::new("up.{}.mixers.", "up_blocks.{}.attentions."),
    Rule::new("up.{}.upsample.", "up_blocks.{}.upsamplers.0."),
    Rule::new("norm", "conv_norm_out"),
    Rule::new("last", "conv_out"),
];

/// The blocks of a network, and the elements of what they attend to.
struct Blocks {
    down: Vec<BlockSpec>,
    mid: Option<BlockSpec>,
    up: Vec<BlockSpec>,
    source: usize,
}

/// How the layers of a block see, and how it comes to the next size.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Residual parts alone.
    Plain,
    /// The same, and the way to the next size is one too.
    Resnet,
    /// One attention.
    Attention,
    /// One attention, of the source too.
    Source,
    /// A stack of layers.
    Stack,
}

const KINDS: [(&str, &str, Kind); 5] = [
    ("DownBlock2D", "UpBlock2D", Kind::Plain),
    ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D", Kind::Resnet),
    ("AttnDownBlock2D", "AttnUpBlock2D", Kind::Attention),
    ("SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D", Kind::Source),
    ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D", Kind::Stack),
];

/// The kinds of blocks that a key lists.
fn kinds(
    config: &Config,
    key: &str,
    name: fn(&(&'static str, &'static str, Kind)) -> &'static str,
    default: &[&str],
) -> Result<Vec<Kind>, ModelError> {
    let mut found = config.texts(key)?;
    if found.is_empty() {
        found = default.iter().map(|&kind| kind.to_owned()).collect();
    }
    let supported = || KINDS.iter().map(name).collect::<Vec<_>>().join(", ");
    let unknown = |found| ModelError::Unsupported { what: config.path(key), found, supported: supported() };
    let kind = |found: String| match KINDS.iter().find(|kind| name(kind) == found) {
        Some((_, _, kind)) => Ok(*kind),
        None => Err(unknown(found)),
    };
    found.into_iter().map(kind).collect()
}

/// What the blocks of one size share.
struct Level {
    resnet: ResnetSpec,
    channels: usize,
    /// Heads, or elements of a head: the key means one or the other, by the kind of block.
    heads: usize,
    source: usize,
    source_only: bool,
    source_norm: SourceNormSpec,
    linear: bool,
}

impl Level {
    fn mixer(&self, kind: Kind, depth: usize) -> Option<ImageMixerSpec> {
        let attention = ImageAttentionSpec {
            channels: self.channels,
            heads: (self.channels / self.heads).max(1),
            groups: self.resnet.groups,
            eps: 1e-5,
            source: None,
            source_only: false,
            source_norm: self.source_norm,
            divisor: 1.0,
        };
        match kind {
            Kind::Plain | Kind::Resnet => None,
            Kind::Attention => {
                Some(ImageMixerSpec::Attention(ImageAttentionSpec { eps: self.resnet.eps, ..attention }))
            }
            Kind::Source => Some(ImageMixerSpec::Attention(ImageAttentionSpec {
                source: Some(self.source),
                source_only: self.source_only,
                ..attention
            })),
            Kind::Stack => Some(ImageMixerSpec::Stack(Box::new(ImageStackSpec {
                channels: self.channels,
                groups: self.resnet.groups,
                convolutions: !self.linear,
                stack: self.stack(depth),
            }))),
        }
    }

    /// `BasicTransformerBlock` of `attention.py`, some times.
    fn stack(&self, depth: usize) -> StackSpec {
        let own = AttentionSpec {
            out_bias: true,
            ..AttentionSpec::plain(self.heads, self.heads, (self.channels / self.heads).max(1))
        };
        let across = AttentionSpec { source: Some(self.source), ..own.clone() };
        let norm = Some(NormSpec::layer(1e-5));
        let layer = LayerSpec {
            mixer: if self.source_only { MixerSpec::Across(across.clone()) } else { MixerSpec::Attention(own) },
            cross: Some(across),
            ffn: FfnSpec::Dense(MlpSpec { bias: true, ..MlpSpec::gated(4 * self.channels, Activation::Gelu) }),
            norms: NormsSpec { mixer: norm, cross: norm, ffn: norm, ..NormsSpec::default() },
            residual: ResidualSpec::Sequential,
            residual_scale: 1.0,
        };
        StackSpec {
            hidden: self.channels,
            embed: EmbedSpec::none(self.channels),
            causal: false,
            ropes: Vec::new(),
            bias: BiasSpec::None,
            layers: vec![layer; depth],
            final_norm: None,
        }
    }

    /// A block whose layers have so many inputs each.
    fn block(&self, kind: Kind, inputs: &[usize], depths: &[usize], resample: Option<ResampleSpec>) -> BlockSpec {
        let depth = |number: usize| depths.get(number).or(depths.last()).copied().unwrap_or(1);
        let layer = |(number, &inputs): (usize, &usize)| BlockLayerSpec {
            resnet: ResnetSpec { inputs, outputs: self.channels, ..self.resnet },
            mixer: self.mixer(kind, depth(number)),
        };
        let within = |size| ResnetSpec { inputs: self.channels, outputs: self.channels, size, ..self.resnet };
        let resample = resample.map(|plain| match (kind, &plain) {
            (Kind::Resnet | Kind::Source, ResampleSpec::Down { .. }) => ResampleSpec::Resnet(within(ResnetSize::Half)),
            (Kind::Resnet | Kind::Source, _) => ResampleSpec::Resnet(within(ResnetSize::Double)),
            _ => plain,
        });
        BlockSpec { layers: inputs.iter().enumerate().map(layer).collect(), resample }
    }
}

/// What the blocks of `unet_2d_blocks.py` are made of; `time` is the width of the moment's embedding.
fn blocks(config: &Config, channels: &[usize], time: usize, act: Activation) -> Result<Blocks, ModelError> {
    let count = channels.len();
    let [stack, plain] = [KINDS[4], KINDS[0]];
    let down_kinds = kinds(config, "down_block_types", |kind| kind.0, &[stack.0, stack.0, stack.0, plain.0])?;
    let up_kinds = kinds(config, "up_block_types", |kind| kind.1, &[plain.1, stack.1, stack.1, stack.1])?;
    let layers = config.sizes_of("layers_per_block", count, 2)?;
    if [down_kinds.len(), up_kinds.len()] != [count; 2] {
        return Err(config.wrong("block_out_channels", "as many sizes as there are blocks").into());
    }
    let depths = depths(config, "transformer_layers_per_block", count)?.unwrap_or_else(|| vec![vec![1]; count]);
    let up_depths = depths_up(config, &depths, count)?;
    if layers.iter().chain(depths.iter().chain(&up_depths).flatten()).chain([&count]).any(|&n| n > IMAGE_BLOCKS_MAX) {
        return Err(config.wrong("layers_per_block", format!("at most {IMAGE_BLOCKS_MAX} blocks and layers")).into());
    }
    refuse(config, "dual_cross_attention", config.truth_or("dual_cross_attention", false)?)?;
    refuse(config, "num_attention_heads", config.has("num_attention_heads"))?;
    refuse(config, "attention_type", config.optional_text("attention_type")?.is_some_and(|kind| kind != "default"))?;
    let heads = config.sizes_of("attention_head_dim", count, 8)?;
    let sources = config.sizes_of("cross_attention_dim", count, 1280)?;
    let source_only = config.truths_of("only_cross_attention", count, false)?;
    let scale_shift = config.optional_text("resnet_time_scale_shift")?.is_some_and(|kind| kind != "default");
    let skip = config.truth_or("resnet_skip_time_act", false)?;
    let divisor = config.optional_number("resnet_out_scale_factor")?.unwrap_or(1.0) as f32;
    let linear = config.truth_or("use_linear_projection", false)?;
    let source_norm = source_norm(config)?;
    let groups = config.optional_size("norm_num_groups")?.unwrap_or(32);
    let eps = config.optional_number("norm_eps")?.unwrap_or(1e-5) as f32;
    let level = |place: usize, kind: Kind| {
        let simple = matches!(kind, Kind::Resnet | Kind::Source);
        let resnet = ResnetSpec {
            inputs: channels[place],
            outputs: channels[place],
            groups,
            eps,
            activation: act,
            time: Some(ResnetTimeSpec { width: time, scale_shift, activated: !(simple && skip) }),
            divisor: if simple { divisor } else { 1.0 },
            size: ResnetSize::Same,
        };
        let (channels, heads, source, source_only) =
            (channels[place], heads[place], sources[place], source_only[place]);
        Level { resnet, channels, heads, source, source_only, source_norm, linear }
    };
    if kinds_stack(&down_kinds, &up_kinds) && channels.iter().zip(&heads).any(|(channels, heads)| channels % heads > 0)
    {
        return Err(config.wrong("attention_head_dim", "divisors of block_out_channels").into());
    }
    let pad = config.optional_integer("downsample_padding")?.unwrap_or(1).unsigned_abs() as usize;
    let padding = if pad == 0 { (0, 1) } else { (pad, pad) };
    let down = (0..count).map(|place| {
        let smaller = ResampleSpec::Down { channels: channels[place], padding };
        let mut inputs = vec![channels[place]; layers[place]];
        inputs[0] = channels[place.saturating_sub(1)];
        let resample = (place + 1 < count).then_some(smaller);
        level(place, down_kinds[place]).block(down_kinds[place], &inputs, &depths[place], resample)
    });
    let up = (0..count).rev().enumerate().map(|(number, place)| {
        let larger = ResampleSpec::Up { channels: channels[place] };
        // Beside each layer's states come those of a layer on the way down; the last are of the size before.
        let mut inputs = vec![2 * channels[place]; layers[place] + 1];
        inputs[0] += channels[(place + 1).min(count - 1)];
        inputs[0] -= channels[place];
        inputs[layers[place]] += channels[place.saturating_sub(1)];
        inputs[layers[place]] -= channels[place];
        let resample = (place > 0).then_some(larger);
        level(place, up_kinds[number]).block(up_kinds[number], &inputs, &up_depths[number], resample)
    });
    Ok(Blocks {
        mid: mid(config, |kind| level(count - 1, kind), depths[count - 1].first().copied().unwrap_or(1))?,
        down: down.collect(),
        up: up.collect(),
        source: sources[0],
    })
}

fn kinds_stack(down: &[Kind], up: &[Kind]) -> bool {
    down.iter().chain(up).any(|kind| *kind != Kind::Plain && *kind != Kind::Resnet)
}

/// How many layers each stack of each block has.
fn depths(config: &Config, key: &str, count: usize) -> Result<Option<Vec<Vec<usize>>>, ModelError> {
    if config.has(key) && !config.is_list(key) {
        return Ok(Some(vec![vec![config.size(key)?]; count]));
    }
    match config.nested_sizes(key)? {
        Some(depths) if depths.len() != count => Err(config.wrong(key, format!("{count} sizes")).into()),
        depths => Ok(depths),
    }
}

fn depths_up(config: &Config, down: &[Vec<usize>], count: usize) -> Result<Vec<Vec<usize>>, ModelError> {
    let given = depths(config, "reverse_transformer_layers_per_block", count)?;
    Ok(given.unwrap_or_else(|| down.iter().rev().cloned().collect()))
}

/// The block in the middle.
fn mid(config: &Config, level: impl Fn(Kind) -> Level, depth: usize) -> Result<Option<BlockSpec>, ModelError> {
    const KEY: &str = "mid_block_type";
    if config.is_null(KEY) {
        return Ok(None);
    }
    let found = config.optional_text(KEY)?.unwrap_or_else(|| "UNetMidBlock2DCrossAttn".to_owned());
    let kind = match found.as_str() {
        "UNetMidBlock2DCrossAttn" => Kind::Stack,
        "UNetMidBlock2DSimpleCrossAttn" => Kind::Source,
        "UNetMidBlock2D" => Kind::Plain,
        _ => {
            let supported = "UNetMidBlock2DCrossAttn, UNetMidBlock2DSimpleCrossAttn, UNetMidBlock2D".into();
            return Err(ModelError::Unsupported { what: config.path(KEY), found, supported });
        }
    };
    let mut level = level(kind);
    level.resnet.divisor = config.optional_number("mid_block_scale_factor")?.unwrap_or(1.0) as f32;
    let only = config.is_list("only_cross_attention");
    let default = !only && config.truth_or("only_cross_attention", false)?;
    level.source_only = kind == Kind::Source && config.truth_or("mid_block_only_cross_attention", default)?;
    let mut block = level.block(kind, &[level.channels], &[depth], None);
    if kind != Kind::Plain {
        block.layers.push(BlockLayerSpec { mixer: None, ..block.layers[0].clone() });
    }
    Ok(Some(block))
}

fn source_norm(config: &Config) -> Result<SourceNormSpec, ModelError> {
    Ok(match config.optional_text("cross_attention_norm")?.as_deref() {
        None => SourceNormSpec::None,
        Some("layer_norm") => SourceNormSpec::Layer,
        Some("group_norm") => SourceNormSpec::Groups(32),
        Some(_) => return Err(config.wrong("cross_attention_norm", "layer_norm or group_norm").into()),
    })
}

fn refuse(config: &Config, key: &str, found: bool) -> Result<(), ModelError> {
    if !found {
        return Ok(());
    }
    let (what, found) = (config.path(key), "anything but the default".to_owned());
    Err(ModelError::Unsupported { what, found, supported: "the default".into() })
}
