//! T5 (`transformers/models/t5`; <https://arxiv.org/abs/1910.10683>).

use super::own_layers;
use crate::ModelError;
use crate::arch::decoder::{activation, layers};
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, labels, no_such_head};
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::encoder_decoder::{EncoderDecoderHead, EncoderDecoderSpec, SourceSpec};
use crate::spec::{
    Activation, AttentionSpec, BiasSpec, EmbedSpec, FfnSpec, LayerSpec, LogitsSpec, MixerSpec, MlpSpec, NormSpec,
    NormsSpec, ResidualSpec, Spec, StackSpec,
};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::EncoderDecoder,
    hugging_face: HuggingFace { model_type: "t5", classes: CLASSES, spec, stack: STACK, heads: HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "T5ForConditionalGeneration", head: HeadKind::NextToken, base: "" },
    Class { name: "T5Model", head: HeadKind::States, base: "" },
    Class { name: "T5EncoderModel", head: HeadKind::EncoderStates, base: "" },
    Class { name: "T5ForSequenceClassification", head: HeadKind::SequenceLabels, base: "transformer." },
    Class { name: "T5ForTokenClassification", head: HeadKind::TokenLabels, base: "transformer." },
    Class { name: "T5ForQuestionAnswering", head: HeadKind::Span, base: "" },
];

pub(super) const STACK: &[Rule] = &[
    Rule::new("encoder.embed", "shared"),
    Rule::new("decoder.embed", "shared"),
    Rule::new("encoder.distance", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"),
    Rule::new("decoder.distance", "decoder.block.0.layer.0.SelfAttention.relative_attention_bias"),
    Rule::new("encoder.layers.{}.attn_norm", "encoder.block.{}.layer.0.layer_norm"),
    Rule::new("encoder.layers.{}.attn.q", "encoder.block.{}.layer.0.SelfAttention.q"),
    Rule::new("encoder.layers.{}.attn.k", "encoder.block.{}.layer.0.SelfAttention.k"),
    Rule::new("encoder.layers.{}.attn.v", "encoder.block.{}.layer.0.SelfAttention.v"),
    Rule::new("encoder.layers.{}.attn.out", "encoder.block.{}.layer.0.SelfAttention.o"),
    Rule::new("encoder.layers.{}.mlp_norm", "encoder.block.{}.layer.1.layer_norm"),
    Rule::new("encoder.layers.{}.mlp.gate", "encoder.block.{}.layer.1.DenseReluDense.wi_0"),
    Rule::new("encoder.layers.{}.mlp.up", "encoder.block.{}.layer.1.DenseReluDense.wi"),
    Rule::new("encoder.layers.{}.mlp.up", "encoder.block.{}.layer.1.DenseReluDense.wi_1"),
    Rule::new("encoder.layers.{}.mlp.down", "encoder.block.{}.layer.1.DenseReluDense.wo"),
    Rule::new("encoder.final_norm", "encoder.final_layer_norm"),
    Rule::new("decoder.layers.{}.attn_norm", "decoder.block.{}.layer.0.layer_norm"),
    Rule::new("decoder.layers.{}.attn.q", "decoder.block.{}.layer.0.SelfAttention.q"),
    Rule::new("decoder.layers.{}.attn.k", "decoder.block.{}.layer.0.SelfAttention.k"),
    Rule::new("decoder.layers.{}.attn.v", "decoder.block.{}.layer.0.SelfAttention.v"),
    Rule::new("decoder.layers.{}.attn.out", "decoder.block.{}.layer.0.SelfAttention.o"),
    Rule::new("decoder.layers.{}.cross_norm", "decoder.block.{}.layer.1.layer_norm"),
    Rule::new("decoder.layers.{}.cross.q", "decoder.block.{}.layer.1.EncDecAttention.q"),
    Rule::new("decoder.layers.{}.cross.k", "decoder.block.{}.layer.1.EncDecAttention.k"),
    Rule::new("decoder.layers.{}.cross.v", "decoder.block.{}.layer.1.EncDecAttention.v"),
    Rule::new("decoder.layers.{}.cross.out", "decoder.block.{}.layer.1.EncDecAttention.o"),
    Rule::new("decoder.layers.{}.mlp_norm", "decoder.block.{}.layer.2.layer_norm"),
    Rule::new("decoder.layers.{}.mlp.gate", "decoder.block.{}.layer.2.DenseReluDense.wi_0"),
    Rule::new("decoder.layers.{}.mlp.up", "decoder.block.{}.layer.2.DenseReluDense.wi"),
    Rule::new("decoder.layers.{}.mlp.up", "decoder.block.{}.layer.2.DenseReluDense.wi_1"),
    Rule::new("decoder.layers.{}.mlp.down", "decoder.block.{}.layer.2.DenseReluDense.wo"),
    Rule::new("decoder.final_norm", "decoder.final_layer_norm"),
];

pub(super) const HEADS: &[Rule] = &[
    Rule::new("head.next_token", "lm_head"),
    Rule::new("head.dense", "classification_head.dense"),
    Rule::new("head.labels", "classification_head.out_proj"),
    Rule::new("head.token_labels", "classifier"),
    Rule::new("head.span", "qa_outputs"),
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    // What the form says is written beside it too, and counts there.
    let form = config.optional_text("feed_forward_proj")?.unwrap_or_else(|| "relu".into());
    let named = match form.as_str() {
        // The gated form of this name was trained with the approximation.
        "gated-gelu" => "gelu_new",
        form => form.rsplit('-').next().unwrap_or(form),
    };
    let activation = activation(config, "dense_act_fn", named)?;
    let gated = config.truth_or("is_gated_act", form.starts_with("gated-"))?;
    let mlp = MlpSpec { gated, bias: false, ..MlpSpec::plain(config.size("d_ff")?, activation) };
    like_t5(config, kind, |_, _| Ok(FfnSpec::Dense(mlp.clone())))
}

/// An encoder-decoder with the keys of T5's configuration, and the feed-forward part of each layer: whether of the
/// decoder, and its number.
pub(super) fn like_t5(
    config: &Config,
    kind: HeadKind,
    ffn: impl Fn(bool, usize) -> Result<FfnSpec, ModelError>,
) -> Result<Spec, ModelError> {
    let (hidden, heads) = (config.size("d_model")?, config.size("num_heads")?);
    let norm = NormSpec::rms(config.optional_number("layer_norm_epsilon")?.unwrap_or(1e-6));
    let attention = AttentionSpec { scale: 1.0, ..AttentionSpec::plain(heads, heads, config.size("d_kv")?) };
    let count = layers(config, "num_layers")?;
    let decoder_count = if config.has("num_decoder_layers") { layers(config, "num_decoder_layers")? } else { count };
    let buckets = BiasSpec::Buckets {
        heads,
        buckets: config.optional_size("relative_attention_num_buckets")?.unwrap_or(32),
        largest: config.optional_size("relative_attention_max_distance")?.unwrap_or(128),
    };
    let stack = |decoder: bool, count: usize| {
        let layer = |number| {
            Ok(LayerSpec {
                mixer: MixerSpec::Attention(attention.clone()),
                cross: decoder.then(|| attention.clone()),
                ffn: ffn(decoder, number)?,
                norms: NormsSpec { cross: decoder.then_some(norm), ..NormsSpec::before(norm) },
                residual: ResidualSpec::Sequential,
                residual_scale: 1.0,
            })
        };
        Ok::<_, ModelError>(StackSpec {
            hidden,
            embed: EmbedSpec::plain(config.size("vocab_size")?, hidden),
            causal: decoder,
            ropes: Vec::new(),
            bias: buckets.clone(),
            layers: (0..count).map(layer).collect::<Result<_, ModelError>>()?,
            final_norm: Some(norm),
        })
    };
    let tied = config.truth_or("tie_word_embeddings", true)?;
    let scale = if tied { (hidden as f64).powf(-0.5) as f32 } else { 1.0 };
    let alone = matches!(kind, HeadKind::EncoderStates | HeadKind::TokenLabels);
    if !alone {
        own_layers(config)?;
    }
    Ok(Spec::EncoderDecoder(Box::new(EncoderDecoderSpec {
        encoder: stack(false, count)?,
        source: SourceSpec::Tokens,
        decoder: if alone { None } else { Some(stack(true, decoder_count)?) },
        shared: true,
        head: match kind {
            HeadKind::States | HeadKind::EncoderStates => EncoderDecoderHead::States,
            HeadKind::NextToken => {
                let logits = LogitsSpec { scale, ..LogitsSpec::plain(tied) };
                EncoderDecoderHead::NextToken { logits, row: false }
            }
            HeadKind::SequenceLabels => EncoderDecoderHead::Labels {
                labels: labels(config)?,
                end: config.optional_integer("eos_token_id")?.unwrap_or(1),
                activation: Activation::Tanh,
            },
            HeadKind::TokenLabels => EncoderDecoderHead::TokenLabels(labels(config)?),
            HeadKind::Span => EncoderDecoderHead::Span,
            _ => return Err(no_such_head(kind)),
        },
        start: config.optional_integer("decoder_start_token_id")?,
        padding: config.optional_integer("pad_token_id")?,
        context: config.optional_size("n_positions")?.unwrap_or(512),
    })))
}
