//! A model of several parts, as `DiffusionPipeline.save_pretrained` writes it: `model_index.json` names the pipeline's
//! class and, of each part, the library and class; each part lies in a directory of its name.

use std::sync::Arc;

use accel_backends::files::{ModelFiles, PartFiles, file_bytes};
use accel_backends::tensor::Engine;
use accel_backends::weights::{self, TensorIndex};
use accel_models::ModelError;
use accel_models::arch::{self, Description};
use accel_models::config::Config;
use accel_models::model::Model;
use accel_models::rules::Loader;

use super::training::unsupported;
use crate::error::PipelineError;

const INDEX_FILE: &str = "model_index.json";

/// The parts of a model.
pub struct Parts {
    files: Arc<dyn ModelFiles>,
    index: Config,
}

/// One part.
pub struct Part {
    /// Its name.
    pub name: &'static str,
    /// Its class.
    pub class: String,
    /// Its files.
    pub files: Arc<PartFiles>,
}

/// A part that is a model, known but not loaded.
pub struct PartModel {
    part: Part,
    index: TensorIndex,
    /// What it is.
    pub described: Description,
    /// Its configuration.
    pub config: Config,
}

impl Parts {
    /// Whether a model has parts.
    pub fn are_in(files: &dyn ModelFiles) -> bool {
        file_bytes(files, INDEX_FILE).is_some()
    }

    /// Reads `model_index.json`.
    ///
    /// # Errors
    ///
    /// When it is damaged.
    pub fn read(files: Arc<dyn ModelFiles>) -> Result<Self, PipelineError> {
        Ok(Self { index: Config::read_named(&*files, INDEX_FILE)?, files })
    }

    /// The class of the pipeline, where it is one of `supported`.
    ///
    /// # Errors
    ///
    /// When it is another.
    pub fn class(&self, supported: &[&'static str]) -> Result<&'static str, PipelineError> {
        let name = self.index.text("_class_name")?;
        let found = supported.iter().find(|class| **class == name);
        found.copied().ok_or_else(|| unsupported(&self.index, "_class_name", &name, &supported.join(", ")))
    }

    /// A part that has to be there.
    ///
    /// # Errors
    ///
    /// When it is not.
    pub fn part(&self, name: &'static str) -> Result<Part, PipelineError> {
        let missing = || self.index.wrong(name, "a library and a class").into();
        self.optional(name)?.ok_or_else(missing)
    }

    /// A part that may be left out: null, or a pair of them.
    ///
    /// # Errors
    ///
    /// When it is something else.
    pub fn optional(&self, name: &'static str) -> Result<Option<Part>, PipelineError> {
        let Some([_, class]) = self.index.optional_pair(name)? else { return Ok(None) };
        Ok(Some(Part { name, class, files: Arc::new(PartFiles::new(self.files.clone(), name)) }))
    }
}

impl Part {
    /// Its class, where it is one of `supported`.
    ///
    /// # Errors
    ///
    /// When it is another.
    pub fn of_class(self, supported: &[&str]) -> Result<Self, PipelineError> {
        if supported.contains(&self.class.as_str()) {
            return Ok(self);
        }
        Err(PipelineError::Model(ModelError::Unsupported {
            what: format!("{INDEX_FILE}: the class of {}", self.name),
            found: self.class,
            supported: supported.join(", "),
        }))
    }

    /// Finds out what model it is.
    ///
    /// # Errors
    ///
    /// When it is none, or of a class that is not known.
    pub fn describe(self) -> Result<PartModel, PipelineError> {
        let of_part = || PipelineError::of_part(self.name);
        let index = weights::index(&*self.files).map_err(PipelineError::from).map_err(of_part())?;
        let described = arch::describe(&*self.files, &index).map_err(PipelineError::from).map_err(of_part())?;
        let config = Config::read(&*self.files).map_err(PipelineError::from).map_err(of_part())?;
        Ok(PartModel { index, described, config, part: self })
    }
}

impl PartModel {
    /// Bytes of its weights.
    pub fn bytes(&self) -> u64 {
        self.index.bytes()
    }

    /// Its tensors, and the files that they are in.
    pub fn weights(&self) -> (&TensorIndex, &PartFiles) {
        (&self.index, &self.part.files)
    }

    /// An error of this part.
    pub fn error(&self, error: impl Into<PipelineError>) -> PipelineError {
        PipelineError::of_part(self.part.name)(error.into())
    }

    /// Reads its weights.
    ///
    /// # Errors
    ///
    /// When that cannot be done.
    pub fn load(self, engine: &Engine) -> Result<Model, PipelineError> {
        let Self { part, index, described, .. } = self;
        let load = || {
            let loader = Loader::new(&*part.files, &index, described.rules, engine);
            let model = Model::load(&loader, described.spec)?;
            loader.finish().map(|()| model)
        };
        load().map_err(PipelineError::from).map_err(PipelineError::of_part(part.name))
    }
}
