//! Mamba-2 (`transformers/models/mamba2`; <https://arxiv.org/abs/2405.21060>).

use super::mamba::{CONTEXT, HEADS, expanded, mixer_alone};
use super::{Parts, activation, layers};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, decoder_head};
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::{BiasSpec, EmbedSpec, LogitsSpec, Mamba2Spec, MixerSpec, NormSpec, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::StateSpace,
    hugging_face: HuggingFace { model_type: "mamba2", classes: CLASSES, spec, stack: STACK, heads: HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "Mamba2ForCausalLM", head: HeadKind::NextToken, base: "backbone." },
    Class { name: "Mamba2Model", head: HeadKind::States, base: "" },
];

const STACK: &[Rule] = &[
    Rule::new("embed", "embeddings"),
    // Some checkpoints have the older name.
    Rule::new("embed", "embedding"),
    Rule::new("layers.{}.attn_norm", "layers.{}.norm"),
    Rule::new("layers.{}.mamba.in", "layers.{}.mixer.in_proj"),
    Rule::new("layers.{}.mamba.conv", "layers.{}.mixer.conv1d"),
    Rule::new("layers.{}.mamba.step_bias", "layers.{}.mixer.dt_bias"),
    Rule::new("layers.{}.mamba.rate", "layers.{}.mixer.A_log"),
    Rule::new("layers.{}.mamba.skip", "layers.{}.mixer.D"),
    Rule::new("layers.{}.mamba.norm", "layers.{}.mixer.norm"),
    Rule::new("layers.{}.mamba.out", "layers.{}.mixer.out_proj"),
    Rule::new("final_norm", "norm_f"),
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let hidden = config.size("hidden_size")?;
    let (heads, head) = (config.size("num_heads")?, config.size("head_dim")?);
    if expanded(config, "expand", hidden)? != heads * head {
        return Err(config.wrong("expand", format!("{heads} heads of {head} from a state of {hidden}")).into());
    }
    let groups = config.optional_size("n_groups")?.unwrap_or(8);
    if !heads.is_multiple_of(groups) {
        return Err(config.wrong("n_groups", format!("a divisor of the {heads} heads")).into());
    }
    let steps =
        if config.has("time_step_limit") { config.numbers("time_step_limit", 2)? } else { vec![0.0, f64::INFINITY] };
    let norm = NormSpec::rms(config.optional_number("layer_norm_epsilon")?.unwrap_or(1e-5));
    let mamba = Mamba2Spec {
        heads,
        head,
        groups,
        places: config.optional_size("state_size")?.unwrap_or(128),
        taps: config.optional_size("conv_kernel")?.unwrap_or(4),
        activation: activation(config, "hidden_act", "silu")?,
        bias: config.truth_or("use_bias", false)?,
        conv_bias: config.truth_or("use_conv_bias", true)?,
        steps: (steps[0] as f32, steps[1] as f32),
        norm,
    };
    let layer = mixer_alone(MixerSpec::Mamba2(mamba), norm);
    let parts = Parts {
        hidden,
        embed: EmbedSpec::plain(config.size("vocab_size")?, hidden),
        layers: vec![layer; layers(config, "num_hidden_layers")?],
        context: CONTEXT,
        ropes: Vec::new(),
        bias: BiasSpec::None,
        final_norm: Some(norm),
    };
    let logits = LogitsSpec::plain(config.truth_or("tie_word_embeddings", false)?);
    Ok(parts.decoder(decoder_head(config, kind, logits)?))
}
