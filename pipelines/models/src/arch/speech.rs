//! Models of speech, one file each, and what their configurations share.

pub mod data2vec_audio;
pub mod hubert;
pub mod sew;
pub mod unispeech;
pub mod unispeech_sat;
pub mod wav2vec2;
pub mod wavlm;

use super::decoder::{activation, layers};
use super::{HeadKind, labels, no_such_head};
use crate::ModelError;
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::speech::{
    SoundAdapterSpec, SoundConvolutionSpec, SoundNormSpec, SoundPositionsKind, SoundPositionsSpec, SpeechHead,
    SpeechSpec,
};
use crate::spec::{
    AttentionSpec, BiasSpec, EmbedSpec, FfnSpec, LayerSpec, MixerSpec, MlpSpec, NormSpec, NormsSpec, ResidualSpec,
    StackSpec,
};

/// The names that all of these have (`modeling_wav2vec2.py` and those made of it).
const STACK: &[Rule] = &[
    Rule::new("features.{}.convolution", "feature_extractor.conv_layers.{}.conv"),
    Rule::new("features.{}.norm", "feature_extractor.conv_layers.{}.layer_norm"),
    Rule::new("feature_norm", "feature_projection.layer_norm"),
    Rule::new("projection", "feature_projection.projection"),
    Rule::new("hidden_feature", "masked_spec_embed"),
    Rule::new("positions.magnitude", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    Rule::new("positions.magnitude", "encoder.pos_conv_embed.conv.weight_g"),
    Rule::new("positions.direction", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    Rule::new("positions.direction", "encoder.pos_conv_embed.conv.weight_v"),
    Rule::new("positions", "encoder.pos_conv_embed.conv"),
    Rule::new("positions.norm.", "encoder.pos_conv_embed.batch_norm."),
    Rule::new("positions.{}", "encoder.pos_conv_embed.layers.{}.conv"),
    Rule::new("embed_norm", "encoder.layer_norm"),
    Rule::new("final_norm", "encoder.layer_norm"),
    Rule::new("layers.{}.attn.q", "encoder.layers.{}.attention.q_proj"),
    Rule::new("layers.{}.attn.k", "encoder.layers.{}.attention.k_proj"),
    Rule::new("layers.{}.attn.v", "encoder.layers.{}.attention.v_proj"),
    Rule::new("layers.{}.attn.out", "encoder.layers.{}.attention.out_proj"),
    Rule::new("layers.{}.attn.gate", "encoder.layers.{}.attention.gru_rel_pos_linear"),
    Rule::new("layers.{}.attn.gate_constant", "encoder.layers.{}.attention.gru_rel_pos_const"),
    Rule::new("distance", "encoder.layers.0.attention.rel_attn_embed"),
    Rule::new("layers.{}.attn_norm", "encoder.layers.{}.layer_norm"),
    Rule::new("layers.{}.attn_sum_norm", "encoder.layers.{}.layer_norm"),
    Rule::new("layers.{}.mlp.up", "encoder.layers.{}.feed_forward.intermediate_dense"),
    Rule::new("layers.{}.mlp.down", "encoder.layers.{}.feed_forward.output_dense"),
    Rule::new("layers.{}.mlp_norm", "encoder.layers.{}.final_layer_norm"),
    Rule::new("layers.{}.mlp_sum_norm", "encoder.layers.{}.final_layer_norm"),
    Rule::new("layers.{}.adapter.norm", "encoder.layers.{}.adapter_layer.norm"),
    Rule::new("layers.{}.adapter.mlp.up", "encoder.layers.{}.adapter_layer.linear_1"),
    Rule::new("layers.{}.adapter.mlp.down", "encoder.layers.{}.adapter_layer.linear_2"),
    Rule::new("squeeze", "encoder.upsample.projection"),
    Rule::new("adapter.projection", "adapter.proj"),
    Rule::new("adapter.norm", "adapter.proj_layer_norm"),
    Rule::new("adapter.layers.{}", "adapter.layers.{}.conv"),
];

const HEADS: &[Rule] = &[
    Rule::new("head.transcript", "lm_head"),
    Rule::new("head.labels", "classifier"),
    Rule::new("head.projection", "projector"),
    Rule::new("head.weights", "layer_weights"),
    Rule::new("head.layers.{}", "tdnn.{}.kernel"),
    Rule::new("head.vector", "feature_extractor"),
    Rule::new("head.hidden", "project_hid"),
    Rule::new("head.scores", "quantizer.weight_proj"),
    Rule::new("head.vectors", "quantizer.codevectors"),
    Rule::new("head.projection", "project_q"),
];

/// A model with the keys of wav2vec 2.0's configuration.
fn speech(config: &Config, kind: HeadKind) -> Result<SpeechSpec, ModelError> {
    let hidden = config.size("hidden_size")?;
    let heads = config.size("num_attention_heads")?;
    if !hidden.is_multiple_of(heads) {
        return Err(config.wrong("num_attention_heads", format!("a divisor of {hidden}")).into());
    }
    let eps = config.optional_number("layer_norm_eps")?.unwrap_or(1e-5);
    let norm = NormSpec::layer(eps);
    let stable = config.truth_or("do_stable_layer_norm", false)?;
    let mlp = MlpSpec::plain(config.size("intermediate_size")?, activation(config, "hidden_act", "gelu")?);
    let layer = LayerSpec {
        mixer: MixerSpec::Attention(AttentionSpec::plain(heads, heads, hidden / heads).with_biases()),
        cross: None,
        ffn: FfnSpec::Dense(mlp),
        norms: if stable { NormsSpec::before(norm) } else { NormsSpec::after(norm) },
        residual: ResidualSpec::Sequential,
        residual_scale: 1.0,
    };
    let stack = StackSpec {
        hidden,
        embed: EmbedSpec::none(hidden),
        causal: false,
        ropes: Vec::new(),
        bias: BiasSpec::None,
        layers: vec![layer; layers(config, "num_hidden_layers")?],
        final_norm: stable.then_some(norm),
    };
    let adapter = config.truth_or("add_adapter", false)?.then(|| adapter(config, hidden)).transpose()?;
    let classifies = matches!(kind, HeadKind::SequenceLabels | HeadKind::TokenLabels | HeadKind::Speaker);
    let weighted = classifies && config.truth_or("use_weighted_layer_sum", false)?;
    if adapter.is_some() && (weighted || classifies && kind != HeadKind::Speaker) {
        return Err(config.wrong("add_adapter", "false, as the reference has no adapter before this head").into());
    }
    let groups = config.optional_size("num_conv_pos_embedding_groups")?.unwrap_or(16);
    if !hidden.is_multiple_of(groups) {
        return Err(config.wrong("num_conv_pos_embedding_groups", format!("a divisor of {hidden}")).into());
    }
    Ok(SpeechSpec {
        convolutions: convolutions(config)?,
        activation: activation(config, "feat_extract_activation", "gelu")?,
        feature_norm: Some(norm),
        projected: true,
        hides: config.truth_or("apply_spec_augment", true)?,
        positions: SoundPositionsSpec {
            taps: config.optional_size("num_conv_pos_embeddings")?.unwrap_or(128),
            groups,
            kind: SoundPositionsKind::OfLength,
        },
        squeeze: None,
        embed_norm: (!stable).then_some(norm),
        stack,
        layer_adapter: config.optional_size("adapter_attn_dim")?.filter(|_| stable),
        adapter,
        weighted,
        // The reference forgets the mask of this class.
        masked: kind != HeadKind::MaskedToken,
        head: head(config, kind)?,
    })
}

/// Convolutions of one model; those in use have 7.
const CONVOLUTIONS_MAX: usize = 64;

fn convolutions(config: &Config) -> Result<Vec<SoundConvolutionSpec>, ModelError> {
    let outputs = config.optional_sizes("conv_dim")?.unwrap_or_else(|| vec![512; 7]);
    let count = outputs.len();
    if count > CONVOLUTIONS_MAX {
        return Err(config.wrong("conv_dim", format!("at most {CONVOLUTIONS_MAX} sizes")).into());
    }
    let sizes = |key: &str, default: [usize; 7]| match config.optional_sizes(key)?.unwrap_or_else(|| default.to_vec()) {
        sizes if sizes.len() == count => Ok(sizes),
        _ => Err(config.wrong(key, format!("{count} sizes"))),
    };
    let (taps, strides) = (sizes("conv_kernel", [10, 3, 3, 3, 3, 2, 2])?, sizes("conv_stride", [5, 2, 2, 2, 2, 2, 2])?);
    let bias = config.truth_or("conv_bias", false)?;
    let places = match config.optional_text("feat_extract_norm")?.as_deref() {
        None | Some("group") => false,
        Some("layer") => true,
        Some(_) => return Err(config.wrong("feat_extract_norm", "group or layer").into()),
    };
    let norm = |number| match (places, number) {
        (true, _) => SoundNormSpec::Places,
        (false, 0) => SoundNormSpec::Channels,
        (false, _) => SoundNormSpec::None,
    };
    let convolution = |number: usize| SoundConvolutionSpec {
        inputs: if number == 0 { 1 } else { outputs[number - 1] },
        outputs: outputs[number],
        taps: taps[number],
        stride: strides[number],
        bias,
        norm: norm(number),
    };
    Ok((0..count).map(convolution).collect())
}

fn adapter(config: &Config, hidden: usize) -> Result<SoundAdapterSpec, ModelError> {
    Ok(SoundAdapterSpec {
        width: config.optional_size("output_hidden_size")?.unwrap_or(hidden),
        layers: if config.has("num_adapter_layers") { layers(config, "num_adapter_layers")? } else { 3 },
        taps: config.optional_size("adapter_kernel_size")?.unwrap_or(3),
        stride: config.optional_size("adapter_stride")?.unwrap_or(2),
    })
}

fn head(config: &Config, kind: HeadKind) -> Result<SpeechHead, ModelError> {
    let or = |key: &str, default: usize| Ok::<_, ModelError>(config.optional_size(key)?.unwrap_or(default));
    Ok(match kind {
        HeadKind::States => SpeechHead::States { features: true },
        HeadKind::Transcript | HeadKind::MaskedToken => {
            SpeechHead::Transcript { vocabulary: config.size("vocab_size")? }
        }
        HeadKind::SequenceLabels => {
            SpeechHead::Labels { labels: labels(config)?, width: or("classifier_proj_size", 256)? }
        }
        HeadKind::TokenLabels => SpeechHead::PlaceLabels { labels: labels(config)? },
        HeadKind::Speaker => {
            let sizes = |key: &str, default: [usize; 5]| {
                Ok::<_, ModelError>(config.optional_sizes(key)?.unwrap_or_else(|| default.to_vec()))
            };
            let outputs = sizes("tdnn_dim", [512, 512, 512, 512, 1500])?;
            let (taps, dilations) = (sizes("tdnn_kernel", [5, 3, 3, 1, 1])?, sizes("tdnn_dilation", [1, 2, 3, 1, 1])?);
            if [taps.len(), dilations.len()] != [outputs.len(); 2] || outputs.len() > CONVOLUTIONS_MAX {
                return Err(config.wrong("tdnn_dim", "as many sizes as tdnn_kernel and tdnn_dilation").into());
            }
            let layer = |number: usize| {
                let inputs = outputs[number.saturating_sub(1)];
                let (outputs, taps, norm) = (outputs[number], taps[number], SoundNormSpec::None);
                (SoundConvolutionSpec { inputs, outputs, taps, stride: 1, bias: true, norm }, dilations[number])
            };
            SpeechHead::Speaker {
                layers: (0..outputs.len()).map(layer).collect(),
                width: or("xvector_output_dim", 512)?,
            }
        }
        HeadKind::Pretraining => {
            let (groups, vector) = (or("num_codevector_groups", 2)?, or("codevector_dim", 256)?);
            if !vector.is_multiple_of(groups) {
                return Err(config.wrong("num_codevector_groups", format!("a divisor of {vector}")).into());
            }
            let (vectors, width) = (or("num_codevectors_per_group", 320)?, or("proj_codevector_dim", 256)?);
            SpeechHead::Quantised { groups, vectors, vector, width, back: false }
        }
        _ => return Err(no_such_head(kind)),
    })
}
