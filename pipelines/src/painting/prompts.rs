//! Texts as the text encoder of a painting reads them: each of one length, filled up with padding.

use accel_backends::files::PartFiles;

use crate::error::PipelineError;
use crate::tokenizer::Tokenizer;

/// The longest texts of models in use have 512 tokens.
const LENGTH_MAX: usize = 1 << 14;

/// What makes tokens of texts.
pub struct Prompts {
    tokenizer: Tokenizer,
    length: usize,
    padding: i64,
}

/// A text as it is read.
#[derive(Debug)]
pub struct Prompt {
    /// Its tokens, with those that fill it up.
    pub ids: Vec<i64>,
    /// Tokens of its own.
    pub tokens: usize,
}

impl Prompts {
    /// Reads the directory of a tokenizer whose files say how long texts are. `positions`, how many the text encoder has.
    ///
    /// # Errors
    ///
    /// When its files do not say how long texts are, or with what they are filled up.
    pub fn read(files: &PartFiles, positions: usize) -> Result<Self, PipelineError> {
        let tokenizer = Tokenizer::load(files, None)?;
        let length = tokenizer.length_max();
        let length = length.filter(|length| *length <= positions.min(LENGTH_MAX)).ok_or_else(|| {
            let found = length.map_or_else(|| "nothing".into(), |length| length.to_string());
            wrong("model_max_length", format!("expected at most {positions}, found {found}"))
        })?;
        Self::new(tokenizer, length)
    }

    /// Reads the directory of a tokenizer whose texts have so many tokens.
    ///
    /// # Errors
    ///
    /// When its files do not say with what texts are filled up.
    pub fn of_length(files: &PartFiles, length: usize) -> Result<Self, PipelineError> {
        Self::new(Tokenizer::load(files, None)?, length)
    }

    fn new(tokenizer: Tokenizer, length: usize) -> Result<Self, PipelineError> {
        let padding = tokenizer.padding().map(i64::from);
        let padding =
            padding.ok_or_else(|| wrong("pad_token", "expected a token of the vocabulary, found none".into()))?;
        Ok(Self { tokenizer, length, padding })
    }

    /// A text as it is read.
    ///
    /// # Errors
    ///
    /// When it is longer than the text encoder reads: what were cut off would not be painted.
    pub fn prompt(&self, text: &str) -> Result<Prompt, PipelineError> {
        let found = self.tokenizer.encode_text(text).map_err(|error| PipelineError::input("the text", error))?;
        if found.len() > self.length {
            return Err(PipelineError::TooLong { found: found.len(), context: self.length });
        }
        let tokens = found.len();
        let filling = std::iter::repeat_n(self.padding, self.length - tokens);
        Ok(Prompt { ids: found.into_iter().map(i64::from).chain(filling).collect(), tokens })
    }
}

fn wrong(key: &str, reason: String) -> PipelineError {
    PipelineError::tokenizer(format!("tokenizer_config.json: {key}"), reason)
}
