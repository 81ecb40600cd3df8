//! HuBERT (`transformers/models/hubert`; <https://arxiv.org/abs/2106.07447>).

use super::{HEADS, STACK, speech};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::spec::Spec;
use crate::spec::speech::{SoundPositionsKind, SpeechHead};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::Speech,
    hugging_face: HuggingFace { model_type: "hubert", classes: CLASSES, spec, stack: STACK, heads: HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "HubertModel", head: HeadKind::States, base: "" },
    Class { name: "HubertForCTC", head: HeadKind::Transcript, base: "hubert." },
    Class { name: "HubertForSequenceClassification", head: HeadKind::SequenceLabels, base: "hubert." },
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let mut spec = speech(config, kind)?;
    if kind == HeadKind::States {
        spec.head = SpeechHead::States { features: false };
    }
    if !config.truth_or("feat_proj_layer_norm", true)? {
        spec.feature_norm = None;
    }
    if config.truth_or("conv_pos_batch_norm", false)? {
        spec.positions.kind = SoundPositionsKind::BatchNorm;
    }
    Ok(Spec::Speech(Box::new(spec)))
}
