//! Falcon (`transformers/models/falcon`; <https://arxiv.org/abs/2311.16867>).

use super::{Parts, activation, bloom, layers, share};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, decoder_head, rope};
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::{
    AttentionSpec, BiasSpec, EmbedSpec, FfnSpec, LayerSpec, LogitsSpec, MixerSpec, MlpSpec, NormSpec, NormsSpec,
    QkvLayout, ResidualSpec, RopeAxes, RopeSpec, RopeStyle, Spec,
};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::DecoderOnly,
    hugging_face: HuggingFace { model_type: "falcon", classes: CLASSES, spec, stack: STACK, heads: bloom::HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "FalconForCausalLM", head: HeadKind::NextToken, base: "transformer." },
    Class { name: "FalconModel", head: HeadKind::States, base: "" },
    Class { name: "FalconForSequenceClassification", head: HeadKind::SequenceLabels, base: "transformer." },
    Class { name: "FalconForTokenClassification", head: HeadKind::TokenLabels, base: "transformer." },
    Class { name: "FalconForQuestionAnswering", head: HeadKind::Span, base: "transformer." },
];

const STACK: &[Rule] = &[
    Rule::new("embed", "word_embeddings"),
    Rule::new("layers.{}.attn_norm", "h.{}.ln_attn"),
    Rule::new("layers.{}.attn_norm", "h.{}.input_layernorm"),
    Rule::new("layers.{}.mlp_norm", "h.{}.ln_mlp"),
    Rule::new("layers.{}.mlp_norm", "h.{}.post_attention_layernorm"),
    Rule::new("layers.{}.attn.qkv", "h.{}.self_attention.query_key_value"),
    Rule::new("layers.{}.attn.out", "h.{}.self_attention.dense"),
    Rule::new("layers.{}.mlp.up", "h.{}.mlp.dense_h_to_4h"),
    Rule::new("layers.{}.mlp.down", "h.{}.mlp.dense_4h_to_h"),
    Rule::new("final_norm", "ln_f"),
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let hidden = config.either_size(["n_embed", "hidden_size"])?;
    let heads = config.size("num_attention_heads")?;
    let head = share(config, "num_attention_heads", heads, hidden)?;
    let norm = NormSpec::layer(config.optional_number("layer_norm_epsilon")?.unwrap_or(1e-5));
    let new = config.truth_or("new_decoder_architecture", false)?;
    let one = config.truth_or("multi_query", true)?;
    let (kv_heads, layout) = match (new, one) {
        (true, _) => (config.optional_size("num_kv_heads")?.unwrap_or(heads), QkvLayout::Interleaved),
        (false, true) => (1, QkvLayout::Joined),
        (false, false) => (heads, QkvLayout::Interleaved),
    };
    if !heads.is_multiple_of(kv_heads) {
        return Err(config.wrong("num_kv_heads", format!("a divisor of the {heads} heads")).into());
    }
    let alibi = config.truth_or("alibi", false)?;
    let bias = config.truth_or("bias", false)?;
    let plain = AttentionSpec::plain(heads, kv_heads, head);
    let scale = plain.scale;
    let attention = AttentionSpec { layout, qkv_bias: bias, out_bias: bias, rope: (!alibi).then_some(0), ..plain };
    let inner = config.optional_size("ffn_hidden_size")?.unwrap_or(4 * hidden);
    let mlp = MlpSpec { bias, ..MlpSpec::plain(inner, activation(config, "activation", "gelu")?) };
    let parallel = config.truth_or("parallel_attn", true)?;
    let two_norms = new && config.optional_size("num_ln_in_parallel_attn")?.unwrap_or(2) == 2;
    let layer = LayerSpec {
        mixer: MixerSpec::Attention(attention),
        cross: None,
        ffn: FfnSpec::Dense(mlp),
        norms: NormsSpec { mixer: Some(norm), ffn: (two_norms || !parallel).then_some(norm), ..NormsSpec::default() },
        residual: if parallel || new { ResidualSpec::Parallel } else { ResidualSpec::Sequential },
        residual_scale: 1.0,
    };
    let base = config.optional_number("rope_theta")?.unwrap_or(10_000.0);
    let parts = Parts {
        hidden,
        embed: EmbedSpec::plain(config.size("vocab_size")?, hidden),
        layers: vec![layer; layers(config, "num_hidden_layers")?],
        context: config.optional_size("max_position_embeddings")?.unwrap_or(2048),
        ropes: vec![RopeSpec {
            base,
            rotated: head,
            style: RopeStyle::Halves,
            scaling: rope::scaling(config, base, head)?,
            axes: RopeAxes::One,
        }],
        bias: if alibi { BiasSpec::Alibi { heads, scale } } else { BiasSpec::None },
        final_norm: Some(norm),
    };
    let logits = LogitsSpec::plain(config.truth_or("tie_word_embeddings", true)?);
    Ok(parts.decoder(decoder_head(config, kind, logits)?))
}
