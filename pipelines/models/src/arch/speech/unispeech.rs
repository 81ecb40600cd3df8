//! UniSpeech (`transformers/models/unispeech`; <https://arxiv.org/abs/2101.07597>).

use super::{HEADS, STACK, speech};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::spec::Spec;
use crate::spec::speech::SpeechHead;

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::Speech,
    hugging_face: HuggingFace { model_type: "unispeech", classes: CLASSES, spec, stack: STACK, heads: HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "UniSpeechModel", head: HeadKind::States, base: "" },
    Class { name: "UniSpeechForCTC", head: HeadKind::Transcript, base: "unispeech." },
    Class { name: "UniSpeechForPreTraining", head: HeadKind::Pretraining, base: "unispeech." },
    Class { name: "UniSpeechForSequenceClassification", head: HeadKind::SequenceLabels, base: "unispeech." },
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let mut spec = speech(config, kind)?;
    if let SpeechHead::Quantised { back, .. } = &mut spec.head {
        *back = true;
    }
    Ok(Spec::Speech(Box::new(spec)))
}
