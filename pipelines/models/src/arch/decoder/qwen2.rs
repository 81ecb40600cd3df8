//! Qwen2 (`transformers/models/qwen2`; <https://arxiv.org/abs/2407.10671>): Llama's layout, with biases at queries, keys
//! and values, and windows in the later layers.

use super::llama::{self, LAYOUT, Layout};
use super::{layers, sliding};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::spec::Spec;

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::DecoderOnly,
    hugging_face: HuggingFace { model_type: "qwen2", classes: CLASSES, spec, stack: llama::STACK, heads: llama::HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "Qwen2ForCausalLM", head: HeadKind::NextToken, base: "model." },
    Class { name: "Qwen2Model", head: HeadKind::States, base: "" },
    Class { name: "Qwen2ForSequenceClassification", head: HeadKind::SequenceLabels, base: "model." },
    Class { name: "Qwen2ForTokenClassification", head: HeadKind::TokenLabels, base: "model." },
    Class { name: "Qwen2ForQuestionAnswering", head: HeadKind::Span, base: "transformer." },
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let windows = windows(config, 28)?;
    llama::like_llama(config, kind, Layout { context: 32_768, ..LAYOUT }, |number, attention, _| {
        attention.qkv_bias = true;
        attention.window = windows.get(number).copied().flatten();
        Ok(())
    })
}

/// The window of each layer, with the keys of Qwen2's configuration: the first that has one is the layer `first`, where
/// nothing is said.
pub(in crate::arch) fn windows(config: &Config, first: usize) -> Result<Vec<Option<usize>>, ModelError> {
    let window = window(config)?;
    let first = config.optional_integer("max_window_layers")?.unwrap_or(first as i64);
    let slides = sliding(config, layers(config, "num_hidden_layers")?, |number| number as i64 >= first)?;
    Ok(slides.into_iter().map(|slides| window.filter(|_| slides)).collect())
}

/// The window of the layers that have one, with the keys of Qwen2's configuration.
pub(super) fn window(config: &Config) -> Result<Option<usize>, ModelError> {
    // Without a size there is no window, unless the key is not there at all.
    if !config.truth_or("use_sliding_window", false)? || config.is_null("sliding_window") {
        return Ok(None);
    }
    Ok(Some(config.optional_size("sliding_window")?.unwrap_or(4096)))
}
