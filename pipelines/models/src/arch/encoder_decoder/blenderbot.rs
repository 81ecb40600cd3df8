//! Blenderbot (`transformers/models/blenderbot`; <https://arxiv.org/abs/2004.13637>): BART with norms first.

use super::{bart, pegasus};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::spec::{PositionSpec, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::EncoderDecoder,
    hugging_face: HuggingFace {
        model_type: "blenderbot",
        classes: CLASSES,
        spec,
        stack: pegasus::STACK,
        heads: bart::HEADS,
    },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "BlenderbotForConditionalGeneration", head: HeadKind::NextToken, base: "model." },
    Class { name: "BlenderbotModel", head: HeadKind::States, base: "" },
    Class { name: "BlenderbotForCausalLM", head: HeadKind::DecoderNextToken, base: "model.decoder." },
    Class { name: "BlenderbotDecoder", head: HeadKind::DecoderStates, base: "" },
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let layout = bart::Layout {
        norms_first: true,
        embed_norm: false,
        context: 128,
        positions: |rows| PositionSpec::Learned { rows, first: 0, padding: None },
    };
    bart::like_bart(config, kind, &layout)
}
