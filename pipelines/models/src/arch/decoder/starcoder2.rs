//! `StarCoder2` (`transformers/models/starcoder2`; <https://arxiv.org/abs/2402.19173>): Llama with norms to mean 0, biases,
//! and no gate.

use super::activation;
use super::llama::{self, LAYOUT, Layout};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::rules::{Rule, joined};
use crate::spec::{NormSpec, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::DecoderOnly,
    hugging_face: HuggingFace { model_type: "starcoder2", classes: CLASSES, spec, stack: STACK, heads: llama::HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "Starcoder2ForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "Starcoder2Model", head: HeadKind::States, base: "" },
    Class { name: "Starcoder2ForSequenceClassification", head: HeadKind::SequenceLabels, base: "model." },
    Class { name: "Starcoder2ForTokenClassification", head: HeadKind::TokenLabels, base: "model." },
];

const MLP: &[Rule] =
    &[Rule::new("layers.{}.mlp.up", "layers.{}.mlp.c_fc"), Rule::new("layers.{}.mlp.down", "layers.{}.mlp.c_proj")];

const STACK: &[Rule] = &joined::<{ MLP.len() + llama::STACK.len() }>(MLP, llama::STACK);

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let bias = config.truth_or("use_bias", true)?;
    let window = config.optional_size("sliding_window")?;
    let activation = activation(config, "hidden_act", "gelu_pytorch_tanh")?;
    let layout =
        Layout { context: 4096, norm_eps: ("norm_epsilon", 1e-5), norm: NormSpec::layer, tied: true, ..LAYOUT };
    llama::like_llama(config, kind, layout, |_, attention, mlp| {
        (attention.qkv_bias, attention.out_bias, attention.window) = (bias, bias, window);
        (mlp.gated, mlp.bias, mlp.activation) = (false, bias, activation);
        Ok(())
    })
}
