//! Meta CLIP 2 (`transformers/models/metaclip_2`; <https://arxiv.org/abs/2507.22062>), and each of its halves by itself:
//! CLIP whose texts end in the token that the configuration names, whichever it is.

use super::clip;
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, ImageHead};
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::Spec;
use crate::spec::dual_encoder::TextPoolOf;

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::Multimodal,
    hugging_face: HuggingFace {
        model_type: "metaclip_2",
        classes: &[
            Class { name: "MetaClip2Model", head: HeadKind::Image(ImageHead::Similarity), base: "" },
            Class { name: "MetaClip2ForImageClassification", head: HeadKind::Image(ImageHead::Labels), base: "" },
        ],
        spec,
        stack: clip::STACK,
        heads: &[Rule::new("head.labels", "classifier")],
    },
    gguf: None,
};

/// The model type of the half that reads.
pub const TEXT: Arch = Arch {
    architecture: Architecture::EncoderOnly,
    hugging_face: HuggingFace {
        model_type: "metaclip_2_text_model",
        classes: &[
            Class { name: "MetaClip2TextModel", head: HeadKind::Image(ImageHead::Text { projected: false }), base: "" },
            Class {
                name: "MetaClip2TextModelWithProjection",
                head: HeadKind::Image(ImageHead::Text { projected: true }),
                base: "",
            },
        ],
        spec: text_spec,
        stack: clip::STACK,
        heads: &[],
    },
    gguf: None,
};

/// The model type of the half that sees.
pub const VISION: Arch = Arch {
    architecture: Architecture::Vision,
    hugging_face: HuggingFace {
        model_type: "metaclip_2_vision_model",
        classes: &[
            Class { name: "MetaClip2VisionModel", head: HeadKind::States, base: "" },
            Class { name: "MetaClip2VisionModelWithProjection", head: HeadKind::Image(ImageHead::Projected), base: "" },
        ],
        spec: clip::vision_spec,
        stack: clip::STACK,
        heads: &[],
    },
    gguf: None,
};

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    clip::whole(config, kind, TextPoolOf::Token)
}

fn text_spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    clip::text_half(config, kind, TextPoolOf::Token)
}
