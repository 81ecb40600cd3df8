//! wav2vec 2.0 (`transformers/models/wav2vec2`; <https://arxiv.org/abs/2006.11477>).

use super::{HEADS, STACK, speech};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::spec::Spec;

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::Speech,
    hugging_face: HuggingFace { model_type: "wav2vec2", classes: CLASSES, spec, stack: STACK, heads: HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "Wav2Vec2Model", head: HeadKind::States, base: "" },
    Class { name: "Wav2Vec2ForCTC", head: HeadKind::Transcript, base: "wav2vec2." },
    Class { name: "Wav2Vec2ForMaskedLM", head: HeadKind::MaskedToken, base: "wav2vec2." },
    Class { name: "Wav2Vec2ForPreTraining", head: HeadKind::Pretraining, base: "wav2vec2." },
    Class { name: "Wav2Vec2ForSequenceClassification", head: HeadKind::SequenceLabels, base: "wav2vec2." },
    Class { name: "Wav2Vec2ForAudioFrameClassification", head: HeadKind::TokenLabels, base: "wav2vec2." },
    Class { name: "Wav2Vec2ForXVector", head: HeadKind::Speaker, base: "wav2vec2." },
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    Ok(Spec::Speech(Box::new(speech(config, kind)?)))
}
