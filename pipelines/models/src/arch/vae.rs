//! Autoencoders of images, one file each, and what their configurations share.

pub mod autoencoder_kl;

use super::decoder::activation;
use super::unet::{IMAGE_BLOCKS_MAX, resnet_layers};
use crate::ModelError;
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::unet::{
    BlockLayerSpec, BlockSpec, ImageAttentionSpec, ImageMixerSpec, ResampleSpec, ResnetSize, ResnetSpec, SourceNormSpec,
};
use crate::spec::vae::VaeHalfSpec;

/// The names of both halves, whose ends [`super::unet::BLOCKS`] has.
const HALVES: &[Rule] = &[
    Rule::new("encoder.first", "encoder.conv_in"),
    Rule::new("encoder.blocks.{}.resnets.", "encoder.down_blocks.{}.resnets."),
    Rule::new("encoder.blocks.{}.mixers.", "encoder.down_blocks.{}.attentions."),
    Rule::new("encoder.blocks.{}.downsample.", "encoder.down_blocks.{}.downsamplers.0."),
    Rule::new("encoder.mid.resnets.", "encoder.mid_block.resnets."),
    Rule::new("encoder.mid.mixers.", "encoder.mid_block.attentions."),
    Rule::new("encoder.norm", "encoder.conv_norm_out"),
    Rule::new("encoder.last", "encoder.conv_out"),
    Rule::new("decoder.first", "decoder.conv_in"),
    Rule::new("decoder.blocks.{}.resnets.", "decoder.up_blocks.{}.resnets."),
    Rule::new("decoder.blocks.{}.mixers.", "decoder.up_blocks.{}.attentions."),
    Rule::new("decoder.blocks.{}.upsample.", "decoder.up_blocks.{}.upsamplers.0."),
    Rule::new("decoder.mid.resnets.", "decoder.mid_block.resnets."),
    Rule::new("decoder.mid.mixers.", "decoder.mid_block.attentions."),
    Rule::new("decoder.norm", "decoder.conv_norm_out"),
    Rule::new("decoder.last", "decoder.conv_out"),
    Rule::new("after_encoder", "quant_conv"),
    Rule::new("before_decoder", "post_quant_conv"),
];

/// What Diffusers' encoder and decoder (`autoencoders/vae.py`) are made of.
fn halves(config: &Config) -> Result<[VaeHalfSpec; 2], ModelError> {
    let channels = config.optional_sizes("block_out_channels")?.unwrap_or_else(|| vec![64]);
    let layers = config.optional_size("layers_per_block")?.unwrap_or(1);
    if channels.is_empty() || channels.len() > IMAGE_BLOCKS_MAX || layers > IMAGE_BLOCKS_MAX {
        return Err(config.wrong("block_out_channels", format!("at most {IMAGE_BLOCKS_MAX} blocks and layers")).into());
    }
    let resnet = ResnetSpec {
        inputs: channels[0],
        outputs: channels[0],
        groups: config.optional_size("norm_num_groups")?.unwrap_or(32),
        eps: 1e-6,
        activation: activation(config, "act_fn", "silu")?,
        time: None,
        divisor: 1.0,
        size: ResnetSize::Same,
    };
    let attention = |channels: usize| {
        ImageMixerSpec::Attention(ImageAttentionSpec {
            channels,
            heads: 1,
            groups: resnet.groups,
            eps: resnet.eps,
            source: None,
            source_only: false,
            source_norm: SourceNormSpec::None,
            divisor: 1.0,
        })
    };
    let last = *channels.last().unwrap_or(&64);
    let seen = config.truth_or("mid_block_add_attention", true)?;
    let middle = ResnetSpec { inputs: last, outputs: last, ..resnet };
    let mid = BlockSpec {
        layers: vec![
            BlockLayerSpec { resnet: middle, mixer: seen.then(|| attention(last)) },
            BlockLayerSpec { resnet: middle, mixer: None },
        ],
        resample: None,
    };
    let half = |blocks, first, last| VaeHalfSpec {
        blocks,
        mid: mid.clone(),
        first,
        last,
        groups: resnet.groups,
        eps: resnet.eps,
        activation: crate::spec::Activation::Silu,
    };
    let mixers = |key: &str, plain: &str, attending: &str| {
        let kinds = config.texts(key)?;
        let kinds = if kinds.is_empty() { vec![plain.to_owned(); channels.len()] } else { kinds };
        let known = kinds.len() == channels.len() && kinds.iter().all(|kind| kind == plain || kind == attending);
        let expected = || config.wrong(key, format!("{} of {plain}, {attending}", channels.len()));
        let seen: Vec<bool> = kinds.iter().map(|kind| kind == attending).collect();
        if known { Ok(seen) } else { Err(expected()) }
    };
    let block = |inputs, outputs, layers, seen: bool, resample| BlockSpec {
        layers: resnet_layers(resnet, inputs, outputs, layers, seen.then(|| attention(outputs)).as_ref()),
        resample,
    };
    let down_mixers = mixers("down_block_types", "DownEncoderBlock2D", "AttnDownEncoderBlock2D")?;
    let down = (0..channels.len()).map(|place| {
        let smaller = ResampleSpec::Down { channels: channels[place], padding: (0, 1) };
        let resample = (place + 1 < channels.len()).then_some(smaller);
        block(channels[place.saturating_sub(1)], channels[place], layers, down_mixers[place], resample)
    });
    let up_mixers = mixers("up_block_types", "UpDecoderBlock2D", "AttnUpDecoderBlock2D")?;
    let up = (0..channels.len()).rev().enumerate().map(|(number, place)| {
        let resample = (place > 0).then_some(ResampleSpec::Up { channels: channels[place] });
        let inputs = channels[(place + 1).min(channels.len() - 1)];
        block(inputs, channels[place], layers + 1, up_mixers[number], resample)
    });
    Ok([half(down.collect(), channels[0], last), half(up.collect(), last, channels[0])])
}
