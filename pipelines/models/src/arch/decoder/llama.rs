//! Llama (`transformers/models/llama`; <https://arxiv.org/abs/2302.13971>), and everything with its weights' layout.

use accel_backends::weights::TensorIndex;

use super::{Parts, activation, gguf, heads, layers, sequential, turned};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, Gguf, HeadKind, HuggingFace, decoder_head, rope};
use crate::config::Config;
use crate::rules::{Rule, Rules};
use crate::spec::{
    Activation, AttentionSpec, BiasSpec, EmbedSpec, FfnSpec, HeadSpec, LayerSpec, LogitsSpec, MlpSpec, NormSpec,
    NormsSpec, RopeAxes, RopeScaling, RopeSpec, RopeStyle, Spec,
};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::DecoderOnly,
    hugging_face: HuggingFace { model_type: "llama", classes: CLASSES, spec, stack: STACK, heads: HEADS },
    gguf: Some(Gguf {
        architecture: "llama",
        spec: gguf_spec,
        rules: Rules { prefix: "", base: "", stack: GGUF_STACK, heads: GGUF_HEADS },
    }),
};

const CLASSES: &[Class] = &[
    Class { name: "LlamaForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "LlamaModel", head: HeadKind::States, base: "" },
    Class { name: "LlamaForSequenceClassification", head: HeadKind::SequenceLabels, base: "model." },
    Class { name: "LlamaForTokenClassification", head: HeadKind::TokenLabels, base: "model." },
    Class { name: "LlamaForQuestionAnswering", head: HeadKind::Span, base: "transformer." },
];

/// The names of Hugging Face's checkpoints.
pub(in crate::arch) const STACK: &[Rule] = &[
    Rule::new("embed", "embed_tokens"),
    Rule::new("layers.{}.attn_norm", "layers.{}.input_layernorm"),
    Rule::new("layers.{}.attn.q", "layers.{}.self_attn.q_proj"),
    Rule::new("layers.{}.attn.k", "layers.{}.self_attn.k_proj"),
    Rule::new("layers.{}.attn.v", "layers.{}.self_attn.v_proj"),
    Rule::new("layers.{}.attn.out", "layers.{}.self_attn.o_proj"),
    Rule::new("layers.{}.mlp_norm", "layers.{}.post_attention_layernorm"),
    Rule::new("layers.{}.mlp.gate", "layers.{}.mlp.gate_proj"),
    Rule::new("layers.{}.mlp.up", "layers.{}.mlp.up_proj"),
    Rule::new("layers.{}.mlp.down", "layers.{}.mlp.down_proj"),
    Rule::new("final_norm", "norm"),
];

/// The names of all heads that Hugging Face's generic classes put on a stack (`modeling_layers.py`).
pub(in crate::arch) const HEADS: &[Rule] = &[
    Rule::new("head.next_token", "lm_head"),
    Rule::new("head.labels", "score"),
    Rule::new("head.token_labels", "score"),
    Rule::new("head.span", "qa_outputs"),
];

/// The names of GGUF files.
pub(super) const GGUF_STACK: &[Rule] = &[
    Rule::new("embed", "token_embd"),
    Rule::new("layers.{}.attn_norm", "blk.{}.attn_norm"),
    Rule::new("layers.{}.attn.q", "blk.{}.attn_q"),
    Rule::new("layers.{}.attn.k", "blk.{}.attn_k"),
    Rule::new("layers.{}.attn.v", "blk.{}.attn_v"),
    Rule::new("layers.{}.attn.out", "blk.{}.attn_output"),
    Rule::new("layers.{}.mlp_norm", "blk.{}.ffn_norm"),
    Rule::new("layers.{}.mlp.gate", "blk.{}.ffn_gate"),
    Rule::new("layers.{}.mlp.up", "blk.{}.ffn_up"),
    Rule::new("layers.{}.mlp.down", "blk.{}.ffn_down"),
    Rule::new("final_norm", "output_norm"),
    Rule::new("rope.factors", "rope_freqs"),
];

/// The name of the head in GGUF files.
pub(super) const GGUF_HEADS: &[Rule] = &[Rule::new("head.next_token", "output")];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let attention_bias = config.truth_or("attention_bias", false)?;
    let change = |_, attention: &mut AttentionSpec, mlp: &mut MlpSpec| {
        (attention.qkv_bias, attention.out_bias) = (attention_bias, attention_bias);
        mlp.bias = config.truth_or("mlp_bias", false)?;
        Ok(())
    };
    like_llama(config, kind, LAYOUT, change)
}

/// What differs between types with the keys of Llama's configuration, beside what differs between layers.
#[derive(Clone, Copy)]
pub(in crate::arch) struct Layout {
    /// The most positions where the configuration says nothing.
    pub context: usize,
    /// Elements of a head where it says nothing; else the heads share those of a state.
    pub head: Option<usize>,
    /// What is added to mean squares or variances: the key, and the number where it says nothing.
    pub norm_eps: (&'static str, f64),
    /// The norm, with that number.
    pub norm: fn(f64) -> NormSpec,
    /// The base of frequencies where it says nothing.
    pub rope_base: f64,
    /// Which elements turn together.
    pub rope_style: RopeStyle,
    /// The key of the part of a head that turns, where not all of it does.
    pub turned: Option<&'static str>,
    /// Whether logits come from the table of embeddings where it says nothing.
    pub tied: bool,
    /// The norms of a layer.
    pub norms: fn(NormSpec) -> NormsSpec,
    /// Factor of the embeddings.
    pub embed_scale: f32,
    /// Factor of what a part of a layer adds.
    pub residual_scale: f32,
    /// Factor of the logits.
    pub logits_scale: f32,
    /// The key of whether logits have a bias, where they may.
    pub logits_bias: Option<&'static str>,
    /// What stretches frequencies, by their base and the elements that turn.
    pub rope_scaling: fn(&Config, f64, usize) -> Result<RopeScaling, ModelError>,
}

/// Llama's own.
pub(in crate::arch) const LAYOUT: Layout = Layout {
    context: 2048,
    head: None,
    norm_eps: ("rms_norm_eps", 1e-6),
    norm: NormSpec::rms,
    rope_base: 10_000.0,
    rope_style: RopeStyle::Halves,
    turned: None,
    tied: false,
    norms: NormsSpec::before,
    embed_scale: 1.0,
    residual_scale: 1.0,
    logits_scale: 1.0,
    logits_bias: None,
    rope_scaling: rope::scaling,
};

/// A decoder with the keys of Llama's configuration, and what differs in each of its layers.
pub(in crate::arch) fn like_llama(
    config: &Config,
    kind: HeadKind,
    layout: Layout,
    change: impl Fn(usize, &mut AttentionSpec, &mut MlpSpec) -> Result<(), ModelError>,
) -> Result<Spec, ModelError> {
    like_llama_with(config, kind, layout, |number, attention, mut mlp| {
        change(number, attention, &mut mlp)?;
        Ok(FfnSpec::Dense(mlp))
    })
}

/// The same with feed-forward parts of any kind, each made of the one that Llama would have.
pub(super) fn like_llama_with(
    config: &Config,
    kind: HeadKind,
    layout: Layout,
    ffn: impl Fn(usize, &mut AttentionSpec, MlpSpec) -> Result<FfnSpec, ModelError>,
) -> Result<Spec, ModelError> {
    let hidden = config.size("hidden_size")?;
    let keys = ["num_attention_heads", "num_key_value_heads", "head_dim"];
    let shared = match layout.head {
        Some(head) => head * config.size("num_attention_heads")?,
        None => hidden,
    };
    let (heads, kv_heads, head) = heads(config, keys, shared)?;
    let base = config.optional_number("rope_theta")?.unwrap_or(layout.rope_base);
    let rotated = layout.turned.map_or(Ok(head), |key| turned(config, key, 1.0, head))?;
    let (eps_key, eps) = layout.norm_eps;
    let norm = (layout.norm)(config.optional_number(eps_key)?.unwrap_or(eps));
    let attention = AttentionSpec { rope: Some(0), ..AttentionSpec::plain(heads, kv_heads, head) };
    let mlp = MlpSpec::gated(config.size("intermediate_size")?, activation(config, "hidden_act", "silu")?);
    let layer = |number| {
        let mut attention = attention.clone();
        let ffn = ffn(number, &mut attention, mlp.clone())?;
        let norms = (layout.norms)(norm);
        Ok(LayerSpec { ffn, norms, residual_scale: layout.residual_scale, ..sequential(norm, attention, mlp.clone()) })
    };
    let tied = config.truth_or("tie_word_embeddings", layout.tied)?;
    let bias = layout.logits_bias.map_or(Ok(false), |key| config.truth_or(key, false))?;
    let logits = LogitsSpec { scale: layout.logits_scale, bias, ..LogitsSpec::plain(tied) };
    let parts = Parts {
        hidden,
        embed: EmbedSpec { scale: layout.embed_scale, ..EmbedSpec::plain(config.size("vocab_size")?, hidden) },
        layers: (0..layers(config, "num_hidden_layers")?).map(layer).collect::<Result<_, ModelError>>()?,
        context: config.optional_size("max_position_embeddings")?.unwrap_or(layout.context),
        ropes: vec![RopeSpec {
            base,
            rotated,
            style: layout.rope_style,
            scaling: (layout.rope_scaling)(config, base, rotated)?,
            axes: RopeAxes::One,
        }],
        bias: BiasSpec::None,
        final_norm: Some(norm),
    };
    Ok(parts.decoder(decoder_head(config, kind, logits)?))
}

/// GGUF writers permute queries and keys of this type, so that neighbours turn together.
fn gguf_spec(config: &Config, index: &TensorIndex) -> Result<Spec, ModelError> {
    if let Some(experts) = config.optional_size("llama.expert_count").ok().flatten() {
        let (what, found) = ("llama.expert_count".to_owned(), experts.to_string());
        return Err(ModelError::Unsupported { what, found, supported: "models without experts".into() });
    }
    let sizes = gguf::sizes(config, index, "llama")?;
    let norm = NormSpec::rms(sizes.norm_eps);
    let attention = AttentionSpec {
        qkv_bias: index.get("blk.0.attn_q.bias").is_some(),
        out_bias: index.get("blk.0.attn_output.bias").is_some(),
        rope: Some(0),
        ..AttentionSpec::plain(sizes.heads, sizes.kv_heads, sizes.head)
    };
    let mlp =
        MlpSpec { bias: index.get("blk.0.ffn_gate.bias").is_some(), ..MlpSpec::gated(sizes.inner, Activation::Silu) };
    let parts = Parts {
        hidden: sizes.hidden,
        embed: EmbedSpec::plain(sizes.vocabulary, sizes.hidden),
        layers: vec![sequential(norm, attention, mlp); sizes.layers],
        context: sizes.context,
        ropes: vec![RopeSpec {
            base: config.optional_number("llama.rope.freq_base")?.unwrap_or(10_000.0),
            rotated: sizes.rotated,
            style: RopeStyle::Pairs,
            scaling: gguf::rope_scaling(config, index, "llama")?,
            axes: RopeAxes::One,
        }],
        bias: BiasSpec::None,
        final_norm: Some(norm),
    };
    Ok(parts.decoder(HeadSpec::NextToken(LogitsSpec::plain(index.get("output.weight").is_none()))))
}
