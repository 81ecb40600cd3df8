//! Data2Vec for audio (`transformers/models/data2vec`; <https://arxiv.org/abs/2202.03555>).

use super::{HEADS, STACK, speech};
use crate::ModelError;
use crate::arch::decoder::layers;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::spec::Spec;
use crate::spec::speech::{SoundNormSpec, SoundPositionsKind};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::Speech,
    hugging_face: HuggingFace { model_type: "data2vec-audio", classes: CLASSES, spec, stack: STACK, heads: HEADS },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "Data2VecAudioModel", head: HeadKind::States, base: "" },
    Class { name: "Data2VecAudioForCTC", head: HeadKind::Transcript, base: "data2vec_audio." },
    Class { name: "Data2VecAudioForSequenceClassification", head: HeadKind::SequenceLabels, base: "data2vec_audio." },
    Class { name: "Data2VecAudioForAudioFrameClassification", head: HeadKind::TokenLabels, base: "data2vec_audio." },
    Class { name: "Data2VecAudioForXVector", head: HeadKind::Speaker, base: "data2vec_audio." },
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let mut spec = speech(config, kind)?;
    spec.convolutions.iter_mut().for_each(|convolution| convolution.norm = SoundNormSpec::Places);
    let count = if config.has("num_conv_pos_embeddings") { layers(config, "num_conv_pos_embeddings")? } else { 5 };
    spec.positions.kind = SoundPositionsKind::Several(count);
    spec.positions.taps = config.optional_size("conv_pos_kernel_size")?.unwrap_or(19);
    Ok(Spec::Speech(Box::new(spec)))
}
