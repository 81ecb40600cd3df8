//! OLMoE (`transformers/models/olmoe`; <https://arxiv.org/abs/2409.02060>): Llama with experts in all layers, and norms of
//! queries and keys, which may be kept within bounds.

use super::llama::{self, LAYOUT, Layout};
use super::qwen3_moe;
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::spec::{NormSpec, QkNormSpec, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::MixtureOfExperts,
    hugging_face: HuggingFace {
        model_type: "olmoe",
        classes: CLASSES,
        spec,
        stack: qwen3_moe::STACK,
        heads: llama::HEADS,
    },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "OlmoeForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "OlmoeModel", head: HeadKind::States, base: "" },
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let bias = config.truth_or("attention_bias", false)?;
    let norm = NormSpec::rms(config.optional_number("rms_norm_eps")?.unwrap_or(1e-5));
    let clip = config.optional_number("clip_qkv")?;
    if clip.is_some_and(|clip| clip < 0.0) {
        return Err(config.wrong("clip_qkv", "a number of 0 or more").into());
    }
    let layout = Layout { context: 4096, norm_eps: ("rms_norm_eps", 1e-5), ..LAYOUT };
    llama::like_llama_with(config, kind, layout, |_, attention, mlp| {
        (attention.qkv_bias, attention.out_bias) = (bias, bias);
        attention.qk_norm = Some(QkNormSpec { norm, whole: true });
        attention.clip = clip.map(|clip| clip as f32);
        qwen3_moe::mixture(config, [64, 8], mlp, None)
    })
}
