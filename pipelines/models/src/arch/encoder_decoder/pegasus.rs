//! PEGASUS (`transformers/models/pegasus`; <https://arxiv.org/abs/1912.08777>): BART with norms first, and positions as
//! waves.

use super::{bart, whisper};
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::rules::{Rule, joined};
use crate::spec::{PositionSpec, SinusoidLayout, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::EncoderDecoder,
    hugging_face: HuggingFace { model_type: "pegasus", classes: CLASSES, spec, stack: STACK, heads: bart::HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "PegasusForConditionalGeneration", head: HeadKind::NextToken, base: "model." },
    Class { name: "PegasusModel", head: HeadKind::States, base: "" },
    Class { name: "PegasusForCausalLM", head: HeadKind::DecoderNextToken, base: "model.decoder." },
    Class { name: "PegasusDecoder", head: HeadKind::DecoderStates, base: "" },
];

const SHARED: &[Rule] = &[Rule::new("encoder.embed", "shared"), Rule::new("decoder.embed", "shared")];

/// The names of everything that has its norms first.
pub(super) const STACK: &[Rule] = &joined::<{ SHARED.len() + whisper::STACK.len() }>(SHARED, whisper::STACK);

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let layout = bart::Layout {
        norms_first: true,
        embed_norm: false,
        context: 1024,
        positions: |_| PositionSpec::Sinusoids { first: 0, padding: None, layout: SinusoidLayout::HalvesEven },
    };
    bart::like_bart(config, kind, &layout)
}
