//! Mamba (`transformers/models/mamba`; <https://arxiv.org/abs/2312.00752>).

use super::{Parts, activation, layers};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, decoder_head};
use crate::config::{Config, ConfigError};
use crate::rules::Rule;
use crate::spec::{
    BiasSpec, EmbedSpec, FfnSpec, LayerSpec, LogitsSpec, MambaSpec, MixerSpec, NormSpec, NormsSpec, ResidualSpec, Spec,
};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::StateSpace,
    hugging_face: HuggingFace { model_type: "mamba", classes: CLASSES, spec, stack: STACK, heads: HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "MambaForCausalLM", head: HeadKind::NextToken, base: "backbone." },
    Class { name: "MambaModel", head: HeadKind::States, base: "" },
];

const STACK: &[Rule] = &[
    Rule::new("embed", "embeddings"),
    // Some checkpoints have the older name.
    Rule::new("embed", "embedding"),
    Rule::new("layers.{}.attn_norm", "layers.{}.norm"),
    Rule::new("layers.{}.mamba.in", "layers.{}.mixer.in_proj"),
    Rule::new("layers.{}.mamba.conv", "layers.{}.mixer.conv1d"),
    Rule::new("layers.{}.mamba.select", "layers.{}.mixer.x_proj"),
    Rule::new("layers.{}.mamba.step", "layers.{}.mixer.dt_proj"),
    Rule::new("layers.{}.mamba.rate", "layers.{}.mixer.A_log"),
    Rule::new("layers.{}.mamba.skip", "layers.{}.mixer.D"),
    Rule::new("layers.{}.mamba.out", "layers.{}.mixer.out_proj"),
    Rule::new("final_norm", "norm_f"),
];

pub(super) const HEADS: &[Rule] = &[Rule::new("head.next_token", "lm_head")];

/// The most positions of a sequence: a recurrence has no bound of its own, so this one is ours.
pub(super) const CONTEXT: usize = 1 << 20;

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let hidden = config.size("hidden_size")?;
    let inner = match config.optional_size("intermediate_size")? {
        Some(inner) => inner,
        None => expanded(config, "expand", hidden)?,
    };
    let norm = NormSpec::rms(config.optional_number("layer_norm_epsilon")?.unwrap_or(1e-5));
    let mamba = MambaSpec {
        inner,
        places: config.optional_size("state_size")?.unwrap_or(16),
        taps: config.optional_size("conv_kernel")?.unwrap_or(4),
        step_rank: step_rank(config, "time_step_rank", hidden)?,
        activation: activation(config, "hidden_act", "silu")?,
        bias: config.truth_or("use_bias", false)?,
        conv_bias: config.truth_or("use_conv_bias", true)?,
        norm: None,
    };
    let layer = mixer_alone(MixerSpec::Mamba(mamba), norm);
    let parts = Parts {
        hidden,
        embed: EmbedSpec::plain(config.size("vocab_size")?, hidden),
        layers: vec![layer; layers(config, "num_hidden_layers")?],
        context: CONTEXT,
        ropes: Vec::new(),
        bias: BiasSpec::None,
        final_norm: Some(norm),
    };
    let logits = LogitsSpec::plain(config.truth_or("tie_word_embeddings", true)?);
    Ok(parts.decoder(decoder_head(config, kind, logits)?))
}

/// A layer of one part, with a norm before it.
pub(super) fn mixer_alone(mixer: MixerSpec, norm: NormSpec) -> LayerSpec {
    LayerSpec {
        mixer,
        cross: None,
        ffn: FfnSpec::None,
        norms: NormsSpec { mixer: Some(norm), ..NormsSpec::default() },
        residual: ResidualSpec::Sequential,
        residual_scale: 1.0,
    }
}

/// Channels: a multiple of a state's elements, two where the configuration does not say.
pub(super) fn expanded(config: &Config, key: &str, hidden: usize) -> Result<usize, ConfigError> {
    let channels = config.optional_number(key)?.unwrap_or(2.0) * hidden as f64;
    if (1.0..=f64::from(1 << 30)).contains(&channels) {
        Ok(channels as usize)
    } else {
        Err(config.wrong(key, "a factor"))
    }
}

/// Elements that steps are made from: a number, or "auto" for a sixteenth of a state's.
pub(super) fn step_rank(config: &Config, key: &str, hidden: usize) -> Result<usize, ConfigError> {
    match config.optional_text(key) {
        Ok(text) if text.as_deref().is_none_or(|text| text == "auto") => Ok(hidden.div_ceil(16)),
        Ok(_) => Err(config.wrong(key, "a positive whole number or \"auto\"")),
        Err(_) => config.size(key),
    }
}
