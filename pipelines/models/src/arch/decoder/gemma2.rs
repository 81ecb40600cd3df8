//! Gemma 2 (`transformers/models/gemma2`; <https://arxiv.org/abs/2408.00118>).

use super::{Parts, activation, heads, layers, llama, sequential, sliding};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, decoder_head, rope};
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::{
    AttentionSpec, BiasSpec, EmbedSpec, LayerSpec, LogitsSpec, MlpSpec, NormSpec, NormsSpec, RopeAxes, RopeSpec,
    RopeStyle, Spec,
};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::DecoderOnly,
    hugging_face: HuggingFace { model_type: "gemma2", classes: CLASSES, spec, stack: STACK, heads: llama::HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "Gemma2ForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "Gemma2Model", head: HeadKind::States, base: "" },
    Class { name: "Gemma2ForSequenceClassification", head: HeadKind::SequenceLabels, base: "model." },
    Class { name: "Gemma2ForTokenClassification", head: HeadKind::TokenLabels, base: "model." },
];

/// The names of checkpoints with norms before and after both parts of a layer.
pub(super) const STACK: &[Rule] = &[
    Rule::add_one("layers.{}.attn_norm", "layers.{}.input_layernorm"),
    Rule::add_one("layers.{}.attn_out_norm", "layers.{}.post_attention_layernorm"),
    Rule::add_one("layers.{}.mlp_norm", "layers.{}.pre_feedforward_layernorm"),
    Rule::add_one("layers.{}.mlp_out_norm", "layers.{}.post_feedforward_layernorm"),
    Rule::add_one("final_norm", "norm"),
    Rule::new("embed", "embed_tokens"),
    Rule::new("layers.{}.attn.q", "layers.{}.self_attn.q_proj"),
    Rule::new("layers.{}.attn.k", "layers.{}.self_attn.k_proj"),
    Rule::new("layers.{}.attn.v", "layers.{}.self_attn.v_proj"),
    Rule::new("layers.{}.attn.out", "layers.{}.self_attn.o_proj"),
    Rule::new("layers.{}.mlp.gate", "layers.{}.mlp.gate_proj"),
    Rule::new("layers.{}.mlp.up", "layers.{}.mlp.up_proj"),
    Rule::new("layers.{}.mlp.down", "layers.{}.mlp.down_proj"),
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let hidden = config.size("hidden_size")?;
    let keys = ["num_attention_heads", "num_key_value_heads", "head_dim"];
    let (heads, kv_heads, head) = heads(config, keys, hidden)?;
    let norm = NormSpec::rms(config.optional_number("rms_norm_eps")?.unwrap_or(1e-6));
    let bias = config.truth_or("attention_bias", false)?;
    let attention = AttentionSpec {
        scale: (config.optional_number("query_pre_attn_scalar")?.unwrap_or(256.0)).powf(-0.5) as f32,
        softcap: config.optional_number("attn_logit_softcapping")?.map(|cap| cap as f32),
        qkv_bias: bias,
        out_bias: bias,
        rope: Some(0),
        ..AttentionSpec::plain(heads, kv_heads, head)
    };
    let mlp = MlpSpec::gated(
        config.size("intermediate_size")?,
        activation(config, "hidden_activation", "gelu_pytorch_tanh")?,
    );
    let depth = layers(config, "num_hidden_layers")?;
    let window = config.optional_size("sliding_window")?.unwrap_or(4096);
    let slides = sliding(config, depth, |number| number.is_multiple_of(2))?;
    let layer_of = |slides: bool| {
        layer(norm, AttentionSpec { window: slides.then_some(window), ..attention.clone() }, mlp.clone())
    };
    let base = config.optional_number("rope_theta")?.unwrap_or(10_000.0);
    let scale = (hidden as f64).sqrt() as f32;
    let parts = Parts {
        hidden,
        embed: EmbedSpec { scale, ..EmbedSpec::plain(config.size("vocab_size")?, hidden) },
        layers: slides.into_iter().map(layer_of).collect(),
        context: config.optional_size("max_position_embeddings")?.unwrap_or(8192),
        ropes: vec![RopeSpec {
            base,
            rotated: head,
            style: RopeStyle::Halves,
            scaling: rope::scaling(config, base, head)?,
            axes: RopeAxes::One,
        }],
        bias: BiasSpec::None,
        final_norm: Some(norm),
    };
    let logits = LogitsSpec {
        softcap: config.optional_number("final_logit_softcapping")?.map(|cap| cap as f32),
        ..LogitsSpec::plain(config.truth_or("tie_word_embeddings", true)?)
    };
    Ok(parts.decoder(decoder_head(config, kind, logits)?))
}

/// A layer of two parts with a norm before and after each.
pub(super) fn layer(norm: NormSpec, attention: AttentionSpec, mlp: MlpSpec) -> LayerSpec {
    let norms = NormsSpec { mixer_out: Some(norm), ffn_out: Some(norm), ..NormsSpec::before(norm) };
    LayerSpec { norms, ..sequential(norm, attention, mlp) }
}
