//! Seed-OSS (`transformers/models/seed_oss`): Llama with biases at queries, keys and values.

use super::llama::{self, LAYOUT, Layout};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::spec::Spec;

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::DecoderOnly,
    hugging_face: HuggingFace {
        model_type: "seed_oss",
        classes: CLASSES,
        spec,
        stack: llama::STACK,
        heads: llama::HEADS,
    },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "SeedOssForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "SeedOssModel", head: HeadKind::States, base: "" },
    Class { name: "SeedOssForSequenceClassification", head: HeadKind::SequenceLabels, base: "model." },
    Class { name: "SeedOssForTokenClassification", head: HeadKind::TokenLabels, base: "model." },
    Class { name: "SeedOssForQuestionAnswering", head: HeadKind::Span, base: "transformer." },
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let bias = config.truth_or("attention_bias", true)?;
    let out_bias = config.truth_or("attention_out_bias", false)?;
    let mlp_bias = config.truth_or("mlp_bias", false)?;
    llama::like_llama(config, kind, Layout { context: 524_288, head: Some(128), ..LAYOUT }, |_, attention, mlp| {
        (attention.qkv_bias, attention.out_bias, mlp.bias) = (bias, out_bias, mlp_bias);
        Ok(())
    })
}
