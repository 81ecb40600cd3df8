//! What can go wrong between a model's files and a job's answer.

use accel_backends::tensor::TensorError;
use accel_backends::weights::WeightsError;
use accel_models::ModelError;
use accel_models::config::ConfigError;
use accel_protocol::{ErrorCode, JobError};

/// A pipeline cannot be made, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The model cannot be loaded or run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Its tokenizer is missing or damaged.
    #[error("{place}: {reason}")]
    Tokenizer {
        /// Which part of it.
        place: String,
        /// What was expected and found.
        reason: String,
    },
    /// Its tokenizer is of a kind that is not known.
    #[error("{what} {found:?} is not supported; supported: {supported}")]
    Unsupported {
        /// What kind of thing.
        what: &'static str,
        /// What was found.
        found: String,
        /// What would do.
        supported: String,
    },
    /// Its chat template does not parse.
    #[error("the model's chat template: {reason}")]
    ChatTemplate {
        /// Why not.
        reason: String,
    },
    /// A picture or a sound cannot be read, or is none that the model can take.
    #[error("{what}: {reason}")]
    Input {
        /// What it is about.
        what: &'static str,
        /// What was expected and found.
        reason: String,
    },
    /// A picture or a sound is larger than this program takes.
    #[error("{what}: expected at most {allowed} {unit}, found {found}")]
    InputTooLarge {
        /// What is too large.
        what: &'static str,
        /// How large it is.
        found: u64,
        /// How large it may be.
        allowed: u64,
        /// What is counted.
        unit: &'static str,
    },
    /// There is not enough memory left for a job.
    #[error("{what} takes up to {needed_bytes} bytes, but {left_bytes} are left; ask for less or try later")]
    NoRoom {
        /// What the job is about.
        what: String,
        /// What it takes.
        needed_bytes: u64,
        /// What is left.
        left_bytes: u64,
    },
    /// A text has more tokens than the model has positions.
    #[error("the text takes {found} tokens, but the model's context has {context}; shorten the text")]
    TooLong {
        /// Its tokens.
        found: usize,
        /// The model's positions.
        context: usize,
    },
    /// A model's answer is not made of numbers.
    #[error("{output}: expected numbers, found NaN: the model's weights are damaged or overflow")]
    NotNumbers {
        /// The name of the output.
        output: String,
    },
    /// Something is wrong with a part of a model that has several.
    #[error("{name}/{source}")]
    Part {
        /// The part, by the name of its directory.
        name: String,
        /// What is wrong.
        #[source]
        source: Box<PipelineError>,
    },
    /// The engine could not be started.
    #[error("the compute engine: {0}")]
    Engine(#[source] TensorError),
}

impl From<WeightsError> for PipelineError {
    fn from(error: WeightsError) -> Self {
        Self::Model(error.into())
    }
}

impl From<ConfigError> for PipelineError {
    fn from(error: ConfigError) -> Self {
        Self::Model(error.into())
    }
}

impl PipelineError {
    /// Says of which part of a model it is.
    pub(crate) fn of_part(name: &str) -> impl FnOnce(Self) -> Self {
        let name = name.to_owned();
        move |source| Self::Part { name, source: Box::new(source) }
    }

    /// A damaged or missing part of a tokenizer.
    pub(crate) fn tokenizer(place: impl Into<String>, reason: impl ToString) -> Self {
        Self::Tokenizer { place: place.into(), reason: reason.to_string() }
    }

    /// A picture or a sound that cannot be read or taken.
    pub(crate) fn input(what: &'static str, reason: impl ToString) -> Self {
        Self::Input { what, reason: reason.to_string() }
    }

    /// Something that is larger than it may be.
    pub(crate) fn too_large(what: &'static str, found: usize, allowed: usize, unit: &'static str) -> Self {
        Self::InputTooLarge { what, found: found as u64, allowed: allowed as u64, unit }
    }

    /// What kind of thing went wrong, for programs.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Model(ModelError::Unsupported { .. }) | Self::Unsupported { .. } => ErrorCode::Unsupported,
            Self::Model(ModelError::Tensor { source: TensorError::Dtype { .. }, .. }) => ErrorCode::Unsupported,
            Self::Model(ModelError::OutOfMemory { .. }) | Self::Engine(_) | Self::NoRoom { .. } => {
                ErrorCode::OutOfResources
            }
            Self::Model(ModelError::Weights(WeightsError::Read { source, .. }))
                if source.kind() == std::io::ErrorKind::OutOfMemory =>
            {
                ErrorCode::OutOfResources
            }
            Self::Part { source, .. } => source.code(),
            Self::Model(ModelError::State { .. }) => ErrorCode::Internal,
            Self::Input { .. } | Self::InputTooLarge { .. } => ErrorCode::InvalidRequest,
            Self::TooLong { .. } => ErrorCode::ContextLength,
            Self::Model(_) | Self::NotNumbers { .. } | Self::Tokenizer { .. } | Self::ChatTemplate { .. } => {
                ErrorCode::ModelInvalid
            }
        }
    }
}

impl From<&PipelineError> for JobError {
    fn from(error: &PipelineError) -> Self {
        Self::new(error.code(), error)
    }
}

impl From<PipelineError> for JobError {
    fn from(error: PipelineError) -> Self {
        Self::from(&error)
    }
}
