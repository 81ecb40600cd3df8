//! Whisper (`transformers/models/whisper`; <https://arxiv.org/abs/2212.04356>).

use crate::ModelError;
use crate::arch::decoder::{activation, layers};
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, decoder_head, labels, no_such_head};
use crate::config::Config;
use crate::rules::{Rule, joined};
use crate::spec::encoder_decoder::{EncoderDecoderHead, EncoderDecoderSpec, SourceSpec};
use crate::spec::{
    AttentionSpec, BiasSpec, DecoderSpec, EmbedSpec, FfnSpec, LayerSpec, LogitsSpec, MixerSpec, MlpSpec, NormSpec,
    NormsSpec, PositionSpec, ResidualSpec, Spec, StackSpec,
};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::Speech,
    hugging_face: HuggingFace { model_type: "whisper", classes: CLASSES, spec, stack: NAMES, heads: HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "WhisperForConditionalGeneration", head: HeadKind::NextToken, base: "model." },
    Class { name: "WhisperModel", head: HeadKind::States, base: "" },
    Class { name: "WhisperForAudioClassification", head: HeadKind::SequenceLabels, base: "" },
    Class { name: "WhisperForCausalLM", head: HeadKind::DecoderNextToken, base: "model.decoder." },
    Class { name: "WhisperDecoder", head: HeadKind::DecoderStates, base: "" },
    Class { name: "WhisperEncoder", head: HeadKind::EncoderStates, base: "" },
];

/// The names of layers whose norms come first: of a decoder alone, and of either stack.
pub(super) const STACK: &[Rule] = &[
    Rule::new("encoder.conv.1", "encoder.conv1"),
    Rule::new("encoder.conv.2", "encoder.conv2"),
    Rule::new("encoder.positions", "encoder.embed_positions"),
    Rule::new("decoder.embed", "decoder.embed_tokens"),
    Rule::new("decoder.positions", "decoder.embed_positions"),
    Rule::new("embed", "embed_tokens"),
    Rule::new("positions", "embed_positions"),
    Rule::new("encoder.final_norm", "encoder.layer_norm"),
    Rule::new("encoder.layers.{}.attn_norm", "encoder.layers.{}.self_attn_layer_norm"),
    Rule::new("encoder.layers.{}.attn.q", "encoder.layers.{}.self_attn.q_proj"),
    Rule::new("encoder.layers.{}.attn.k", "encoder.layers.{}.self_attn.k_proj"),
    Rule::new("encoder.layers.{}.attn.v", "encoder.layers.{}.self_attn.v_proj"),
    Rule::new("encoder.layers.{}.attn.out", "encoder.layers.{}.self_attn.out_proj"),
    Rule::new("encoder.layers.{}.mlp.up", "encoder.layers.{}.fc1"),
    Rule::new("encoder.layers.{}.mlp.down", "encoder.layers.{}.fc2"),
    Rule::new("encoder.layers.{}.mlp_norm", "encoder.layers.{}.final_layer_norm"),
    Rule::new("decoder.final_norm", "decoder.layer_norm"),
    Rule::new("decoder.layers.{}.attn_norm", "decoder.layers.{}.self_attn_layer_norm"),
    Rule::new("decoder.layers.{}.attn.q", "decoder.layers.{}.self_attn.q_proj"),
    Rule::new("decoder.layers.{}.attn.k", "decoder.layers.{}.self_attn.k_proj"),
    Rule::new("decoder.layers.{}.attn.v", "decoder.layers.{}.self_attn.v_proj"),
    Rule::new("decoder.layers.{}.attn.out", "decoder.layers.{}.self_attn.out_proj"),
    Rule::new("decoder.layers.{}.cross_norm", "decoder.layers.{}.encoder_attn_layer_norm"),
    Rule::new("decoder.layers.{}.cross.q", "decoder.layers.{}.encoder_attn.q_proj"),
    Rule::new("decoder.layers.{}.cross.k", "decoder.layers.{}.encoder_attn.k_proj"),
    Rule::new("decoder.layers.{}.cross.v", "decoder.layers.{}.encoder_attn.v_proj"),
    Rule::new("decoder.layers.{}.cross.out", "decoder.layers.{}.encoder_attn.out_proj"),
    Rule::new("decoder.layers.{}.mlp.up", "decoder.layers.{}.fc1"),
    Rule::new("decoder.layers.{}.mlp.down", "decoder.layers.{}.fc2"),
    Rule::new("decoder.layers.{}.mlp_norm", "decoder.layers.{}.final_layer_norm"),
    Rule::new("final_norm", "layer_norm"),
    Rule::new("layers.{}.attn_norm", "layers.{}.self_attn_layer_norm"),
    Rule::new("layers.{}.attn.q", "layers.{}.self_attn.q_proj"),
    Rule::new("layers.{}.attn.k", "layers.{}.self_attn.k_proj"),
    Rule::new("layers.{}.attn.v", "layers.{}.self_attn.v_proj"),
    Rule::new("layers.{}.attn.out", "layers.{}.self_attn.out_proj"),
    Rule::new("layers.{}.mlp.up", "layers.{}.fc1"),
    Rule::new("layers.{}.mlp.down", "layers.{}.fc2"),
    Rule::new("layers.{}.mlp_norm", "layers.{}.final_layer_norm"),
];

/// The same, and the names of an encoder alone.
const NAMES: &[Rule] = &joined::<{ STACK.len() + ENCODER.len() }>(STACK, ENCODER);

const ENCODER: &[Rule] = &[
    Rule::new("encoder.conv.1", "conv1"),
    Rule::new("encoder.conv.2", "conv2"),
    Rule::new("encoder.positions", "embed_positions"),
    Rule::new("encoder.final_norm", "layer_norm"),
    Rule::new("encoder.layers.{}.attn_norm", "layers.{}.self_attn_layer_norm"),
    Rule::new("encoder.layers.{}.attn.q", "layers.{}.self_attn.q_proj"),
    Rule::new("encoder.layers.{}.attn.k", "layers.{}.self_attn.k_proj"),
    Rule::new("encoder.layers.{}.attn.v", "layers.{}.self_attn.v_proj"),
    Rule::new("encoder.layers.{}.attn.out", "layers.{}.self_attn.out_proj"),
    Rule::new("encoder.layers.{}.mlp.up", "layers.{}.fc1"),
    Rule::new("encoder.layers.{}.mlp.down", "layers.{}.fc2"),
    Rule::new("encoder.layers.{}.mlp_norm", "layers.{}.final_layer_norm"),
];

const HEADS: &[Rule] = &[
    Rule::new("head.next_token", "proj_out"),
    Rule::new("head.dense", "projector"),
    Rule::new("head.labels", "classifier"),
    Rule::new("head.weights", "layer_weights"),
];

fn stack(config: &Config, decoder: bool, alone: bool) -> Result<StackSpec, ModelError> {
    let hidden = config.size("d_model")?;
    let key = |encoder: &'static str, of_decoder: &'static str| if decoder { of_decoder } else { encoder };
    let heads = config.size(key("encoder_attention_heads", "decoder_attention_heads"))?;
    let norm = NormSpec::layer(1e-5);
    let plain = AttentionSpec::plain(heads, heads, hidden / heads).with_biases();
    let attention = AttentionSpec { key_bias: false, ..plain };
    let across = decoder && !alone;
    let layer = LayerSpec {
        mixer: MixerSpec::Attention(attention.clone()),
        cross: across.then_some(attention),
        ffn: FfnSpec::Dense(MlpSpec::plain(
            config.size(key("encoder_ffn_dim", "decoder_ffn_dim"))?,
            activation(config, "activation_function", "gelu")?,
        )),
        norms: NormsSpec { cross: across.then_some(norm), ..NormsSpec::before(norm) },
        residual: ResidualSpec::Sequential,
        residual_scale: 1.0,
    };
    // The reference reads `scale_embedding`, and scales nothing.
    let embed = if decoder {
        EmbedSpec {
            positions: PositionSpec::Learned { rows: context(config)?, first: 0, padding: None },
            ..EmbedSpec::plain(config.size("vocab_size")?, hidden)
        }
    } else {
        EmbedSpec::none(hidden)
    };
    Ok(StackSpec {
        hidden,
        embed,
        causal: decoder,
        ropes: Vec::new(),
        bias: BiasSpec::None,
        layers: vec![layer; layers(config, key("encoder_layers", "decoder_layers"))?],
        final_norm: Some(norm),
    })
}

fn context(config: &Config) -> Result<usize, ModelError> {
    Ok(config.optional_size("max_target_positions")?.unwrap_or(448))
}

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let logits = LogitsSpec::plain(config.truth_or("tie_word_embeddings", true)?);
    let of_decoder = match kind {
        HeadKind::DecoderNextToken => Some(HeadKind::NextToken),
        HeadKind::DecoderStates => Some(HeadKind::States),
        _ => None,
    };
    if let Some(kind) = of_decoder {
        let (stack, head) = (stack(config, true, true)?, decoder_head(config, kind, logits)?);
        return Ok(Spec::Decoder(Box::new(DecoderSpec { stack, head, summary: None, context: context(config)? })));
    }
    let alone = matches!(kind, HeadKind::EncoderStates | HeadKind::SequenceLabels);
    Ok(Spec::EncoderDecoder(Box::new(EncoderDecoderSpec {
        encoder: stack(config, false, false)?,
        source: SourceSpec::Features {
            channels: config.optional_size("num_mel_bins")?.unwrap_or(80),
            positions: config.optional_size("max_source_positions")?.unwrap_or(1500),
        },
        decoder: if alone { None } else { Some(stack(config, true, false)?) },
        shared: false,
        head: match kind {
            HeadKind::States | HeadKind::EncoderStates => EncoderDecoderHead::States,
            HeadKind::NextToken => EncoderDecoderHead::NextToken { logits, row: false },
            HeadKind::SequenceLabels => EncoderDecoderHead::MeanLabels {
                labels: labels(config)?,
                width: config.optional_size("classifier_proj_size")?.unwrap_or(256),
                weighted: config.truth_or("use_weighted_layer_sum", false)?,
            },
            _ => return Err(no_such_head(kind)),
        },
        start: config.optional_integer("decoder_start_token_id")?,
        padding: config.optional_integer("pad_token_id")?,
        context: context(config)?,
    })))
}
