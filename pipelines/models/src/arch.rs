//! The registry of model types: each is data that turns a configuration into a specification.

pub mod codec;
pub mod decoder;
pub mod dit;
pub mod dual_encoder;
pub mod encoder;
pub mod encoder_decoder;
pub mod speech;
pub mod time_series;
pub mod unet;
pub mod vae;

mod rope;
pub mod vision;
pub mod vision_language;

use accel_backends::files::ModelFiles;
use accel_backends::weights::TensorIndex;

use crate::ModelError;
use crate::config::Config;
use crate::rules::{Rule, Rules};
use crate::spec::{HeadSpec, LogitsSpec, Spec};

/// A model type in one or both formats.
#[derive(Debug)]
pub struct Arch {
    /// As Hugging Face names it.
    pub hugging_face: HuggingFace,
    /// As GGUF files name it, where they do.
    pub gguf: Option<Gguf>,
}

/// A model type in Hugging Face's format.
#[derive(Debug)]
pub struct HuggingFace {
    /// The `model_type` of its configuration; Diffusers' have none and name their class, as `_class_name`.
    pub model_type: &'static str,
    /// Its classes; a checkpoint that names none is of the first.
    pub classes: &'static [Class],
    /// What its configuration says, for a class with that head.
    pub spec: fn(&Config, HeadKind) -> Result<Spec, ModelError>,
    /// Where the model lies in a checkpoint of the model without head.
    pub stack: &'static [Rule],
    /// Where its heads lie.
    pub heads: &'static [Rule],
}

/// A class of checkpoints: one head on the stack of a model type.
#[derive(Debug)]
pub struct Class {
    /// As `architectures` names it.
    pub name: &'static str,
    /// What it makes of the stack's states.
    pub head: HeadKind,
    /// What the names of the stack begin with.
    pub base: &'static str,
}

/// Kinds of heads, without the sizes that configurations give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadKind {
    /// None.
    States,
    /// Logits of the next token.
    NextToken,
    /// Logits of a sequence's labels.
    SequenceLabels,
    /// Logits of each token's labels.
    TokenLabels,
    /// Logits of the first and the last token of an answer.
    Span,
    /// Logits of tokens that were hidden.
    MaskedToken,
    /// Logits of whether a second sentence follows the first.
    NextSentence,
    /// Both of these.
    Pretraining,
    /// One logit of each of several sequences.
    Choice,
    /// None, on the encoder alone.
    EncoderStates,
    /// None, on the decoder alone.
    DecoderStates,
    /// Logits of the next token, of the decoder alone.
    DecoderNextToken,
    /// What is made of an image.
    Image(ImageHead),
    /// Logits of what is said at each place of a sound.
    Transcript,
    /// A vector for who speaks.
    Speaker,
    /// Numbers of a whole series.
    Numbers,
    /// What comes next in a series.
    Forecast,
}

/// Kinds of heads of models that see images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageHead {
    /// None, and no pooled state either.
    Unpooled,
    /// Logits of an image's labels.
    Labels,
    /// The pixels of an image of which parts were hidden.
    Pixels,
    /// Maps of some stages.
    Maps,
    /// How images and texts compare.
    Similarity,
    /// The text half alone, projected or not.
    Text {
        /// Whether it is projected.
        projected: bool,
    },
    /// The image half alone, projected.
    Projected,
    /// A text about an image.
    Caption,
    /// The answer to a question about an image.
    Answer,
    /// Whether a text fits an image.
    Match,
}

/// A model type in GGUF files.
#[derive(Debug)]
pub struct Gguf {
    /// The `general.architecture` of its metadata.
    pub architecture: &'static str,
    /// Its configuration.
    pub spec: fn(&Config, &TensorIndex) -> Result<Spec, ModelError>,
    /// Its weights.
    pub rules: Rules,
}

/// All model types.
pub const ALL: &[&Arch] = &[
    // Texts.
    &decoder::bloom::ARCH,
    &decoder::deepseek_v3::ARCH,
    &decoder::falcon::ARCH,
    &decoder::gemma2::ARCH,
    &decoder::gpt2::ARCH,
    &decoder::jamba::ARCH,
    &decoder::llama::ARCH,
    &decoder::mamba::ARCH,
    &decoder::mamba2::ARCH,
    &decoder::mistral::ARCH,
    &decoder::mixtral::ARCH,
    &decoder::phi::ARCH,
    &decoder::rwkv::ARCH,
    &encoder::bert::ARCH,
    &encoder::dpr::ARCH,
    &encoder_decoder::bart::ARCH,
    &encoder_decoder::switch_transformers::ARCH,
    &encoder_decoder::t5::ARCH,
    &encoder_decoder::whisper::ARCH,
    &codec::encodec::ARCH,
    &dit::flux::ARCH,
    &dit::sd3::ARCH,
    &speech::data2vec_audio::ARCH,
    &speech::hubert::ARCH,
    &speech::sew::ARCH,
    &speech::unispeech::ARCH,
    &speech::unispeech_sat::ARCH,
    &speech::wav2vec2::ARCH,
    &speech::wavlm::ARCH,
    &time_series::patchtsmixer::ARCH,
    &time_series::patchtst::ARCH,
    &unet::unet2d_condition::ARCH,
    &vae::autoencoder_kl::ARCH,
    // Vision.
    &vision::convnext::ARCH,
    &vision::swin::ARCH,
    &vision::vit::ARCH,
    // Images and texts.
    &dual_encoder::clip::ARCH,
    &dual_encoder::clip::TEXT,
    &dual_encoder::clip::VISION,
    &vision_language::blip::ARCH,
];

/// What a model is, and where its weights lie.
#[derive(Debug)]
pub struct Description {
    /// What it is made of.
    pub spec: Spec,
    /// Where its weights lie.
    pub rules: Rules,
    class: &'static str,
    classes: &'static [Class],
}

impl Description {
    /// The same, if it has a head for the next token.
    ///
    /// # Errors
    ///
    /// When it has not.
    pub fn generating(self) -> Result<Self, ModelError> {
        if matches!(&self.spec, Spec::Decoder(spec) if matches!(spec.head, HeadSpec::NextToken(_))) {
            return Ok(self);
        }
        let supported = self.classes.iter().filter(|class| class.head == HeadKind::NextToken);
        let supported = supported.map(|class| class.name).collect();
        Err(unsupported("for text generation, the class", self.class.to_owned(), supported))
    }
}

/// Finds out what a model is, and where its weights lie.
///
/// # Errors
///
/// When its type or class is not supported, or its configuration is wrong.
pub fn describe(files: &dyn ModelFiles, index: &TensorIndex) -> Result<Description, ModelError> {
    if let Some(metadata) = index.gguf() {
        let config = Config::from_gguf(metadata);
        let name = config.text("general.architecture")?;
        let found = ALL.iter().filter_map(|arch| arch.gguf.as_ref()).find(|gguf| gguf.architecture == name);
        let supported = || ALL.iter().filter_map(|arch| arch.gguf.as_ref()).map(|gguf| gguf.architecture).collect();
        let gguf = found.ok_or_else(|| unsupported("the GGUF architecture", name, supported()))?;
        let spec = (gguf.spec)(&config, index)?;
        return Ok(Description { spec, rules: gguf.rules, class: gguf.architecture, classes: &[] });
    }
    let config = Config::read(files)?;
    if let Some(name) = config.optional_text("_class_name")? {
        return describe_class(&config, name);
    }
    let name = config.text("model_type")?;
    let found = ALL.iter().map(|arch| &arch.hugging_face).find(|arch| arch.model_type == name);
    let supported = || ALL.iter().map(|arch| arch.hugging_face.model_type).collect();
    let arch = found.ok_or_else(|| unsupported("the model_type", name, supported()))?;
    let (names, classes) = (config.texts("architectures")?, arch.classes);
    let class = classes.iter().find(|class| names.is_empty() || names.iter().any(|name| name == class.name));
    let supported = || classes.iter().map(|class| class.name).collect();
    let class = class.ok_or_else(|| unsupported("the class", names.join(", "), supported()))?;
    let spec = (arch.spec)(&config, class.head)?;
    let rules = Rules { base: class.base, stack: arch.stack, heads: arch.heads };
    Ok(Description { spec, rules, class: class.name, classes })
}

/// A model of Diffusers, whose configuration names its class.
fn describe_class(config: &Config, name: String) -> Result<Description, ModelError> {
    let archs = || ALL.iter().map(|arch| &arch.hugging_face).filter(|arch| arch.model_type.starts_with(DIFFUSERS));
    let classes = || archs().flat_map(|arch| arch.classes.iter().map(move |class| (arch, class)));
    let supported = || classes().map(|(_, class)| class.name).collect();
    let found = classes().find(|(_, class)| class.name == name);
    let (arch, class) = found.ok_or_else(|| unsupported("the _class_name", name, supported()))?;
    let spec = (arch.spec)(config, class.head)?;
    let rules = Rules { base: class.base, stack: arch.stack, heads: arch.heads };
    Ok(Description { spec, rules, class: class.name, classes: arch.classes })
}

/// What the names of Diffusers' types begin with here.
const DIFFUSERS: &str = "diffusers-";

/// The head of a decoder.
fn decoder_head(config: &Config, kind: HeadKind, logits: LogitsSpec) -> Result<HeadSpec, ModelError> {
    Ok(match kind {
        HeadKind::States => HeadSpec::States,
        HeadKind::NextToken => HeadSpec::NextToken(logits),
        HeadKind::SequenceLabels => {
            HeadSpec::SequenceLabels { labels: labels(config)?, padding: config.optional_integer("pad_token_id")? }
        }
        HeadKind::TokenLabels => HeadSpec::TokenLabels { labels: labels(config)? },
        HeadKind::Span => HeadSpec::Span,
        _ => return Err(no_such_head(kind)),
    })
}

/// How many labels a classifier has: the names of labels count before the number (`configuration_utils.py`).
fn labels(config: &Config) -> Result<usize, ModelError> {
    match config.section("id2label")?.filter(|names| !names.is_empty()) {
        Some(names) => Ok(names.len()),
        None => Ok(config.optional_size("num_labels")?.unwrap_or(2)),
    }
}

/// A class asks for a head that its family has not.
fn no_such_head(kind: impl std::fmt::Debug) -> ModelError {
    unsupported("the head", format!("{kind:?}"), vec!["those of the model's family"])
}

fn unsupported(what: &str, found: String, supported: Vec<&str>) -> ModelError {
    ModelError::Unsupported { what: what.to_owned(), found, supported: supported.join(", ") }
}
