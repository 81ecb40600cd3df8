//! Reads `preprocessor_config.json` key by key, and names the key in every error.
//!
//! It is a reader beside the one for `config.json` because these files have values of several kinds under one key: a
//! size may be a number, a list or an object, a mean may be a number or a list. Which keys matter is for the readers of
//! pictures and sounds to say; keys that nobody asks for are passed over, as Hugging Face does.

use std::io;

use accel_backends::files::{ModelFiles, read_small};
use accel_models::ModelError;
use accel_models::config::ConfigError;
use serde_json::{Map, Value};

use crate::error::PipelineError;

const PREPROCESSOR_FILE: &str = "preprocessor_config.json";
/// A configuration of a preprocessor; those with precomputed mel filters are the largest.
const PREPROCESSOR_BYTES_MAX: u64 = 4 << 20;

/// The settings of a preprocessor, or a section of them.
#[derive(Debug)]
pub(crate) struct Settings {
    path: String,
    values: Map<String, Value>,
}

impl Settings {
    /// Reads a model's `preprocessor_config.json`.
    ///
    /// # Errors
    ///
    /// When it is not there, too large, or no JSON object.
    pub(crate) fn read(files: &dyn ModelFiles) -> Result<Self, PipelineError> {
        let unread = |source| config(ConfigError::Read { file: PREPROCESSOR_FILE.into(), source });
        let text = read_small(files, PREPROCESSOR_FILE, PREPROCESSOR_BYTES_MAX).map_err(unread)?;
        Self::parse(&text.ok_or_else(|| unread(io::ErrorKind::NotFound.into()))?)
    }

    /// Reads the text of a `preprocessor_config.json`.
    ///
    /// # Errors
    ///
    /// When it is too large, or no JSON object.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, PipelineError> {
        let file = || PREPROCESSOR_FILE.to_owned();
        if text.len() as u64 > PREPROCESSOR_BYTES_MAX {
            let source = io::ErrorKind::FileTooLarge.into();
            return Err(config(ConfigError::Read { file: file(), source }));
        }
        let values = serde_json::from_slice(text)
            .map_err(|error| config(ConfigError::Syntax { file: file(), reason: error.to_string() }))?;
        Ok(Self { path: file(), values })
    }

    /// The value of a key; null counts as none.
    pub(crate) fn value(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// The keys, in no order that matters.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// A section that may be left out, or that may be a value of another kind: then it is none.
    pub(crate) fn section(&self, key: &str) -> Option<Self> {
        let values = self.value(key)?.as_object()?.clone();
        Some(Self { path: format!("{}: {key}", self.path), values })
    }

    /// A truth value, or what holds without it. Some files have 0 and 1 for it.
    pub(crate) fn truth(&self, key: &str, default: bool) -> Result<bool, PipelineError> {
        let truth = |value: &Value| value.as_bool().or_else(|| value.as_u64().map(|number| number != 0));
        Ok(self.optional(key, "true or false", truth)?.unwrap_or(default))
    }

    /// A finite number.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, PipelineError> {
        self.optional(key, "a number", Value::as_f64)
    }

    /// A whole number from 1 to `max`. Some files write whole numbers with a decimal point.
    pub(crate) fn size(&self, key: &str, max: usize) -> Result<Option<usize>, PipelineError> {
        let expected = format!("a whole number from 1 to {max}");
        let whole = |value: &Value| whole_number(value).filter(|size| (1..=max).contains(size));
        self.optional(key, &expected, whole)
    }

    /// A text.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>, PipelineError> {
        self.optional(key, "a text", Value::as_str)
    }

    /// Three numbers for three channels; one number, or a list of one, stands for all of them.
    pub(crate) fn channels(&self, key: &str) -> Result<Option<[f64; 3]>, PipelineError> {
        let channels = |value: &Value| {
            if let Some(number) = value.as_f64() {
                return Some([number; 3]);
            }
            match value.as_array()?.as_slice() {
                [number] => Some([number.as_f64()?; 3]),
                [red, green, blue] => Some([red.as_f64()?, green.as_f64()?, blue.as_f64()?]),
                _ => None,
            }
        };
        self.optional(key, "a number or three of them", channels)
    }

    /// An error about the value of a key.
    pub(crate) fn wrong(&self, key: &str, expected: impl Into<String>) -> PipelineError {
        let path = format!("{}: {key}", self.path);
        let expected = expected.into();
        let found = self.value(key).map_or_else(|| "nothing".into(), Value::to_string);
        config(ConfigError::Mistyped { path, expected, found: found.chars().take(80).collect() })
    }

    fn optional<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, PipelineError> {
        self.value(key).map(|value| read(value).ok_or_else(|| self.wrong(key, expected))).transpose()
    }
}

/// A whole number that is not negative, with or without a decimal point.
pub(crate) fn whole_number(value: &Value) -> Option<usize> {
    let number = value.as_u64().or_else(|| {
        let number = value.as_f64().filter(|number| *number >= 0.0 && number.fract() == 0.0 && *number < 1e15)?;
        Some(number as u64)
    })?;
    usize::try_from(number).ok()
}

fn config(error: ConfigError) -> PipelineError {
    PipelineError::Model(ModelError::Config(error))
}
