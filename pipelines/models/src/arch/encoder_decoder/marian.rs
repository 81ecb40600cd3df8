//! Marian (`transformers/models/marian`; <https://arxiv.org/abs/1804.00344>): BART without a norm of embeddings, and with
//! positions as waves.

use super::bart;
use crate::ModelError;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, unsupported};
use crate::config::Config;
use crate::spec::{PositionSpec, SinusoidLayout, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::EncoderDecoder,
    hugging_face: HuggingFace { model_type: "marian", classes: CLASSES, spec, stack: bart::STACK, heads: bart::HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "MarianMTModel", head: HeadKind::NextToken, base: "model." },
    Class { name: "MarianModel", head: HeadKind::States, base: "" },
    Class { name: "MarianForCausalLM", head: HeadKind::DecoderNextToken, base: "model.decoder." },
    Class { name: "MarianDecoder", head: HeadKind::DecoderStates, base: "" },
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    if !config.truth_or("share_encoder_decoder_embeddings", true)? {
        let what = config.path("share_encoder_decoder_embeddings");
        return Err(unsupported(&what, "false".into(), vec!["true"]));
    }
    let vocabulary = config.size("vocab_size")?;
    if config.optional_size("decoder_vocab_size")?.is_some_and(|size| size != vocabulary) {
        return Err(config.wrong("decoder_vocab_size", format!("the {vocabulary} of vocab_size")).into());
    }
    let layout = bart::Layout {
        norms_first: false,
        embed_norm: false,
        context: 1024,
        positions: |_| PositionSpec::Sinusoids { first: 0, padding: None, layout: SinusoidLayout::HalvesEven },
    };
    bart::like_bart(config, kind, &layout)
}
