//! The registry of model types: each is data that turns a configuration into a specification.

pub mod decoder;

use accel_backends::files::ModelFiles;
use accel_backends::weights::TensorIndex;

use crate::ModelError;
use crate::config::Config;
use crate::rules::Rules;
use crate::spec::DecoderSpec;

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
    /// The `model_type` of its configuration.
    pub model_type: &'static str,
    /// The class of a checkpoint that can generate text.
    pub class: &'static str,
    /// Its configuration.
    pub spec: fn(&Config) -> Result<DecoderSpec, ModelError>,
    /// Its weights.
    pub rules: Rules,
}

/// A model type in GGUF files.
#[derive(Debug)]
pub struct Gguf {
    /// The `general.architecture` of its metadata.
    pub architecture: &'static str,
    /// Its configuration.
    pub spec: fn(&Config, &TensorIndex) -> Result<DecoderSpec, ModelError>,
    /// Its weights.
    pub rules: Rules,
}

/// All model types.
pub const ALL: &[&Arch] = &[&decoder::llama::ARCH, &decoder::mistral::ARCH];

/// Finds out what a model is, and where its weights lie.
///
/// # Errors
///
/// When its type is not supported or its configuration is wrong.
pub fn describe(files: &dyn ModelFiles, index: &TensorIndex) -> Result<(DecoderSpec, Rules), ModelError> {
    if let Some(metadata) = index.gguf() {
        let config = Config::from_gguf(metadata);
        let name = config.text("general.architecture")?;
        let found = ALL.iter().filter_map(|arch| arch.gguf.as_ref()).find(|gguf| gguf.architecture == name);
        let supported = || ALL.iter().filter_map(|arch| arch.gguf.as_ref()).map(|gguf| gguf.architecture).collect();
        let gguf = found.ok_or_else(|| unsupported("the GGUF architecture", name, supported()))?;
        return Ok(((gguf.spec)(&config, index)?, gguf.rules));
    }
    let config = Config::read(files)?;
    let name = config.text("model_type")?;
    let found = ALL.iter().map(|arch| &arch.hugging_face).find(|arch| arch.model_type == name);
    let supported = || ALL.iter().map(|arch| arch.hugging_face.model_type).collect();
    let arch = found.ok_or_else(|| unsupported("the model_type", name, supported()))?;
    let classes = config.texts("architectures")?;
    if !classes.is_empty() && !classes.iter().any(|class| class == arch.class) {
        return Err(unsupported("the class", classes.join(", "), vec![arch.class]));
    }
    Ok(((arch.spec)(&config)?, arch.rules))
}

fn unsupported(what: &str, found: String, supported: Vec<&str>) -> ModelError {
    ModelError::Unsupported { what: what.to_owned(), found, supported: supported.join(", ") }
}
