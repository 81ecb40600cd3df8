//! From the characters of a sound's places to a text (`Wav2Vec2CTCTokenizer` of `tokenization_wav2vec2.py`).

use std::collections::BTreeMap;

use accel_backends::files::{ModelFiles, read_small};
use serde_json::{Map, Value};

use crate::error::PipelineError;
use crate::tokenizer::tidied;

const VOCABULARY_FILE: &str = "vocab.json";
const CONFIG_FILE: &str = "tokenizer_config.json";
const SPECIAL_FILE: &str = "special_tokens_map.json";
const ADDED_FILE: &str = "added_tokens.json";
const PREPROCESSOR_FILE: &str = "preprocessor_config.json";
const FILE_BYTES_MAX: u64 = 16 << 20;
const SUPPORTED: [&str; 2] = ["Wav2Vec2CTCTokenizer", "Wav2Vec2Tokenizer"];

/// The characters that a model hears.
#[derive(Debug)]
pub struct Characters {
    tokens: BTreeMap<u32, String>,
    /// What stands for places without a character, and between characters that are there twice.
    blank: String,
    unknown: String,
    delimiter: Option<String>,
    /// What becomes of a delimiter.
    space: String,
    /// Whether texts are in small letters.
    lower: bool,
    /// Whether the spaces before punctuation are taken away.
    tidy: bool,
}

impl Characters {
    /// Reads `vocab.json` with the files that go with it.
    ///
    /// # Errors
    ///
    /// When a file is missing or damaged, or asks for a tokenizer or a language model that is not supported.
    pub fn read(files: &dyn ModelFiles) -> Result<Self, PipelineError> {
        let class = |file: &str, key: &'static str, supported: &dyn Fn(&str) -> bool, words: &str| {
            let settings = object(files, file)?.unwrap_or_default();
            match settings.get(key).and_then(Value::as_str) {
                Some(found) if !supported(found) => Err(PipelineError::Unsupported {
                    what: key,
                    found: found.chars().take(80).collect(),
                    supported: words.to_owned(),
                }),
                _ => Ok(settings),
            }
        };
        let with_model = |class: &str| !class.ends_with("WithLM");
        class(PREPROCESSOR_FILE, "processor_class", &with_model, "processors without a language model")?;
        let known = |class: &str| SUPPORTED.contains(&class.trim_end_matches("Fast"));
        let mut config = class(CONFIG_FILE, "tokenizer_class", &known, &SUPPORTED.join(", "))?;
        let vocabulary = object(files, VOCABULARY_FILE)?
            .ok_or_else(|| PipelineError::tokenizer(VOCABULARY_FILE, "expected the file, found none"))?;
        let vocabulary = match config.get("target_lang").and_then(Value::as_str) {
            None => vocabulary,
            Some(language) => vocabulary.get(language).and_then(Value::as_object).cloned().ok_or_else(|| {
                PipelineError::tokenizer(VOCABULARY_FILE, format!("expected characters of {language}, found none"))
            })?,
        };
        let mut tokens = ids(VOCABULARY_FILE, &vocabulary)?;
        if let Some(added) = config.get("added_tokens_decoder").and_then(Value::as_object) {
            for (id, token) in added {
                let place = || format!("{CONFIG_FILE}: added_tokens_decoder: {id}");
                let id = id.parse().map_err(|error| PipelineError::tokenizer(place(), error))?;
                let token = text(token).ok_or_else(|| PipelineError::tokenizer(place(), "expected a token"))?;
                tokens.insert(id, token);
            }
        } else {
            // Files from before tokens were told there.
            config.extend(object(files, SPECIAL_FILE)?.unwrap_or_default());
            tokens.extend(ids(ADDED_FILE, &object(files, ADDED_FILE)?.unwrap_or_default())?);
        }
        let named = |key: &str, default: &str| match config.get(key) {
            None => Ok(default.to_owned()),
            Some(value) => {
                text(value).ok_or_else(|| PipelineError::tokenizer(format!("{CONFIG_FILE}: {key}"), "expected a token"))
            }
        };
        let truth = |key: &str| match config.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(truth)) => Ok(*truth),
            Some(_) => Err(PipelineError::tokenizer(format!("{CONFIG_FILE}: {key}"), "expected true or false")),
        };
        let (unknown, blank) = (named("unk_token", "<unk>")?, named("pad_token", "<pad>")?);
        // What is not among the characters comes after them, in this order.
        for token in [named("bos_token", "<s>")?, named("eos_token", "</s>")?, unknown.clone(), blank.clone()] {
            if !tokens.values().any(|known| *known == token) {
                let next = tokens.last_key_value().map_or(0, |(id, _)| id.saturating_add(1));
                tokens.insert(next, token);
            }
        }
        let delimiter = match config.get("word_delimiter_token") {
            Some(Value::Null) => None,
            _ => Some(named("word_delimiter_token", "|")?),
        };
        Ok(Self {
            tokens,
            blank,
            unknown,
            delimiter,
            space: named("replace_word_delimiter_char", " ")?,
            lower: truth("do_lower_case")?,
            tidy: truth("clean_up_tokenization_spaces")?,
        })
    }

    /// The text of the likeliest characters of all places.
    pub fn text(&self, ids: &[u32]) -> String {
        let token = |id: &u32| self.tokens.get(id).unwrap_or(&self.unknown).as_str();
        let mut tokens: Vec<&str> = ids.iter().map(token).collect();
        tokens.dedup();
        let spoken = tokens.into_iter().filter(|token| *token != self.blank);
        let spaced = |token| if self.delimiter.as_deref() == Some(token) { &self.space } else { token };
        let mut text = spoken.map(spaced).collect::<String>().trim().to_owned();
        if self.lower {
            text = text.to_lowercase();
        }
        if self.tidy { tidied(&text) } else { text }
    }
}

fn ids(file: &str, tokens: &Map<String, Value>) -> Result<BTreeMap<u32, String>, PipelineError> {
    let id = |(token, id): (&String, &Value)| {
        let found = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let wrong = || {
            let shown: String = token.chars().take(40).collect();
            PipelineError::tokenizer(format!("{file}: {shown:?}"), "expected the number of a character")
        };
        found.map(|id| (id, token.clone())).ok_or_else(wrong)
    };
    tokens.iter().map(id).collect()
}

/// A text, or an added token that has one.
fn text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

fn object(files: &dyn ModelFiles, file: &str) -> Result<Option<Map<String, Value>>, PipelineError> {
    let text = read_small(files, file, FILE_BYTES_MAX).map_err(|error| PipelineError::tokenizer(file, error))?;
    text.map(|text| serde_json::from_slice(&text).map_err(|error| PipelineError::tokenizer(file, error))).transpose()
}

#[cfg(test)]
mod tests;
