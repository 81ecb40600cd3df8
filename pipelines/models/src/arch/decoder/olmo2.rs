//! OLMo 2 (`transformers/models/olmo2`; <https://arxiv.org/abs/2501.00656>): Llama with norms of what the parts of a layer
//! give, and of queries and keys.

use super::llama::{self, LAYOUT, Layout};
use super::qwen3::QK_NORMS;
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::rules::{Rule, joined};
use crate::spec::{NormSpec, NormsSpec, QkNormSpec, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::DecoderOnly,
    hugging_face: HuggingFace { model_type: "olmo2", classes: CLASSES, spec, stack: STACK, heads: llama::HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "Olmo2ForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "Olmo2Model", head: HeadKind::States, base: "" },
];

const NORMS: &[Rule] = &joined::<{ QK_NORMS.len() + 2 }>(
    QK_NORMS,
    &[
        Rule::new("layers.{}.attn_out_norm", "layers.{}.post_attention_layernorm"),
        Rule::new("layers.{}.mlp_out_norm", "layers.{}.post_feedforward_layernorm"),
    ],
);

const STACK: &[Rule] = &joined::<{ NORMS.len() + llama::STACK.len() }>(NORMS, llama::STACK);

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let bias = config.truth_or("attention_bias", false)?;
    let norm = NormSpec::rms(config.optional_number("rms_norm_eps")?.unwrap_or(1e-5));
    let norms = |norm| NormsSpec { mixer_out: Some(norm), ffn_out: Some(norm), ..NormsSpec::default() };
    llama::like_llama(config, kind, Layout { norm_eps: ("rms_norm_eps", 1e-5), norms, ..LAYOUT }, |_, attention, _| {
        (attention.qkv_bias, attention.out_bias) = (bias, bias);
        attention.qk_norm = Some(QkNormSpec { norm, whole: true });
        Ok(())
    })
}
