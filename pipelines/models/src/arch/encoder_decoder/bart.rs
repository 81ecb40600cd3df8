//! BART (`transformers/models/bart`; <https://arxiv.org/abs/1910.13461>).

use super::own_layers;
use crate::ModelError;
use crate::arch::decoder::{activation, layers};
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, decoder_head, labels, no_such_head};
use crate::config::{Config, ConfigError};
use crate::rules::Rule;
use crate::spec::encoder::{EncoderHead, EncoderSpec};
use crate::spec::encoder_decoder::{EncoderDecoderHead, EncoderDecoderSpec, SourceSpec};
use crate::spec::{
    Activation, AttentionSpec, BiasSpec, DecoderSpec, EmbedSpec, FfnSpec, LayerSpec, LogitsSpec, MixerSpec, MlpSpec,
    NormSpec, NormsSpec, PositionSpec, ResidualSpec, Spec, StackSpec,
};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::EncoderDecoder,
    hugging_face: HuggingFace { model_type: "bart", classes: CLASSES, spec, stack: STACK, heads: HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "BartForConditionalGeneration", head: HeadKind::NextToken, base: "model." },
    Class { name: "BartModel", head: HeadKind::States, base: "" },
    Class { name: "BartForSequenceClassification", head: HeadKind::SequenceLabels, base: "model." },
    Class { name: "BartForQuestionAnswering", head: HeadKind::Span, base: "model." },
    Class { name: "BartForCausalLM", head: HeadKind::DecoderNextToken, base: "model.decoder." },
    Class { name: "BartDecoder", head: HeadKind::DecoderStates, base: "" },
    Class { name: "BartEncoder", head: HeadKind::EncoderStates, base: "" },
];

/// The names of layers whose norms come last: of a decoder alone, and of either stack.
pub(super) const STACK: &[Rule] = &[
    Rule::new("encoder.embed", "shared"),
    Rule::new("encoder.embed", "embed_tokens"),
    Rule::new("decoder.embed", "shared"),
    Rule::new("embed", "embed_tokens"),
    Rule::new("encoder.positions", "encoder.embed_positions"),
    Rule::new("decoder.positions", "decoder.embed_positions"),
    Rule::new("positions", "embed_positions"),
    Rule::new("encoder.embed_norm", "encoder.layernorm_embedding"),
    Rule::new("decoder.embed_norm", "decoder.layernorm_embedding"),
    Rule::new("embed_norm", "layernorm_embedding"),
    Rule::new("encoder.layers.{}.attn_sum_norm", "encoder.layers.{}.self_attn_layer_norm"),
    Rule::new("encoder.layers.{}.attn.q", "encoder.layers.{}.self_attn.q_proj"),
    Rule::new("encoder.layers.{}.attn.k", "encoder.layers.{}.self_attn.k_proj"),
    Rule::new("encoder.layers.{}.attn.v", "encoder.layers.{}.self_attn.v_proj"),
    Rule::new("encoder.layers.{}.attn.out", "encoder.layers.{}.self_attn.out_proj"),
    Rule::new("encoder.layers.{}.mlp.up", "encoder.layers.{}.fc1"),
    Rule::new("encoder.layers.{}.mlp.down", "encoder.layers.{}.fc2"),
    Rule::new("encoder.layers.{}.mlp_sum_norm", "encoder.layers.{}.final_layer_norm"),
    Rule::new("decoder.layers.{}.attn_sum_norm", "decoder.layers.{}.self_attn_layer_norm"),
    Rule::new("decoder.layers.{}.attn.q", "decoder.layers.{}.self_attn.q_proj"),
    Rule::new("decoder.layers.{}.attn.k", "decoder.layers.{}.self_attn.k_proj"),
    Rule::new("decoder.layers.{}.attn.v", "decoder.layers.{}.self_attn.v_proj"),
    Rule::new("decoder.layers.{}.attn.out", "decoder.layers.{}.self_attn.out_proj"),
    Rule::new("decoder.layers.{}.cross_sum_norm", "decoder.layers.{}.encoder_attn_layer_norm"),
    Rule::new("decoder.layers.{}.cross.q", "decoder.layers.{}.encoder_attn.q_proj"),
    Rule::new("decoder.layers.{}.cross.k", "decoder.layers.{}.encoder_attn.k_proj"),
    Rule::new("decoder.layers.{}.cross.v", "decoder.layers.{}.encoder_attn.v_proj"),
    Rule::new("decoder.layers.{}.cross.out", "decoder.layers.{}.encoder_attn.out_proj"),
    Rule::new("decoder.layers.{}.mlp.up", "decoder.layers.{}.fc1"),
    Rule::new("decoder.layers.{}.mlp.down", "decoder.layers.{}.fc2"),
    Rule::new("decoder.layers.{}.mlp_sum_norm", "decoder.layers.{}.final_layer_norm"),
    Rule::new("layers.{}.attn_sum_norm", "layers.{}.self_attn_layer_norm"),
    Rule::new("layers.{}.attn.q", "layers.{}.self_attn.q_proj"),
    Rule::new("layers.{}.attn.k", "layers.{}.self_attn.k_proj"),
    Rule::new("layers.{}.attn.v", "layers.{}.self_attn.v_proj"),
    Rule::new("layers.{}.attn.out", "layers.{}.self_attn.out_proj"),
    Rule::new("layers.{}.mlp.up", "layers.{}.fc1"),
    Rule::new("layers.{}.mlp.down", "layers.{}.fc2"),
    Rule::new("layers.{}.mlp_sum_norm", "layers.{}.final_layer_norm"),
];

/// The names of the heads of everything that has BART's layout.
pub(super) const HEADS: &[Rule] = &[
    Rule::new("head.next_token", "lm_head"),
    Rule::new("head.row", "final_logits_bias"),
    Rule::new("head.dense", "classification_head.dense"),
    Rule::new("head.labels", "classification_head.out_proj"),
    Rule::new("head.span", "qa_outputs"),
];

/// What differs between types with the keys of BART's configuration.
pub(super) struct Layout {
    /// Whether norms come before each part of a layer, and one after the last layer, or after each part.
    pub norms_first: bool,
    /// Whether embeddings have a norm.
    pub embed_norm: bool,
    /// How many positions there are where the configuration says nothing.
    pub context: usize,
    /// What is added for positions, of which there are so many.
    pub positions: fn(usize) -> PositionSpec,
}

impl Layout {
    fn rows(&self, config: &Config) -> Result<usize, ConfigError> {
        Ok(config.optional_size("max_position_embeddings")?.unwrap_or(self.context))
    }
}

/// The first two rows of the table are never used.
const LAYOUT: Layout = Layout {
    norms_first: false,
    embed_norm: true,
    context: 1024,
    positions: |positions| PositionSpec::Learned { rows: positions + 2, first: 2, padding: None },
};

/// What BART's own configuration says.
pub(super) fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    like_bart(config, kind, &LAYOUT)
}

fn stack(config: &Config, layout: &Layout, decoder: bool, alone: bool) -> Result<StackSpec, ModelError> {
    let hidden = config.size("d_model")?;
    let key = |encoder: &'static str, of_decoder: &'static str| if decoder { of_decoder } else { encoder };
    let heads = config.size(key("encoder_attention_heads", "decoder_attention_heads"))?;
    let norm = NormSpec::layer(1e-5);
    let attention = AttentionSpec::plain(heads, heads, hidden / heads).with_biases();
    let across = (decoder && !alone).then_some(norm);
    let norms = match layout.norms_first {
        true => NormsSpec { cross: across, ..NormsSpec::before(norm) },
        false => NormsSpec { cross_sum: across, ..NormsSpec::after(norm) },
    };
    let layer = LayerSpec {
        mixer: MixerSpec::Attention(attention.clone()),
        cross: across.map(|_| attention),
        ffn: FfnSpec::Dense(MlpSpec::plain(
            config.size(key("encoder_ffn_dim", "decoder_ffn_dim"))?,
            activation(config, "activation_function", "gelu")?,
        )),
        norms,
        residual: ResidualSpec::Sequential,
        residual_scale: 1.0,
    };
    let scaled = config.truth_or("scale_embedding", false)?;
    Ok(StackSpec {
        hidden,
        embed: EmbedSpec {
            scale: if scaled { (hidden as f64).sqrt() as f32 } else { 1.0 },
            positions: (layout.positions)(layout.rows(config)?),
            norm: layout.embed_norm.then_some(norm),
            ..EmbedSpec::plain(config.size("vocab_size")?, hidden)
        },
        causal: decoder,
        ropes: Vec::new(),
        bias: BiasSpec::None,
        layers: vec![layer; layers(config, key("encoder_layers", "decoder_layers"))?],
        final_norm: layout.norms_first.then_some(norm),
    })
}

/// A model with the keys of BART's configuration.
pub(super) fn like_bart(config: &Config, kind: HeadKind, layout: &Layout) -> Result<Spec, ModelError> {
    let logits = LogitsSpec::plain(config.truth_or("tie_word_embeddings", true)?);
    let context = layout.rows(config)?;
    let of_decoder = match kind {
        HeadKind::DecoderNextToken => Some(HeadKind::NextToken),
        HeadKind::DecoderStates => Some(HeadKind::States),
        _ => None,
    };
    if let Some(kind) = of_decoder {
        let (stack, head) = (stack(config, layout, true, true)?, decoder_head(config, kind, logits)?);
        return Ok(Spec::Decoder(Box::new(DecoderSpec { stack, head, summary: None, context })));
    }
    let encoder = stack(config, layout, false, false)?;
    if kind == HeadKind::EncoderStates {
        return Ok(Spec::Encoder(Box::new(EncoderSpec { stack: encoder, pooler: None, head: EncoderHead::States })));
    }
    own_layers(config)?;
    Ok(Spec::EncoderDecoder(Box::new(EncoderDecoderSpec {
        encoder,
        source: SourceSpec::Tokens,
        decoder: Some(stack(config, layout, true, false)?),
        shared: true,
        head: match kind {
            HeadKind::States => EncoderDecoderHead::States,
            HeadKind::NextToken => EncoderDecoderHead::NextToken { logits, row: true },
            HeadKind::SequenceLabels => EncoderDecoderHead::Labels {
                labels: labels(config)?,
                end: config.optional_integer("eos_token_id")?.unwrap_or(2),
                activation: Activation::Tanh,
            },
            HeadKind::Span => EncoderDecoderHead::Span,
            _ => return Err(no_such_head(kind)),
        },
        start: config.optional_integer("decoder_start_token_id")?,
        padding: config.optional_integer("pad_token_id")?,
        context,
    })))
}
