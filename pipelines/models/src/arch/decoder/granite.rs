//! Granite (`transformers/models/granite`): Llama with factors of embeddings, scores, sums and logits.

use super::llama::{self, LAYOUT, Layout};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::spec::{AttentionSpec, MlpSpec, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::DecoderOnly,
    hugging_face: HuggingFace {
        model_type: "granite",
        classes: CLASSES,
        spec,
        stack: llama::STACK,
        heads: llama::HEADS,
    },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "GraniteForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "GraniteModel", head: HeadKind::States, base: "" },
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let mlp_bias = config.truth_or("mlp_bias", false)?;
    like_granite(config, kind, |_, mlp| mlp.bias = mlp_bias)
}

/// A decoder with the keys of Granite's configuration, and what else differs from Llama's layers.
pub(super) fn like_granite(
    config: &Config,
    kind: HeadKind,
    change: impl Fn(&mut AttentionSpec, &mut MlpSpec),
) -> Result<Spec, ModelError> {
    let factor = |key| Ok::<_, ModelError>(config.optional_number(key)?.unwrap_or(1.0) as f32);
    let layout = Layout {
        embed_scale: factor("embedding_multiplier")?,
        residual_scale: factor("residual_multiplier")?,
        logits_scale: 1.0 / factor("logits_scaling")?,
        ..LAYOUT
    };
    let (scale, bias) = (factor("attention_multiplier")?, config.truth_or("attention_bias", false)?);
    llama::like_llama(config, kind, layout, |_, attention, mlp| {
        (attention.qkv_bias, attention.out_bias) = (bias, bias);
        attention.scale = scale;
        change(attention, mlp);
        Ok(())
    })
}
