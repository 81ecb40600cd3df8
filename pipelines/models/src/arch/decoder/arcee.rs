//! Arcee (`transformers/models/arcee`): Llama whose feed-forward parts have no gate.

use super::activation;
use super::llama::{self, LAYOUT, Layout};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::spec::Spec;

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::DecoderOnly,
    hugging_face: HuggingFace { model_type: "arcee", classes: CLASSES, spec, stack: llama::STACK, heads: llama::HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "ArceeForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "ArceeModel", head: HeadKind::States, base: "" },
    Class { name: "ArceeForSequenceClassification", head: HeadKind::SequenceLabels, base: "model." },
    Class { name: "ArceeForTokenClassification", head: HeadKind::TokenLabels, base: "model." },
    Class { name: "ArceeForQuestionAnswering", head: HeadKind::Span, base: "transformer." },
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let bias = config.truth_or("attention_bias", false)?;
    let mlp_bias = config.truth_or("mlp_bias", false)?;
    let activation = activation(config, "hidden_act", "relu2")?;
    let layout = Layout { context: 4096, norm_eps: ("rms_norm_eps", 1e-5), ..LAYOUT };
    llama::like_llama(config, kind, layout, |_, attention, mlp| {
        (attention.qkv_bias, attention.out_bias) = (bias, bias);
        (mlp.gated, mlp.bias, mlp.activation) = (false, mlp_bias, activation);
        Ok(())
    })
}
