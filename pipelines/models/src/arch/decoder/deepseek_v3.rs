//! DeepSeek-V3 (`transformers/models/deepseek_v3`; <https://arxiv.org/abs/2412.19437>).

use super::{Parts, activation, chosen, layers, llama, turning};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, decoder_head, rope};
use crate::config::{Config, ConfigError};
use crate::rules::{Rule, joined};
use crate::spec::{
    BiasSpec, EmbedSpec, FfnSpec, LatentSpec, LayerSpec, LogitsSpec, MixerSpec, MlpSpec, MoeSpec, NormSpec, NormsSpec,
    ResidualSpec, RopeAxes, RopeSpec, RopeStyle, RouterGroups, RouterScores, RouterSpec, SharedExpertSpec, Spec,
};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::MixtureOfExperts,
    hugging_face: HuggingFace { model_type: "deepseek_v3", classes: CLASSES, spec, stack: STACK, heads: llama::HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "DeepseekV3ForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "DeepseekV3Model", head: HeadKind::States, base: "" },
    Class { name: "DeepseekV3ForSequenceClassification", head: HeadKind::SequenceLabels, base: "model." },
    Class { name: "DeepseekV3ForTokenClassification", head: HeadKind::TokenLabels, base: "model." },
];

/// The names of experts and their router.
pub(super) const EXPERTS: &[Rule] = &[
    Rule::new("layers.{}.moe.router", "layers.{}.mlp.gate"),
    Rule::new("layers.{}.moe.experts.{}.gate", "layers.{}.mlp.experts.{}.gate_proj"),
    Rule::new("layers.{}.moe.experts.{}.up", "layers.{}.mlp.experts.{}.up_proj"),
    Rule::new("layers.{}.moe.experts.{}.down", "layers.{}.mlp.experts.{}.down_proj"),
];

pub(super) const STACK: &[Rule] = &joined::<{ EXPERTS.len() + OWN.len() }>(EXPERTS, OWN);

const OWN: &[Rule] = &[
    Rule::new("embed", "embed_tokens"),
    Rule::new("layers.{}.attn_norm", "layers.{}.input_layernorm"),
    Rule::new("layers.{}.attn.q", "layers.{}.self_attn.q_proj"),
    Rule::new("layers.{}.attn.q_narrow", "layers.{}.self_attn.q_a_proj"),
    Rule::new("layers.{}.attn.q_norm", "layers.{}.self_attn.q_a_layernorm"),
    Rule::new("layers.{}.attn.q_wide", "layers.{}.self_attn.q_b_proj"),
    Rule::new("layers.{}.attn.kv_narrow", "layers.{}.self_attn.kv_a_proj_with_mqa"),
    Rule::new("layers.{}.attn.kv_norm", "layers.{}.self_attn.kv_a_layernorm"),
    Rule::new("layers.{}.attn.kv_wide", "layers.{}.self_attn.kv_b_proj"),
    Rule::new("layers.{}.attn.out", "layers.{}.self_attn.o_proj"),
    Rule::new("layers.{}.mlp_norm", "layers.{}.post_attention_layernorm"),
    Rule::new("layers.{}.mlp.gate", "layers.{}.mlp.gate_proj"),
    Rule::new("layers.{}.mlp.up", "layers.{}.mlp.up_proj"),
    Rule::new("layers.{}.mlp.down", "layers.{}.mlp.down_proj"),
    Rule::new("layers.{}.moe.router.correction", "layers.{}.mlp.gate.e_score_correction_bias"),
    Rule::new("layers.{}.moe.shared.gate", "layers.{}.mlp.shared_experts.gate_proj"),
    Rule::new("layers.{}.moe.shared.up", "layers.{}.mlp.shared_experts.up_proj"),
    Rule::new("layers.{}.moe.shared.down", "layers.{}.mlp.shared_experts.down_proj"),
    Rule::new("final_norm", "norm"),
];

const TURNED: &str = "qk_rope_head_dim";

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let act = activation(config, "hidden_act", "silu")?;
    let inner = config.size("moe_intermediate_size")?;
    let experts = config.size("n_routed_experts")?;
    let moe = MoeSpec {
        experts,
        expert: MlpSpec::gated(inner, act),
        router: RouterSpec {
            normalised: config.truth_or("norm_topk_prob", true)?,
            scale: config.optional_number("routed_scaling_factor")?.unwrap_or(2.5) as f32,
            correction: true,
            groups: Some(groups(config, experts, 2)?),
            ..RouterSpec::plain(chosen(config, None, experts)?, RouterScores::Sigmoid)
        },
        shared: Some(SharedExpertSpec {
            mlp: MlpSpec::gated(inner * config.optional_size("n_shared_experts")?.unwrap_or(1), act),
            gated: false,
        }),
    };
    let dense = MlpSpec::gated(config.size("intermediate_size")?, act);
    // Nought is a size here.
    let first = config.optional_integer("first_k_dense_replace")?.unwrap_or(3);
    let style = if config.truth_or("rope_interleave", true)? { RopeStyle::Pairs } else { RopeStyle::Halves };
    like_deepseek(config, kind, style, 4096, |number| {
        Ok(if (number as i64) < first {
            FfnSpec::Dense(dense.clone())
        } else {
            FfnSpec::Experts(Box::new(moe.clone()))
        })
    })
}

/// The groups of so many experts, each as good as so many of its best together.
pub(super) fn groups(config: &Config, experts: usize, best: usize) -> Result<RouterGroups, ConfigError> {
    let (groups, chosen) = (config.size("n_group")?, config.size("topk_group")?);
    if !experts.is_multiple_of(groups) {
        return Err(config.wrong("n_group", format!("a divisor of the {experts} experts")));
    }
    if chosen > groups {
        return Err(config.wrong("topk_group", format!("at most the {groups} groups")));
    }
    Ok(RouterGroups { groups, chosen, best })
}

/// A decoder with the keys of DeepSeek's configurations, the feed-forward parts of its layers, and the context where the
/// configuration says nothing.
pub(super) fn like_deepseek(
    config: &Config,
    kind: HeadKind,
    style: RopeStyle,
    context: usize,
    ffn: impl Fn(usize) -> Result<FfnSpec, ModelError>,
) -> Result<Spec, ModelError> {
    let hidden = config.size("hidden_size")?;
    let norm = NormSpec::rms(config.optional_number("rms_norm_eps")?.unwrap_or(1e-6));
    let (plain, turned) = (config.size("qk_nope_head_dim")?, config.size(TURNED)?);
    let turned = turning(config, TURNED, turned)?;
    let attention = LatentSpec {
        heads: config.size("num_attention_heads")?,
        query_rank: config.optional_size("q_lora_rank")?,
        kv_rank: config.size("kv_lora_rank")?,
        plain,
        turned,
        value_head: config.size("v_head_dim")?,
        scale: rope::latent_scale(config, plain + turned)?,
        rope: 0,
        bias: config.truth_or("attention_bias", false)?,
        norm_eps: 1e-6,
    };
    let layer = |number: usize| {
        Ok(LayerSpec {
            mixer: MixerSpec::Latent(attention.clone()),
            cross: None,
            ffn: ffn(number)?,
            norms: NormsSpec::before(norm),
            residual: ResidualSpec::Sequential,
            residual_scale: 1.0,
        })
    };
    let base = config.optional_number("rope_theta")?.unwrap_or(10_000.0);
    let parts = Parts {
        hidden,
        embed: EmbedSpec::plain(config.size("vocab_size")?, hidden),
        layers: (0..layers(config, "num_hidden_layers")?).map(layer).collect::<Result<_, ModelError>>()?,
        context: config.optional_size("max_position_embeddings")?.unwrap_or(context),
        ropes: vec![RopeSpec {
            base,
            rotated: turned,
            style,
            scaling: rope::scaling(config, base, turned)?,
            axes: RopeAxes::One,
        }],
        bias: BiasSpec::None,
        final_norm: Some(norm),
    };
    let logits = LogitsSpec::plain(config.truth_or("tie_word_embeddings", false)?);
    Ok(parts.decoder(decoder_head(config, kind, logits)?))
}
