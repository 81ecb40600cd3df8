//! Phi (`transformers/models/phi`; <https://arxiv.org/abs/2309.05463>).

use super::{Parts, activation, heads, layers, llama, turned};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, decoder_head, rope};
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::{
    AttentionSpec, BiasSpec, EmbedSpec, FfnSpec, LayerSpec, LogitsSpec, MixerSpec, MlpSpec, NormSpec, NormsSpec,
    QkNormSpec, ResidualSpec, RopeAxes, RopeSpec, RopeStyle, Spec,
};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::DecoderOnly,
    hugging_face: HuggingFace { model_type: "phi", classes: CLASSES, spec, stack: STACK, heads: llama::HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "PhiForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "PhiModel", head: HeadKind::States, base: "" },
    Class { name: "PhiForSequenceClassification", head: HeadKind::SequenceLabels, base: "model." },
    Class { name: "PhiForTokenClassification", head: HeadKind::TokenLabels, base: "model." },
];

const STACK: &[Rule] = &[
    Rule::new("embed", "embed_tokens"),
    Rule::new("layers.{}.attn_norm", "layers.{}.input_layernorm"),
    Rule::new("layers.{}.attn.q", "layers.{}.self_attn.q_proj"),
    Rule::new("layers.{}.attn.k", "layers.{}.self_attn.k_proj"),
    Rule::new("layers.{}.attn.v", "layers.{}.self_attn.v_proj"),
    Rule::new("layers.{}.attn.out", "layers.{}.self_attn.dense"),
    Rule::new("layers.{}.attn.q_norm", "layers.{}.self_attn.q_layernorm"),
    Rule::new("layers.{}.attn.k_norm", "layers.{}.self_attn.k_layernorm"),
    Rule::new("layers.{}.mlp.up", "layers.{}.mlp.fc1"),
    Rule::new("layers.{}.mlp.down", "layers.{}.mlp.fc2"),
    Rule::new("final_norm", "final_layernorm"),
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let hidden = config.size("hidden_size")?;
    let keys = ["num_attention_heads", "num_key_value_heads", "head_dim"];
    let (heads, kv_heads, head) = heads(config, keys, hidden)?;
    let norm = NormSpec::layer(config.optional_number("layer_norm_eps")?.unwrap_or(1e-5));
    let qk_norm = config.truth_or("qk_layernorm", false)?.then_some(QkNormSpec { norm, whole: false });
    let plain = AttentionSpec::plain(heads, kv_heads, head).with_biases();
    let layer = LayerSpec {
        mixer: MixerSpec::Attention(AttentionSpec { rope: Some(0), qk_norm, ..plain }),
        cross: None,
        ffn: FfnSpec::Dense(MlpSpec::plain(
            config.size("intermediate_size")?,
            activation(config, "hidden_act", "gelu_new")?,
        )),
        norms: NormsSpec { mixer: Some(norm), ..NormsSpec::default() },
        residual: ResidualSpec::Parallel,
        residual_scale: 1.0,
    };
    let base = config.optional_number("rope_theta")?.unwrap_or(10_000.0);
    let rotated = turned(config, "partial_rotary_factor", 0.5, head)?;
    let parts = Parts {
        hidden,
        embed: EmbedSpec::plain(config.size("vocab_size")?, hidden),
        layers: vec![layer; layers(config, "num_hidden_layers")?],
        context: config.optional_size("max_position_embeddings")?.unwrap_or(2048),
        ropes: vec![RopeSpec {
            base,
            rotated,
            style: RopeStyle::Halves,
            scaling: rope::scaling(config, base, rotated)?,
            axes: RopeAxes::One,
        }],
        bias: BiasSpec::None,
        final_norm: Some(norm),
    };
    let logits = LogitsSpec { bias: true, ..LogitsSpec::plain(config.truth_or("tie_word_embeddings", false)?) };
    Ok(parts.decoder(decoder_head(config, kind, logits)?))
}
