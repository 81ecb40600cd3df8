//! SEW (`transformers/models/sew`; <https://arxiv.org/abs/2109.06870>).

use super::{HEADS, STACK, speech};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::rules::{Rule, joined};
use crate::spec::Spec;
use crate::spec::speech::SpeechHead;

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::Speech,
    hugging_face: HuggingFace { model_type: "sew", classes: CLASSES, spec, stack: &RULES, heads: HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "SEWModel", head: HeadKind::States, base: "" },
    Class { name: "SEWForCTC", head: HeadKind::Transcript, base: "sew." },
    Class { name: "SEWForSequenceClassification", head: HeadKind::SequenceLabels, base: "sew." },
];

const OWN: &[Rule] = &[Rule::new("feature_norm", "layer_norm"), Rule::new("projection", "feature_projection")];
const RULES: [Rule; OWN.len() + STACK.len()] = joined(OWN, STACK);

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let mut spec = speech(config, kind)?;
    if kind == HeadKind::States {
        spec.head = SpeechHead::States { features: false };
    }
    spec.projected = spec.convolutions.last().is_some_and(|last| last.outputs != spec.stack.hidden);
    spec.squeeze = Some(config.optional_size("squeeze_factor")?.unwrap_or(2));
    Ok(Spec::Speech(Box::new(spec)))
}
