//! WavLM (`transformers/models/wavlm`; <https://arxiv.org/abs/2110.13900>).

use super::{HEADS, STACK, speech};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::spec::{BiasSpec, MixerSpec, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::Speech,
    hugging_face: HuggingFace { model_type: "wavlm", classes: CLASSES, spec, stack: STACK, heads: HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "WavLMModel", head: HeadKind::States, base: "" },
    Class { name: "WavLMForCTC", head: HeadKind::Transcript, base: "wavlm." },
    Class { name: "WavLMForSequenceClassification", head: HeadKind::SequenceLabels, base: "wavlm." },
    Class { name: "WavLMForAudioFrameClassification", head: HeadKind::TokenLabels, base: "wavlm." },
    Class { name: "WavLMForXVector", head: HeadKind::Speaker, base: "wavlm." },
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let mut spec = speech(config, kind)?;
    let buckets = config.optional_size("num_buckets")?.unwrap_or(320);
    if !buckets.is_multiple_of(4) {
        return Err(config.wrong("num_buckets", "a multiple of 4").into());
    }
    let largest = config.optional_size("max_bucket_distance")?.unwrap_or(800);
    if largest <= buckets / 4 {
        return Err(config.wrong("max_bucket_distance", format!("more than a quarter of {buckets} buckets")).into());
    }
    for layer in &mut spec.stack.layers {
        if let MixerSpec::Attention(attention) = &mut layer.mixer {
            attention.bias_gate = true;
            spec.stack.bias = BiasSpec::Buckets { heads: attention.heads, buckets, largest };
        }
    }
    spec.layer_adapter = None;
    Ok(Spec::Speech(Box::new(spec)))
}
