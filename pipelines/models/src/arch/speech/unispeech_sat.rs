//! UniSpeech-SAT (`transformers/models/unispeech_sat`; <https://arxiv.org/abs/2110.05752>).

use super::{HEADS, STACK, speech};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::spec::Spec;
use crate::spec::speech::SpeechHead;

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::Speech,
    hugging_face: HuggingFace { model_type: "unispeech-sat", classes: CLASSES, spec, stack: STACK, heads: HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "UniSpeechSatModel", head: HeadKind::States, base: "" },
    Class { name: "UniSpeechSatForCTC", head: HeadKind::Transcript, base: "unispeech_sat." },
    Class { name: "UniSpeechSatForPreTraining", head: HeadKind::Pretraining, base: "unispeech_sat." },
    Class { name: "UniSpeechSatForSequenceClassification", head: HeadKind::SequenceLabels, base: "unispeech_sat." },
    Class { name: "UniSpeechSatForAudioFrameClassification", head: HeadKind::TokenLabels, base: "unispeech_sat." },
    Class { name: "UniSpeechSatForXVector", head: HeadKind::Speaker, base: "unispeech_sat." },
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let mut spec = speech(config, kind)?;
    // The reference never came to use what its checkpoints have for pretraining.
    if kind == HeadKind::Pretraining {
        spec.head = SpeechHead::Compared;
    }
    Ok(Spec::Speech(Box::new(spec)))
}
