//! The registry of model types: each is data that turns a configuration into a specification.

pub mod codec;
pub mod decoder;
pub mod detection;
pub mod dit;
pub mod dual_encoder;
pub mod encoder;
pub mod encoder_decoder;
pub mod multimodal;
pub mod retrieval;
pub mod speech;
pub mod time_series;
pub mod unet;
pub mod vae;

mod rope;
pub mod segmentation;
pub mod vision;
pub mod vision_language;

use accel_backends::files::ModelFiles;
use accel_backends::weights::TensorIndex;

use crate::ModelError;
use crate::config::Config;
use crate::rules::{Rule, Rules, fp8};
use crate::spec::{HeadSpec, LogitsSpec, Spec};

/// Kinds of models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Architecture {
    /// Reads a text, a series or a state both ways.
    EncoderOnly,
    /// Writes token after token.
    DecoderOnly,
    /// Reads one text and writes another.
    EncoderDecoder,
    /// Sees pictures.
    Vision,
    /// Writes about pictures.
    VisionEncoderTextDecoder,
    /// Hears, or makes sounds.
    Speech,
    /// Takes several kinds of input together.
    Multimodal,
    /// Makes pictures of noise, step by step.
    Diffusion,
    /// Asks a few of many experts at each token.
    MixtureOfExperts,
    /// Carries a state of fixed size instead of keys and values.
    StateSpace,
    /// Looks up what it writes from.
    Rag,
}

impl Architecture {
    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::EncoderOnly => "encoder-only",
            Self::DecoderOnly => "decoder-only",
            Self::EncoderDecoder => "encoder-decoder",
            Self::Vision => "vision",
            Self::VisionEncoderTextDecoder => "vision-encoder-text-decoder",
            Self::Speech => "speech",
            Self::Multimodal => "multimodal",
            Self::Diffusion => "diffusion",
            Self::MixtureOfExperts => "mixture-of-experts",
            Self::StateSpace => "state-space",
            Self::Rag => "rag",
        }
    }
}

/// A model type in one or both formats.
#[derive(Debug)]
pub struct Arch {
    /// What kind it is.
    pub architecture: Architecture,
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
    /// The same, and one logit of each of several sequences.
    NextTokenAndChoice,
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
    /// Labels and boxes of objects.
    Objects,
    /// Labels, boxes and masks of objects.
    Masks,
    /// Masks of what prompts point at.
    Prompted,
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
    &decoder::arcee::ARCH,
    &decoder::bloom::ARCH,
    &decoder::deepseek_v2::ARCH,
    &decoder::deepseek_v3::ARCH,
    &decoder::falcon::ARCH,
    &decoder::gemma2::ARCH,
    &decoder::gemma3_text::ARCH,
    &decoder::gemma::ARCH,
    &decoder::gpt2::ARCH,
    &decoder::gpt_neox::ARCH,
    &decoder::gpt_oss::ARCH,
    &decoder::granite::ARCH,
    &decoder::granitemoe::ARCH,
    &decoder::granitemoehybrid::ARCH,
    &decoder::granitemoeshared::ARCH,
    &decoder::helium::ARCH,
    &decoder::jamba::ARCH,
    &decoder::llama::ARCH,
    &decoder::mamba2::ARCH,
    &decoder::mamba::ARCH,
    &decoder::ministral::ARCH,
    &decoder::mistral::ARCH,
    &decoder::mixtral::ARCH,
    &decoder::olmo2::ARCH,
    &decoder::olmoe::ARCH,
    &decoder::phi3::ARCH,
    &decoder::phi::ARCH,
    &decoder::phimoe::ARCH,
    &decoder::qwen2::ARCH,
    &decoder::qwen2_moe::ARCH,
    &decoder::qwen3::ARCH,
    &decoder::qwen3_moe::ARCH,
    &decoder::rwkv::ARCH,
    &decoder::seed_oss::ARCH,
    &decoder::smollm3::ARCH,
    &decoder::starcoder2::ARCH,
    &encoder::bert::ARCH,
    &encoder::camembert::ARCH,
    &encoder::data2vec_text::ARCH,
    &encoder::deberta_v2::ARCH,
    &encoder::distilbert::ARCH,
    &encoder::dpr::ARCH,
    &encoder::ernie::ARCH,
    &encoder::roberta::ARCH,
    &encoder::xlm_roberta::ARCH,
    &encoder_decoder::bart::ARCH,
    &encoder_decoder::blenderbot::ARCH,
    &encoder_decoder::marian::ARCH,
    &encoder_decoder::mvp::ARCH,
    &encoder_decoder::nllb_moe::ARCH,
    &encoder_decoder::pegasus::ARCH,
    &encoder_decoder::switch_transformers::ARCH,
    &encoder_decoder::t5::ARCH,
    &encoder_decoder::whisper::ARCH,
    &codec::encodec::ARCH,
    &retrieval::rag::ARCH,
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
    &vision::resnet::ARCH,
    &vision::swin::ARCH,
    &vision::vit::ARCH,
    &vision::vit_msn::ARCH,
    &detection::deformable_detr::ARCH,
    &detection::detr::ARCH,
    &segmentation::sam::ARCH,
    &segmentation::sam::VISION,
    // Images and texts.
    &dual_encoder::clip::ARCH,
    &dual_encoder::clip::TEXT,
    &dual_encoder::clip::VISION,
    &dual_encoder::metaclip_2::ARCH,
    &dual_encoder::metaclip_2::TEXT,
    &dual_encoder::metaclip_2::VISION,
    &multimodal::llava::ARCH,
    &multimodal::qwen2_vl::ARCH,
    &vision_language::blip::ARCH,
];

/// What a model is, and where its weights lie.
#[derive(Debug)]
pub struct Description {
    /// What it is made of.
    pub spec: Spec,
    /// Where its weights lie.
    pub rules: Rules,
    /// Its class, or its architecture in a GGUF file.
    pub class: &'static str,
    /// What it makes of the stack's states.
    pub head: HeadKind,
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
        return Ok(Description { spec, rules: gguf.rules, class: gguf.architecture, head: HeadKind::NextToken });
    }
    let config = Config::read(files)?;
    if let Some(name) = config.optional_text("_class_name")? {
        return describe_class(&config, name);
    }
    check_quantization(&config)?;
    let name = config.text("model_type")?;
    let found = ALL.iter().map(|arch| &arch.hugging_face).find(|arch| arch.model_type == name);
    let supported = || ALL.iter().map(|arch| arch.hugging_face.model_type).collect();
    let arch = found.ok_or_else(|| unsupported("the model_type", name, supported()))?;
    let (names, classes) = (class_names(&config, arch.classes)?, arch.classes);
    let class = classes.iter().find(|class| names.is_empty() || names.iter().any(|name| name == class.name));
    let supported = || classes.iter().map(|class| class.name).collect();
    let class = class.ok_or_else(|| unsupported("the class", names.join(", "), supported()))?;
    let spec = (arch.spec)(&config, class.head)?;
    let rules = Rules { prefix: "", base: class.base, stack: arch.stack, heads: arch.heads };
    Ok(Description { spec, rules, class: class.name, head: class.head })
}

/// Refuses weights that are stored in a way of their own which is not known here.
fn check_quantization(config: &Config) -> Result<(), ModelError> {
    let Some(config) = config.section("quantization_config")? else { return Ok(()) };
    let method = config.text("quant_method")?;
    if !["fp8", "compressed-tensors", "mxfp4"].contains(&method.as_str()) {
        return Err(unsupported(&config.path("quant_method"), method, vec!["fp8, compressed-tensors, mxfp4"]));
    }
    match config.optional_sizes("weight_block_size")? {
        None => Ok(()),
        Some(sizes) if sizes == [fp8::BLOCK; 2] => Ok(()),
        Some(sizes) => {
            Err(unsupported(&config.path("weight_block_size"), format!("{sizes:?}"), vec!["blocks of 128 by 128"]))
        }
    }
}

/// The names of a checkpoint's classes. Some types write them beside the keys of the text, where another type's may be
/// too.
fn class_names(config: &Config, classes: &[Class]) -> Result<Vec<String>, ModelError> {
    let names = config.texts("architectures")?;
    let Some(text) = config.section("text_config")?.filter(|_| names.is_empty()) else { return Ok(names) };
    let own = |name: &String| classes.iter().any(|class| class.name == name);
    Ok(text.texts("architectures")?.into_iter().filter(own).collect())
}

/// A model of Diffusers, whose configuration names its class.
fn describe_class(config: &Config, name: String) -> Result<Description, ModelError> {
    let archs = || ALL.iter().map(|arch| &arch.hugging_face).filter(|arch| arch.model_type.starts_with(DIFFUSERS));
    let classes = || archs().flat_map(|arch| arch.classes.iter().map(move |class| (arch, class)));
    let supported = || classes().map(|(_, class)| class.name).collect();
    let found = classes().find(|(_, class)| class.name == name);
    let (arch, class) = found.ok_or_else(|| unsupported("the _class_name", name, supported()))?;
    let spec = (arch.spec)(config, class.head)?;
    let rules = Rules { prefix: "", base: class.base, stack: arch.stack, heads: arch.heads };
    Ok(Description { spec, rules, class: class.name, head: class.head })
}

/// What a section of a configuration says of a model within another, of the type that it names, or else of `default`.
fn within(config: &Config, default: &str, kind: HeadKind) -> Result<(Spec, &'static HuggingFace), ModelError> {
    let name = config.optional_text("model_type")?.unwrap_or_else(|| default.to_owned());
    let mut archs = ALL.iter().map(|arch| &arch.hugging_face);
    let supported = || ALL.iter().map(|arch| arch.hugging_face.model_type).collect();
    let what = config.path("model_type");
    let arch = archs.find(|arch| arch.model_type == name).ok_or_else(|| unsupported(&what, name, supported()))?;
    Ok(((arch.spec)(config, kind)?, arch))
}

/// What the names of Diffusers' types begin with here.
const DIFFUSERS: &str = "diffusers-";

/// The head of a decoder.
fn decoder_head(config: &Config, kind: HeadKind, logits: LogitsSpec) -> Result<HeadSpec, ModelError> {
    Ok(match kind {
        HeadKind::States => HeadSpec::States,
        HeadKind::NextToken | HeadKind::NextTokenAndChoice => HeadSpec::NextToken(logits),
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
