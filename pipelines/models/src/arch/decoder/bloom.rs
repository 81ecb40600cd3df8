//! BLOOM (`transformers/models/bloom`; <https://arxiv.org/abs/2211.05100>).

use super::{Parts, layers, share};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, decoder_head};
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::{
    Activation, AttentionSpec, BiasSpec, EmbedSpec, FfnSpec, LayerSpec, LogitsSpec, MixerSpec, MlpSpec, NormSpec,
    NormsSpec, QkvLayout, ResidualSpec, Spec,
};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::DecoderOnly,
    hugging_face: HuggingFace { model_type: "bloom", classes: CLASSES, spec, stack: STACK, heads: HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "BloomForCausalLM", head: HeadKind::NextToken, base: "transformer." },
    Class { name: "BloomModel", head: HeadKind::States, base: "" },
    Class { name: "BloomForSequenceClassification", head: HeadKind::SequenceLabels, base: "transformer." },
    Class { name: "BloomForTokenClassification", head: HeadKind::TokenLabels, base: "transformer." },
    Class { name: "BloomForQuestionAnswering", head: HeadKind::Span, base: "transformer." },
];

const STACK: &[Rule] = &[
    Rule::new("embed", "word_embeddings"),
    Rule::new("embed_norm", "word_embeddings_layernorm"),
    Rule::new("layers.{}.attn_norm", "h.{}.input_layernorm"),
    Rule::new("layers.{}.attn.qkv", "h.{}.self_attention.query_key_value"),
    Rule::new("layers.{}.attn.out", "h.{}.self_attention.dense"),
    Rule::new("layers.{}.mlp_norm", "h.{}.post_attention_layernorm"),
    Rule::new("layers.{}.mlp.up", "h.{}.mlp.dense_h_to_4h"),
    Rule::new("layers.{}.mlp.down", "h.{}.mlp.dense_4h_to_h"),
    Rule::new("final_norm", "ln_f"),
];

/// Of the heads of this type and its relatives, that for tokens has a name of its own.
pub(super) const HEADS: &[Rule] = &[
    Rule::new("head.next_token", "lm_head"),
    Rule::new("head.token_labels", "classifier"),
    Rule::new("head.labels", "score"),
    Rule::new("head.span", "qa_outputs"),
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let hidden = config.either_size(["n_embed", "hidden_size"])?;
    let heads_key = if config.has("n_head") { "n_head" } else { "num_attention_heads" };
    let heads = config.size(heads_key)?;
    let head = share(config, heads_key, heads, hidden)?;
    let norm = NormSpec::layer(config.optional_number("layer_norm_epsilon")?.unwrap_or(1e-5));
    let from_norm = config.truth_or("apply_residual_connection_post_layernorm", false)?;
    let plain = AttentionSpec::plain(heads, heads, head).with_biases();
    let layer = LayerSpec {
        mixer: MixerSpec::Attention(AttentionSpec { layout: QkvLayout::Interleaved, ..plain }),
        cross: None,
        ffn: FfnSpec::Dense(MlpSpec::plain(4 * hidden, Activation::GeluTanh)),
        norms: NormsSpec::before(norm),
        residual: if from_norm { ResidualSpec::FromNorm } else { ResidualSpec::Sequential },
        residual_scale: 1.0,
    };
    let parts = Parts {
        hidden,
        embed: EmbedSpec { norm: Some(norm), ..EmbedSpec::plain(config.size("vocab_size")?, hidden) },
        layers: vec![layer; layers(config, if config.has("n_layer") { "n_layer" } else { "num_hidden_layers" })?],
        // Slopes know no end; the weights were trained on this many.
        context: config.optional_size("seq_length")?.unwrap_or(2048).max(2048),
        ropes: Vec::new(),
        bias: BiasSpec::Alibi { heads, scale: 1.0 },
        final_norm: Some(norm),
    };
    let logits = LogitsSpec::plain(config.truth_or("tie_word_embeddings", true)?);
    Ok(parts.decoder(decoder_head(config, kind, logits)?))
}
