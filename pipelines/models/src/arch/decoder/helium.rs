//! Helium (`transformers/models/helium`): Llama whose neighbouring elements turn together.

use super::llama::{self, LAYOUT, Layout};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::spec::{RopeStyle, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::DecoderOnly,
    hugging_face: HuggingFace {
        model_type: "helium",
        classes: CLASSES,
        spec,
        stack: llama::STACK,
        heads: llama::HEADS,
    },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "HeliumForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "HeliumModel", head: HeadKind::States, base: "" },
    Class { name: "HeliumForSequenceClassification", head: HeadKind::SequenceLabels, base: "model." },
    Class { name: "HeliumForTokenClassification", head: HeadKind::TokenLabels, base: "model." },
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let bias = config.truth_or("attention_bias", false)?;
    let mlp_bias = config.truth_or("mlp_bias", false)?;
    let layout = Layout {
        context: 4096,
        head: Some(128),
        norm_eps: ("rms_norm_eps", 1e-8),
        rope_base: 100_000.0,
        rope_style: RopeStyle::Pairs,
        ..LAYOUT
    };
    llama::like_llama(config, kind, layout, |_, attention, mlp| {
        (attention.qkv_bias, mlp.bias) = (bias, mlp_bias);
        Ok(())
    })
}
