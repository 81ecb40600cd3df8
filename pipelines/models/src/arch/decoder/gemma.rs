//! Gemma (`transformers/models/gemma`; <https://arxiv.org/abs/2403.08295>): Llama whose norms are stored less one.

use super::activation;
use super::llama::{self, LAYOUT, Layout};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::rules::{Rule, joined};
use crate::spec::Spec;

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::DecoderOnly,
    hugging_face: HuggingFace { model_type: "gemma", classes: CLASSES, spec, stack: STACK, heads: llama::HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "GemmaForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "GemmaModel", head: HeadKind::States, base: "" },
    Class { name: "GemmaForSequenceClassification", head: HeadKind::SequenceLabels, base: "model." },
    Class { name: "GemmaForTokenClassification", head: HeadKind::TokenLabels, base: "model." },
];

const NORMS: &[Rule] = &[
    Rule::add_one("layers.{}.attn_norm", "layers.{}.input_layernorm"),
    Rule::add_one("layers.{}.mlp_norm", "layers.{}.post_attention_layernorm"),
    Rule::add_one("final_norm", "norm"),
];

const STACK: &[Rule] = &joined::<{ NORMS.len() + llama::STACK.len() }>(NORMS, llama::STACK);

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let bias = config.truth_or("attention_bias", false)?;
    // Another key, `hidden_activation`, is not read.
    let activation = activation(config, "hidden_act", "gelu_pytorch_tanh")?;
    let layout = Layout {
        context: 8192,
        head: Some(256),
        tied: true,
        embed_scale: (config.size("hidden_size")? as f64).sqrt() as f32,
        ..LAYOUT
    };
    llama::like_llama(config, kind, layout, |_, attention, mlp| {
        (attention.qkv_bias, attention.out_bias) = (bias, bias);
        mlp.activation = activation;
        Ok(())
    })
}
