//! Qwen3 (`transformers/models/qwen3`; <https://arxiv.org/abs/2505.09388>): Qwen2 with norms of queries and keys instead of
//! biases.

use super::llama::{self, LAYOUT, Layout};
use super::qwen2;
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::rules::{Rule, joined};
use crate::spec::{NormSpec, QkNormSpec, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::DecoderOnly,
    hugging_face: HuggingFace { model_type: "qwen3", classes: CLASSES, spec, stack: STACK, heads: llama::HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "Qwen3ForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "Qwen3Model", head: HeadKind::States, base: "" },
    Class { name: "Qwen3ForSequenceClassification", head: HeadKind::SequenceLabels, base: "model." },
    Class { name: "Qwen3ForTokenClassification", head: HeadKind::TokenLabels, base: "model." },
    Class { name: "Qwen3ForQuestionAnswering", head: HeadKind::Span, base: "transformer." },
];

/// The names of the norms of queries and keys.
pub(super) const QK_NORMS: &[Rule] = &[
    Rule::new("layers.{}.attn.q_norm", "layers.{}.self_attn.q_norm"),
    Rule::new("layers.{}.attn.k_norm", "layers.{}.self_attn.k_norm"),
];

const STACK: &[Rule] = &joined::<{ QK_NORMS.len() + llama::STACK.len() }>(QK_NORMS, llama::STACK);

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let windows = qwen2::windows(config, 28)?;
    let bias = config.truth_or("attention_bias", false)?;
    let norm = NormSpec::rms(config.optional_number("rms_norm_eps")?.unwrap_or(1e-6));
    let layout = Layout { context: 32_768, head: Some(128), ..LAYOUT };
    llama::like_llama(config, kind, layout, |number, attention, _| {
        (attention.qkv_bias, attention.out_bias) = (bias, bias);
        attention.qk_norm = Some(QkNormSpec { norm, whole: false });
        attention.window = windows.get(number).copied().flatten();
        Ok(())
    })
}
