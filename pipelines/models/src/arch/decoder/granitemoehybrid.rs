//! Granite MoE Hybrid (`transformers/models/granitemoehybrid`): Granite MoE Shared, with Mamba-2 in place of attention in
//! most layers, and in small ones without experts.

use super::mamba::expanded;
use super::{activation, granitemoe, granitemoeshared, layers, llama};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, unsupported};
use crate::config::Config;
use crate::rules::{Rule, joined};
use crate::spec::{FfnSpec, Mamba2Spec, MixerSpec, NormSpec, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::StateSpace,
    hugging_face: HuggingFace {
        model_type: "granitemoehybrid",
        classes: CLASSES,
        spec,
        stack: STACK,
        heads: llama::HEADS,
    },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "GraniteMoeHybridForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "GraniteMoeHybridModel", head: HeadKind::States, base: "" },
];

const STACK: &[Rule] = &joined::<{ MAMBA.len() + granitemoeshared::STACK.len() }>(MAMBA, granitemoeshared::STACK);

const MAMBA: &[Rule] = &[
    Rule::new("layers.{}.mamba.in", "layers.{}.mamba.in_proj"),
    Rule::new("layers.{}.mamba.conv", "layers.{}.mamba.conv1d"),
    Rule::new("layers.{}.mamba.step_bias", "layers.{}.mamba.dt_bias"),
    Rule::new("layers.{}.mamba.rate", "layers.{}.mamba.A_log"),
    Rule::new("layers.{}.mamba.skip", "layers.{}.mamba.D"),
    Rule::new("layers.{}.mamba.norm", "layers.{}.mamba.norm"),
    Rule::new("layers.{}.mamba.out", "layers.{}.mamba.out_proj"),
    // Where there are no experts, the part for all tokens stands alone.
    Rule::first_half("layers.{}.mlp.gate", "layers.{}.shared_mlp.input_linear"),
    Rule::second_half("layers.{}.mlp.up", "layers.{}.shared_mlp.input_linear"),
    Rule::new("layers.{}.mlp.down", "layers.{}.shared_mlp.output_linear"),
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let shared = config.optional_size("shared_intermediate_size")?.unwrap_or(1024);
    let attends = attends(config)?;
    let mamba = mamba(config)?;
    let turns = granitemoe::turns(config, false)?;
    let mut spec = granitemoe::like_granite_moe(config, kind, turns, Some(shared))?;
    if let Spec::Decoder(decoder) = &mut spec {
        for (layer, attends) in decoder.stack.layers.iter_mut().zip(attends) {
            if !attends {
                layer.mixer = MixerSpec::Mamba2(mamba.clone());
            }
            if let FfnSpec::Dense(mlp) = &mut layer.ffn {
                mlp.inner = shared;
            }
        }
    }
    Ok(spec)
}

/// Which layers are of attention; none where nothing is said.
fn attends(config: &Config) -> Result<Vec<bool>, ModelError> {
    let (depth, kinds) = (layers(config, "num_hidden_layers")?, config.texts("layer_types")?);
    if kinds.is_empty() {
        return Ok(vec![false; depth]);
    }
    if kinds.len() != depth {
        return Err(config.wrong("layer_types", format!("{depth} kinds of layers")).into());
    }
    let attends = |kind: String| match kind.as_str() {
        "attention" => Ok(true),
        "mamba" => Ok(false),
        _ => Err(unsupported(&config.path("layer_types"), kind, vec!["mamba, attention"])),
    };
    kinds.into_iter().map(attends).collect()
}

fn mamba(config: &Config) -> Result<Mamba2Spec, ModelError> {
    let inner = expanded(config, "mamba_expand", config.size("hidden_size")?)?;
    let heads = config.optional_size("mamba_n_heads")?.unwrap_or(128);
    let auto = config.optional_text("mamba_d_head").is_ok_and(|text| text.is_none_or(|text| text == "auto"));
    let head = if auto { inner / heads } else { config.size("mamba_d_head")? };
    if heads.checked_mul(head) != Some(inner) {
        return Err(config.wrong("mamba_n_heads", format!("heads that make {inner} channels together")).into());
    }
    let groups = config.optional_size("mamba_n_groups")?.unwrap_or(1);
    if !heads.is_multiple_of(groups) {
        return Err(config.wrong("mamba_n_groups", format!("a divisor of the {heads} heads")).into());
    }
    Ok(Mamba2Spec {
        heads,
        head,
        groups,
        places: config.optional_size("mamba_d_state")?.unwrap_or(256),
        taps: config.optional_size("mamba_d_conv")?.unwrap_or(4),
        activation: activation(config, "hidden_act", "silu")?,
        bias: config.truth_or("mamba_proj_bias", false)?,
        conv_bias: config.truth_or("mamba_conv_bias", true)?,
        steps: (0.0, f32::INFINITY),
        norm: NormSpec::rms(config.optional_number("rms_norm_eps")?.unwrap_or(1e-6)),
    })
}
