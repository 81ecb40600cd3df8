//! Jamba (`transformers/models/jamba`; <https://arxiv.org/abs/2403.19887>): layers of Mamba with some of attention
//! between, and experts in some of either.

use super::mamba::{expanded, step_rank};
use super::{Parts, activation, layers, llama};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, decoder_head};
use crate::config::{Config, ConfigError};
use crate::rules::Rule;
use crate::spec::{
    AttentionSpec, BiasSpec, EmbedSpec, FfnSpec, LayerSpec, LogitsSpec, MambaSpec, MixerSpec, MlpSpec, MoeSpec,
    NormSpec, NormsSpec, ResidualSpec, RouterScores, RouterSpec, Spec,
};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::StateSpace,
    hugging_face: HuggingFace { model_type: "jamba", classes: CLASSES, spec, stack: STACK, heads: llama::HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "JambaForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "JambaModel", head: HeadKind::States, base: "" },
    Class { name: "JambaForSequenceClassification", head: HeadKind::SequenceLabels, base: "model." },
];

const STACK: &[Rule] = &[
    Rule::new("embed", "embed_tokens"),
    Rule::new("layers.{}.attn_norm", "layers.{}.input_layernorm"),
    Rule::new("layers.{}.attn.q", "layers.{}.self_attn.q_proj"),
    Rule::new("layers.{}.attn.k", "layers.{}.self_attn.k_proj"),
    Rule::new("layers.{}.attn.v", "layers.{}.self_attn.v_proj"),
    Rule::new("layers.{}.attn.out", "layers.{}.self_attn.o_proj"),
    Rule::new("layers.{}.mamba.in", "layers.{}.mamba.in_proj"),
    Rule::new("layers.{}.mamba.conv", "layers.{}.mamba.conv1d"),
    Rule::new("layers.{}.mamba.select", "layers.{}.mamba.x_proj"),
    Rule::new("layers.{}.mamba.step_norm", "layers.{}.mamba.dt_layernorm"),
    Rule::new("layers.{}.mamba.input_norm", "layers.{}.mamba.b_layernorm"),
    Rule::new("layers.{}.mamba.output_norm", "layers.{}.mamba.c_layernorm"),
    Rule::new("layers.{}.mamba.step", "layers.{}.mamba.dt_proj"),
    Rule::new("layers.{}.mamba.rate", "layers.{}.mamba.A_log"),
    Rule::new("layers.{}.mamba.skip", "layers.{}.mamba.D"),
    Rule::new("layers.{}.mamba.out", "layers.{}.mamba.out_proj"),
    Rule::new("layers.{}.mlp_norm", "layers.{}.pre_ff_layernorm"),
    Rule::new("layers.{}.mlp.gate", "layers.{}.feed_forward.gate_proj"),
    Rule::new("layers.{}.mlp.up", "layers.{}.feed_forward.up_proj"),
    Rule::new("layers.{}.mlp.down", "layers.{}.feed_forward.down_proj"),
    Rule::new("layers.{}.moe.router", "layers.{}.feed_forward.router"),
    Rule::new("layers.{}.moe.experts.{}.gate", "layers.{}.feed_forward.experts.{}.gate_proj"),
    Rule::new("layers.{}.moe.experts.{}.up", "layers.{}.feed_forward.experts.{}.up_proj"),
    Rule::new("layers.{}.moe.experts.{}.down", "layers.{}.feed_forward.experts.{}.down_proj"),
    Rule::new("final_norm", "final_layernorm"),
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let (hidden, heads) = (config.size("hidden_size")?, config.size("num_attention_heads")?);
    let kv_heads = config.optional_size("num_key_value_heads")?.unwrap_or(heads);
    if !hidden.is_multiple_of(heads) || !heads.is_multiple_of(kv_heads) {
        return Err(config
            .wrong("num_attention_heads", format!("a divisor of {hidden}, multiple of {kv_heads}"))
            .into());
    }
    let norm = NormSpec::rms(config.optional_number("rms_norm_eps")?.unwrap_or(1e-6));
    let act = activation(config, "hidden_act", "silu")?;
    // Attention knows nothing of positions: the layers between do.
    let attention = AttentionSpec::plain(heads, kv_heads, hidden / heads);
    let mamba = MambaSpec {
        inner: expanded(config, "mamba_expand", hidden)?,
        places: config.optional_size("mamba_d_state")?.unwrap_or(16),
        taps: config.optional_size("mamba_d_conv")?.unwrap_or(4),
        step_rank: step_rank(config, "mamba_dt_rank", hidden)?,
        activation: act,
        bias: config.truth_or("mamba_proj_bias", false)?,
        conv_bias: config.truth_or("mamba_conv_bias", true)?,
        norm: Some(norm),
    };
    let dense = MlpSpec::gated(config.size("intermediate_size")?, act);
    let experts = config.optional_size("num_experts")?.unwrap_or(16);
    let chosen = config.optional_size("num_experts_per_tok")?.unwrap_or(2);
    let moe = MoeSpec {
        experts,
        expert: dense.clone(),
        router: RouterSpec::plain(chosen, RouterScores::Softmax),
        shared: None,
    };
    let attends = every(config, ["attn_layer_period", "attn_layer_offset"], [8, 4])?;
    let routes = every(config, ["expert_layer_period", "expert_layer_offset"], [2, 1])?;
    let layer = |number: usize| LayerSpec {
        mixer: if attends(number) { MixerSpec::Attention(attention.clone()) } else { MixerSpec::Mamba(mamba.clone()) },
        cross: None,
        ffn: if routes(number) && experts > 1 {
            FfnSpec::Experts(Box::new(moe.clone()))
        } else {
            FfnSpec::Dense(dense.clone())
        },
        norms: NormsSpec::before(norm),
        residual: ResidualSpec::Sequential,
        residual_scale: 1.0,
    };
    let parts = Parts {
        hidden,
        embed: EmbedSpec::plain(config.size("vocab_size")?, hidden),
        layers: (0..layers(config, "num_hidden_layers")?).map(layer).collect(),
        context: config.optional_size("max_position_embeddings")?.unwrap_or(262_144),
        ropes: Vec::new(),
        bias: BiasSpec::None,
        final_norm: Some(norm),
    };
    let logits = LogitsSpec::plain(config.truth_or("tie_word_embeddings", false)?);
    Ok(parts.decoder(decoder_head(config, kind, logits)?))
}

/// Which layers are of a kind: one of each period, after an offset that may be nought.
fn every(config: &Config, keys: [&str; 2], defaults: [usize; 2]) -> Result<impl Fn(usize) -> bool, ConfigError> {
    let period = config.optional_size(keys[0])?.unwrap_or(defaults[0]);
    let offset = config.optional_integer(keys[1])?.unwrap_or(defaults[1] as i64);
    match usize::try_from(offset) {
        Ok(offset) if offset < period => Ok(move |number: usize| number % period == offset),
        _ => Err(config.wrong(keys[1], format!("a number from 0, below the period {period}"))),
    }
}
