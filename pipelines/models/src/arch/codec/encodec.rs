//! EnCodec (`transformers/models/encodec`; <https://arxiv.org/abs/2210.13438>).

use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::codec::{CodecLayerSpec, CodecSpec, ConvolutionNormSpec, PaddedConvolutionSpec, PaddingSpec};
use crate::spec::{Activation, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::Speech,
    hugging_face: HuggingFace {
        model_type: "encodec",
        classes: &[Class { name: "EncodecModel", head: HeadKind::States, base: "" }],
        spec,
        stack: STACK,
        heads: &[],
    },
    gguf: None,
};

const STACK: &[Rule] = &[
    Rule::new("encoder.{}.", "encoder.layers.{}."),
    Rule::new("decoder.{}.", "decoder.layers.{}."),
    Rule::new("*.convolution.magnitude", "*.conv.parametrizations.weight.original0"),
    Rule::new("*.convolution.magnitude", "*.conv.weight_g"),
    Rule::new("*.convolution.direction", "*.conv.parametrizations.weight.original1"),
    Rule::new("*.convolution.direction", "*.conv.weight_v"),
    Rule::new("*.convolution", "*.conv"),
    Rule::new("*.convolution.norm", "*.norm"),
    Rule::new("*.recurrent.{}.input.weight", "*.lstm.weight_ih_l{}"),
    Rule::new("*.recurrent.{}.input.bias", "*.lstm.bias_ih_l{}"),
    Rule::new("*.recurrent.{}.state.weight", "*.lstm.weight_hh_l{}"),
    Rule::new("*.recurrent.{}.state.bias", "*.lstm.bias_hh_l{}"),
    Rule::new("tables.{}", "quantizer.layers.{}.codebook.embed"),
];

/// Parts of one model; those in use have 4 ratios.
const PARTS_MAX: usize = 32;
/// Samples to a vector; those in use have 320.
const HOP_MAX: usize = 1 << 20;
/// Tables of one model; those in use have 32.
const TABLES_MAX: usize = 1024;
/// Samples of a piece; those in use have 48,000.
const PIECE_MAX: usize = 1 << 31;
/// Channels and places that a convolution sees; those in use have 1,024 and 7.
const REACH_MAX: usize = 1 << 24;

fn spec(config: &Config, _: HeadKind) -> Result<Spec, ModelError> {
    let or = |key: &str, default: usize| Ok::<_, ModelError>(config.optional_size(key)?.unwrap_or(default));
    let ratios = config.optional_sizes("upsampling_ratios")?.unwrap_or_else(|| vec![8, 5, 4, 2]);
    let (rate, rows, width) = (or("sampling_rate", 24_000)?, or("codebook_size", 1024)?, or("hidden_size", 128)?);
    let bandwidths = config.optional_numbers("target_bandwidths")?.unwrap_or_else(|| vec![1.5, 3.0, 6.0, 12.0, 24.0]);
    let Some(&largest) = bandwidths.last() else {
        return Err(config.wrong("target_bandwidths", "at least one number").into());
    };
    if !rows.is_power_of_two() {
        return Err(config.wrong("codebook_size", "a power of 2").into());
    }
    if or("codebook_dim", width)? != width {
        return Err(config.wrong("codebook_dim", format!("the {width} of hidden_size")).into());
    }
    let residuals = config.optional_count("num_residual_layers")?.unwrap_or(1);
    let recurrent = or("num_lstm_layers", 2)?;
    if ratios.len() > PARTS_MAX || residuals > PARTS_MAX || recurrent > PARTS_MAX {
        return Err(config.wrong("upsampling_ratios", format!("at most {PARTS_MAX} parts")).into());
    }
    let hop = ratios.iter().try_fold(1_usize, |hop, &ratio| hop.checked_mul(ratio).filter(|hop| *hop <= HOP_MAX));
    let hop = hop.ok_or_else(|| config.wrong("upsampling_ratios", format!("a product of at most {HOP_MAX}")))?;
    let table_bits = (rate.div_ceil(hop) * rows.ilog2() as usize) as f64;
    let tables = (1000.0 * largest / table_bits).floor() as usize;
    if !(1..=TABLES_MAX).contains(&tables) {
        let expected = format!("a last one that 1 to {TABLES_MAX} tables of {table_bits} bits a second make");
        return Err(config.wrong("target_bandwidths", expected).into());
    }
    let (encoder, decoder) = layers(config, &ratios, width, residuals, recurrent)?;
    Ok(Spec::Codec(Box::new(CodecSpec {
        normalised: config.truth_or("normalize", false)?,
        pieces: pieces(config, rate)?,
        encoder,
        decoder,
        tables,
        rows,
        width,
        table_bits,
        bandwidths,
    })))
}

/// Samples of a piece and from one to the next, where sounds are cut.
fn pieces(config: &Config, rate: usize) -> Result<Option<(usize, usize)>, ModelError> {
    let Some(seconds) = config.optional_number("chunk_length_s")? else { return Ok(None) };
    let length = (seconds * rate as f64) as usize;
    if !(1..=PIECE_MAX).contains(&length) {
        return Err(config.wrong("chunk_length_s", format!("1 to {PIECE_MAX} samples")).into());
    }
    match config.optional_number("overlap")? {
        Some(overlap) if (0.0..1.0).contains(&overlap) => {
            Ok(Some((length, (((1.0 - overlap) * length as f64) as usize).max(1))))
        }
        _ => Err(config.wrong("overlap", "a number from 0 to below 1, where there is a chunk_length_s").into()),
    }
}

fn layers(
    config: &Config,
    ratios: &[usize],
    width: usize,
    residuals: usize,
    recurrent: usize,
) -> Result<(Vec<CodecLayerSpec>, Vec<CodecLayerSpec>), ModelError> {
    use CodecLayerSpec::{Activation as Act, Convolution, Recurrent, Residual, Transposed};
    let or = |key: &str, default: usize| Ok::<_, ModelError>(config.optional_size(key)?.unwrap_or(default));
    let (sound, filters, taps) = (or("audio_channels", 1)?, or("num_filters", 32)?, or("kernel_size", 7)?);
    let (last_taps, inner_taps, growth) =
        (or("last_kernel_size", 7)?, or("residual_kernel_size", 3)?, or("dilation_growth_rate", 2)?);
    let compress = or("compress", 2)?;
    let wide = |key: &str, found: Option<usize>| match found.filter(|&found| found <= REACH_MAX) {
        Some(_) => Ok(()),
        None => Err(config.wrong(key, format!("a size that keeps layers below {REACH_MAX}"))),
    };
    wide("num_filters", filters.checked_shl(ratios.len() as u32))?;
    wide(
        "residual_kernel_size",
        growth.checked_pow((residuals as u32).saturating_sub(1)).and_then(|far| far.checked_mul(inner_taps)),
    )?;
    if filters < compress {
        return Err(config.wrong("compress", format!("at most the {filters} of num_filters")).into());
    }
    let causal = config.truth_or("use_causal_conv", true)?;
    let trimmed_at_end = config.optional_number("trim_right_ratio")?.unwrap_or(1.0);
    if !(0.0..=1.0).contains(&trimmed_at_end) || !causal && trimmed_at_end != 1.0 {
        return Err(config.wrong("trim_right_ratio", "0 to 1, and 1 where use_causal_conv is false").into());
    }
    let shortcut = config.truth_or("use_conv_shortcut", true)?;
    let plain = PaddedConvolutionSpec {
        inputs: 0,
        outputs: 0,
        taps: 1,
        stride: 1,
        dilation: 1,
        causal,
        padding: match config.optional_text("pad_mode")?.as_deref() {
            None | Some("reflect") => PaddingSpec::Mirrored,
            Some("constant") => PaddingSpec::Zeros,
            Some("replicate") => PaddingSpec::Repeated,
            Some(_) => return Err(config.wrong("pad_mode", "reflect, constant or replicate").into()),
        },
        trimmed_at_end,
        norm: match config.optional_text("norm_type")?.as_deref() {
            None | Some("weight_norm") => ConvolutionNormSpec::OfLength,
            Some("time_group_norm") => ConvolutionNormSpec::Everything,
            Some(_) => return Err(config.wrong("norm_type", "weight_norm or time_group_norm").into()),
        },
    };
    let convolution = |inputs, outputs, taps| PaddedConvolutionSpec { inputs, outputs, taps, ..plain };
    let act = || Act(Activation::Elu);
    let residual = |channels: usize, number: usize| {
        let inner = channels / compress;
        let dilation = growth.pow(number as u32);
        let wide = PaddedConvolutionSpec { dilation, ..convolution(channels, inner, inner_taps) };
        Residual {
            activation: Activation::Elu,
            convolutions: vec![wide, convolution(inner, channels, 1)],
            shortcut: shortcut.then(|| convolution(channels, channels, 1)),
        }
    };
    let mut encoder = vec![Convolution(convolution(sound, filters, taps))];
    let mut channels = filters;
    for &ratio in ratios.iter().rev() {
        encoder.extend((0..residuals).map(|number| residual(channels, number)));
        let smaller = PaddedConvolutionSpec { stride: ratio, ..convolution(channels, 2 * channels, 2 * ratio) };
        encoder.extend([act(), Convolution(smaller)]);
        channels *= 2;
    }
    encoder.extend([Recurrent { width: channels, layers: recurrent }, act()]);
    encoder.push(Convolution(convolution(channels, width, last_taps)));
    let mut decoder = vec![Convolution(convolution(width, channels, taps))];
    decoder.push(Recurrent { width: channels, layers: recurrent });
    for &ratio in ratios {
        let larger = PaddedConvolutionSpec { stride: ratio, ..convolution(channels, channels / 2, 2 * ratio) };
        decoder.extend([act(), Transposed(larger)]);
        channels /= 2;
        decoder.extend((0..residuals).map(|number| residual(channels, number)));
    }
    decoder.extend([act(), Convolution(convolution(filters, sound, last_taps))]);
    Ok((encoder, decoder))
}
