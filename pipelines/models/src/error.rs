//! What can be wrong with a model.

use accel_backends::tensor::TensorError;
use accel_backends::weights::WeightsError;

use crate::config::ConfigError;

/// A model cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Its configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its weight files are wrong.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// An operation went wrong.
    #[error("{place}: {source}")]
    Tensor {
        /// Which part of the model.
        place: String,
        /// What went wrong.
        #[source]
        source: TensorError,
    },
    /// Something that this program does not know how to run.
    #[error("{what} {found:?} is not supported; supported: {supported}")]
    Unsupported {
        /// What kind of thing.
        what: String,
        /// What was found.
        found: String,
        /// What would do.
        supported: String,
    },
    /// An input is not there.
    #[error("the input {name} is missing")]
    MissingInput {
        /// Its name.
        name: String,
    },
    /// A tensor is not there.
    #[error("{name}: expected a tensor {from:?}, found none")]
    MissingTensor {
        /// The name in the model.
        name: String,
        /// The name in the file.
        from: String,
    },
    /// A tensor is there that the configuration does not call for.
    #[error(
        "{name}: the configuration calls for no such tensor, and the file has it: one of the two is another model's"
    )]
    LeftOver {
        /// The name in the file.
        name: String,
    },
    /// A tensor has another shape than the configuration calls for.
    #[error("{name}: expected {expected:?}, found {found:?}")]
    TensorShape {
        /// The name in the model.
        name: String,
        /// What the configuration calls for.
        expected: Vec<usize>,
        /// What the file has.
        found: Vec<usize>,
    },
    /// The weights are larger than they may be.
    #[error("the model's weights take {needed_bytes} bytes, but {allowed_bytes} are allowed here")]
    OutOfMemory {
        /// What they take.
        needed_bytes: u64,
        /// What is allowed.
        allowed_bytes: u64,
    },
    /// A part that another machine has cannot be had.
    #[error("{part}: {reason}")]
    Elsewhere {
        /// The part.
        part: String,
        /// Why not.
        reason: String,
    },
    /// What another machine kept of sequences is gone: they are to be read from their beginnings.
    #[error("{part} was lost: {reason}")]
    Lost {
        /// The part that it worked out.
        part: String,
        /// What happened.
        reason: String,
    },
    /// Rows of a forward pass that do not follow from the state.
    #[error("{place}: expected {expected}, found {found}")]
    State {
        /// Which part of the model.
        place: &'static str,
        /// What follows from the state.
        expected: String,
        /// What was asked.
        found: String,
    },
}

impl ModelError {
    /// An input of the wrong shape.
    pub fn input(name: &str, expected: &str, found: &[usize]) -> Self {
        let source =
            TensorError::Shape { operation: "input", expected: expected.to_owned(), found: format!("{found:?}") };
        Self::Tensor { place: name.to_owned(), source }
    }

    /// A model was to generate that does not.
    pub fn no_generation() -> Self {
        Self::Unsupported {
            what: "generation by".into(),
            found: "a model without logits of the next token".into(),
            supported: "models that have them".into(),
        }
    }

    /// Adds the part of the model to an operation's error.
    pub(crate) fn at(place: impl Into<String>) -> impl FnOnce(TensorError) -> Self {
        let place = place.into();
        move |source| Self::Tensor { place, source }
    }
}
