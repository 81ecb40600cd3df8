//! RWKV-4 (`transformers/models/rwkv`; <https://arxiv.org/abs/2305.13048>).

use super::{Parts, layers};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, decoder_head};
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::{
    BiasSpec, ChannelMixSpec, EmbedSpec, FfnSpec, LayerSpec, LogitsSpec, MixerSpec, NormSpec, NormsSpec, ResidualSpec,
    Spec, TimeMixSpec,
};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::StateSpace,
    hugging_face: HuggingFace { model_type: "rwkv", classes: CLASSES, spec, stack: STACK, heads: HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "RwkvForCausalLM", head: HeadKind::NextToken, base: "rwkv." },
    Class { name: "RwkvModel", head: HeadKind::States, base: "" },
];

const STACK: &[Rule] = &[
    Rule::new("embed", "embeddings"),
    Rule::new("embed_norm", "blocks.0.pre_ln"),
    Rule::new("layers.{}.attn_norm", "blocks.{}.ln1"),
    Rule::new("layers.{}.time_mix.key_mix", "blocks.{}.attention.time_mix_key"),
    Rule::new("layers.{}.time_mix.value_mix", "blocks.{}.attention.time_mix_value"),
    Rule::new("layers.{}.time_mix.receptance_mix", "blocks.{}.attention.time_mix_receptance"),
    Rule::new("layers.{}.time_mix.decay", "blocks.{}.attention.time_decay"),
    Rule::new("layers.{}.time_mix.first", "blocks.{}.attention.time_first"),
    Rule::new("layers.{}.time_mix.out", "blocks.{}.attention.output"),
    Rule::new("layers.{}.time_mix.", "blocks.{}.attention."),
    Rule::new("layers.{}.mlp_norm", "blocks.{}.ln2"),
    Rule::new("layers.{}.channel_mix.key_mix", "blocks.{}.feed_forward.time_mix_key"),
    Rule::new("layers.{}.channel_mix.receptance_mix", "blocks.{}.feed_forward.time_mix_receptance"),
    Rule::new("layers.{}.channel_mix.", "blocks.{}.feed_forward."),
    Rule::new("final_norm", "ln_out"),
];

const HEADS: &[Rule] = &[Rule::new("head.next_token", "head")];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let hidden = config.size("hidden_size")?;
    let eps = config.optional_number("layer_norm_epsilon")?.unwrap_or(1e-5);
    // Nought and numbers below it are for never.
    let halved_every = config.optional_integer("rescale_every")?.unwrap_or(6);
    // For narrow floats the library halves states after each so many layers, and what later layers add with them. Floats
    // of ours have room, and a norm of a halved state is that of the whole one with four times the epsilon: exactly so,
    // since these are powers of two.
    let norm = |eps: f64, layers_before: usize| {
        let halvings = (layers_before as i64).checked_div(halved_every.max(0)).unwrap_or(0);
        NormSpec::layer(eps * 4_f64.powi(halvings as i32))
    };
    let time_mix = config.optional_size("attention_hidden_size")?.unwrap_or(hidden);
    let channel_mix = config.optional_size("intermediate_size")?.unwrap_or(4 * hidden);
    let layer = |number: usize| LayerSpec {
        mixer: MixerSpec::TimeMix(TimeMixSpec { inner: time_mix }),
        cross: None,
        ffn: FfnSpec::ChannelMix(ChannelMixSpec { inner: channel_mix }),
        norms: NormsSpec::before(norm(eps, number)),
        residual: ResidualSpec::Sequential,
        residual_scale: 1.0,
    };
    let layers = layers(config, "num_hidden_layers")?;
    let embed = EmbedSpec::plain(config.size("vocab_size")?, hidden);
    let parts = Parts {
        hidden,
        embed: EmbedSpec { norm: Some(norm(eps, 0)), ..embed },
        layers: (0..layers).map(layer).collect(),
        context: config.optional_size("context_length")?.unwrap_or(1024),
        ropes: Vec::new(),
        bias: BiasSpec::None,
        // The library has this one's epsilon from no configuration.
        final_norm: Some(norm(1e-5, layers)),
    };
    let logits = LogitsSpec::plain(config.truth_or("tie_word_embeddings", false)?);
    Ok(parts.decoder(decoder_head(config, kind, logits)?))
}
