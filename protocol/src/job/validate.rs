//! Whether a job is one that can be asked for: numbers in range, texts and lists within [`crate::limits`].
//!
//! Everybody who takes a job calls this, at whatever door it came in, so that no later step meets a number that is not
//! one. What depends on the model (its context, its tokens) is not known here and is checked where the model is.

use std::fmt::Display;

use cid::Cid;

use super::{Generation, Input, JobSpec, Message, Painting, TaskOptions};
use crate::error::{ErrorCode, JobError};
use crate::limits::{
    ANSWER_TOKENS, ARITHMETIC_BYTES, BLOB_INPUT_BYTES, CHAT_MESSAGES, DEADLINE_MS_MAX, INLINE_INPUT_BYTES,
    LANGUAGE_BYTES, MODEL_PATH_BYTES, PAINTING_GUIDANCE, PAINTING_SIDE, PAINTING_STEPS, PICTURES, REPETITION_PENALTY,
    STOP_TEXT_BYTES, STOP_TEXTS, TEMPERATURE, TEXTS, TOP_LOGPROBS, TOP_RESULTS,
};

impl JobSpec {
    /// Whether a peer may ask for this job.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidRequest`], naming the first field that is wrong.
    pub fn validate(&self) -> Result<(), JobError> {
        self.input.validate()?;
        self.validate_rest()
    }

    /// Whether a node's own users may ask for this job: an input that is too large to travel inside it travels by CID.
    ///
    /// # Errors
    /// As [`JobSpec::validate`].
    pub fn validate_local(&self) -> Result<(), JobError> {
        match &self.input {
            blob @ Input::Blob(_) => blob.validate()?,
            inline => inline.validate_blob_content()?,
        }
        self.validate_rest()
    }

    fn validate_rest(&self) -> Result<(), JobError> {
        self.generation.validate()?;
        self.options.validate()?;
        // A parsed name is within this; one that was put together in the program need not be.
        at_most("model path bytes", self.model.path.len(), MODEL_PATH_BYTES)?;
        at_most("prior tokens", self.prior.len(), self.generation.max_tokens as usize)?;
        if let Some(arithmetic) = &self.arithmetic {
            at_most("arithmetic bytes", arithmetic.0.len(), ARITHMETIC_BYTES)?;
        }
        within("deadline_ms", self.deadline_ms, 1, DEADLINE_MS_MAX)
    }
}

impl Generation {
    /// Whether these settings make sense for any model.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidRequest`], naming the first field that is wrong.
    pub fn validate(&self) -> Result<(), JobError> {
        within("max_tokens", self.max_tokens, 1, ANSWER_TOKENS)?;
        within("temperature", self.temperature, 0.0, TEMPERATURE)?;
        within("top_p", self.top_p, 0.0, 1.0)?;
        within("min_p", self.min_p, 0.0, 1.0)?;
        // Logits are divided by it.
        within("repetition_penalty", self.repetition_penalty, 1.0 / REPETITION_PENALTY, REPETITION_PENALTY)?;
        if let Some(count) = self.logprobs {
            within("logprobs", count, 0, TOP_LOGPROBS)?;
        }
        at_most("stop texts", self.stop.len(), STOP_TEXTS)?;
        for text in &self.stop {
            // An empty text would end every answer before its first token.
            within("bytes of a stop text", text.len(), 1, STOP_TEXT_BYTES)?;
        }
        Ok(())
    }
}

impl TaskOptions {
    fn validate(&self) -> Result<(), JobError> {
        if let Some(count) = self.top_k {
            within("top_k", count, 1, TOP_RESULTS)?;
        }
        if let Some(threshold) = self.threshold {
            within("threshold", threshold, 0.0, 1.0)?;
        }
        if let Some(language) = &self.language {
            within("bytes of the language", language.len(), 1, LANGUAGE_BYTES)?;
        }
        let Painting { steps, guidance, negative, width, height } = &self.painting;
        if let Some(steps) = *steps {
            within("steps", steps, 1, PAINTING_STEPS)?;
        }
        if let Some(guidance) = *guidance {
            within("guidance", guidance, 0.0, PAINTING_GUIDANCE)?;
        }
        if let Some(text) = negative {
            at_most("bytes of what is not to be shown", text.len(), INLINE_INPUT_BYTES)?;
        }
        for (name, side) in [("width", *width), ("height", *height)] {
            if let Some(side) = side {
                within(name, side, 1, PAINTING_SIDE)?;
            }
        }
        Ok(())
    }
}

impl Input {
    /// The bytes of its texts, files or numbers.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Text(text) | Self::Blob(text) => text.len() as u64,
            Self::Chat(messages) => said(messages),
            Self::Texts(texts) => texts.iter().map(|text| text.len() as u64).sum(),
            Self::Pair(first, second) => (first.len() + second.len()) as u64,
            Self::File(file) => file.0.len() as u64,
            Self::Pictures(files, messages) => {
                files.iter().map(|file| file.0.len() as u64).sum::<u64>() + said(messages)
            }
            Self::Series(times) => times.iter().map(|channels| size_of_val(channels.as_slice()) as u64).sum(),
        }
    }

    /// Whether this input may travel inside a job.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidRequest`], saying what is wrong.
    pub fn validate(&self) -> Result<(), JobError> {
        match self {
            Self::Blob(text) => match text.parse::<Cid>() {
                Ok(_) => Ok(()),
                Err(error) => {
                    let start: String = text.chars().take(64).collect();
                    Err(invalid(format_args!("input blob: expected a CID, found {start:?} ({error})")))
                }
            },
            inline => inline.validate_content(INLINE_INPUT_BYTES as u64),
        }
    }

    /// Whether this input may have come out of a blob: larger, and not a blob again.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidRequest`], saying what is wrong.
    pub fn validate_blob_content(&self) -> Result<(), JobError> {
        self.validate_content(BLOB_INPUT_BYTES)
    }

    fn validate_content(&self, limit_bytes: u64) -> Result<(), JobError> {
        match self {
            Self::Chat(messages) => within("messages", messages.len(), 1, CHAT_MESSAGES)?,
            Self::Texts(texts) => within("texts", texts.len(), 1, TEXTS)?,
            Self::Blob(_) => {
                return Err(invalid("input blob: expected a text, a conversation or a file inside, found a blob"));
            }
            Self::Pictures(files, messages) => {
                within("pictures", files.len(), 1, PICTURES)?;
                within("messages", messages.len(), 1, CHAT_MESSAGES)?;
            }
            Self::Series(times) => {
                let channels = times.first().map_or(0, Vec::len);
                if channels == 0 || times.iter().any(|values| values.len() != channels) {
                    return Err(invalid("series: expected the same number of values, at least one, at each time"));
                }
            }
            Self::Text(_) | Self::Pair(..) | Self::File(_) => {}
        }
        at_most("input bytes", self.bytes(), limit_bytes)
    }
}

/// The bytes that are said in a conversation.
fn said(messages: &[Message]) -> u64 {
    messages.iter().map(|message| message.content.len() as u64).sum()
}

/// An error unless `least <= found <= most`, which NaN is not.
fn within<T: PartialOrd + Display>(name: &str, found: T, least: T, most: T) -> Result<(), JobError> {
    if least <= found && found <= most {
        return Ok(());
    }
    Err(invalid(format_args!("{name}: expected {least} to {most}, found {found}")))
}

fn at_most<T: PartialOrd + Display>(name: &str, found: T, most: T) -> Result<(), JobError> {
    if found <= most { Ok(()) } else { Err(invalid(format_args!("{name}: expected at most {most}, found {found}"))) }
}

fn invalid(message: impl Display) -> JobError {
    JobError::new(ErrorCode::InvalidRequest, message)
}
