//! How a model's files want its answers chosen.
//!
//! The order is that of `Pipeline.__init__` and `_prepare_generation_config` in `transformers` 4.57: what a pipeline has by
//! custom, then the model's `generation_config.json` (or, without one, its `config.json`), then `task_specific_params`.
//! What is equal to the library's own default counts as not said, as it does there. What is said and not supported is an
//! error that names it.

use accel_backends::files::{ModelFiles, read_small};
use accel_models::ModelError;
use accel_models::config::ConfigError;
use accel_protocol::Generation;
use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value, json};

use super::rules::Rules;
use crate::error::PipelineError;
use crate::sequence::transcription::Transcription;

const GENERATION_FILE: &str = "generation_config.json";
const CONFIG_FILE: &str = "config.json";
const FILE_BYTES_MAX: u64 = 16 << 20;
/// The most beams of a search: each holds keys and values of its own.
const BEAMS_MAX: usize = 32;
/// Tokens of an answer where nothing else is said (`_default_generation_config`).
const NEW_TOKENS: usize = 256;
/// `max_length` of a model that says none.
const LENGTH: usize = 20;

/// How the answers to a task are chosen.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What stands before the text.
    pub prefix: String,
    /// The token that a decoder starts with that reads nothing itself.
    pub start: Option<u32>,
    /// Tokens that end an answer.
    pub ends: Vec<u32>,
    /// How many beams a search has; 1 for none.
    pub beams: usize,
    /// The power of an answer's length that its score is divided by.
    pub length_penalty: f64,
    /// When a search ends.
    pub early_stopping: EarlyStopping,
    /// The most tokens.
    pub max_length: Length,
    /// The least tokens before the end.
    pub min_length: Length,
    /// Whether the files ask for draws.
    pub draws: bool,
    /// What tokens may follow.
    pub rules: Rules,
    /// How sounds are written down, where sounds are read.
    pub transcription: Option<Transcription>,
}

/// A number of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Of an answer alone.
    Answer(usize),
    /// Of a sequence, with what it begins with.
    Sequence(usize),
}

impl Length {
    /// The length of a sequence that begins with so many tokens.
    pub fn after(self, begun: usize) -> usize {
        match self {
            Self::Answer(tokens) => tokens.saturating_add(begun),
            Self::Sequence(tokens) => tokens,
        }
    }
}

/// When a search by beams ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EarlyStopping {
    /// As soon as there are as many answers as beams.
    Yes,
    /// When the likeliest beam would be no better if it ended now.
    No,
    /// When no beam can become better however long it gets.
    Never,
}

/// What a pipeline has by custom.
#[derive(Clone, Copy, Debug)]
pub struct Custom<'a> {
    /// The task's name in `task_specific_params`, or how such names begin: the first that does is taken.
    pub task: &'a str,
    /// How many beams.
    pub beams: usize,
    /// Whether what writes is a model within the model, whose own settings, in `text_config`, fill up what is not said.
    pub within: bool,
    /// Whether sounds are written down.
    pub transcribes: bool,
}

/// Keys that change what is answered and that are not supported.
const UNSUPPORTED: [&str; 22] = [
    "assistant_early_exit",
    "constraints",
    "diversity_penalty",
    "dola_layers",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "exponential_decay_length_penalty",
    "force_words_ids",
    "guidance_scale",
    "low_memory",
    "max_time",
    "num_beam_groups",
    "num_return_sequences",
    "penalty_alpha",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "remove_invalid_values",
    "renormalize_logits",
    "sequence_bias",
    "stop_strings",
    "token_healing",
    "watermarking_config",
];

impl Settings {
    /// The settings of a model for a task.
    ///
    /// # Errors
    ///
    /// When a file is damaged, or has a setting that is mistyped or not supported.
    pub fn read(files: &dyn ModelFiles, custom: Custom<'_>, vocabulary: usize) -> Result<Self, PipelineError> {
        let own = object(files, GENERATION_FILE)?;
        let config = object(files, CONFIG_FILE)?.unwrap_or_default();
        let model = own.as_ref().unwrap_or(&config);
        let mut chosen = Chosen::default();
        chosen.set("max_new_tokens", &json!(NEW_TOKENS));
        chosen.set("num_beams", &json!(custom.beams));
        chosen.fill(model);
        let text = config.get("text_config").and_then(Value::as_object);
        if let (None, Some(text)) = (&own, text) {
            chosen.fill(text);
        }
        // A model's own length goes before the pipeline's.
        let length = chosen.0.get("max_length").is_some_and(|length| !length.is_null());
        if length && chosen.0.get("max_new_tokens") == Some(&json!(NEW_TOKENS)) {
            chosen.0.remove("max_new_tokens");
        }
        let mut prefix = config.get("prefix").and_then(Value::as_str).unwrap_or_default().to_owned();
        if let Some(special) = special(files, &config, custom.task)? {
            for (key, value) in special {
                match value.as_str() {
                    Some(text) if key == "prefix" => text.clone_into(&mut prefix),
                    _ => chosen.set(key, value),
                }
            }
        }
        if since_4_50(model) {
            chosen.fill(model);
        }
        if let Some(text) = text.filter(|_| custom.within) {
            chosen.fill(text);
        }
        let transcription = custom.transcribes.then(|| Transcription::read(&chosen.0, &config)).transpose()?;
        chosen.settings(prefix, transcription, vocabulary)
    }

    /// What is asked for, filled up with what the files say. What a person asks for goes before.
    pub fn obeying(&self, asked: &Generation) -> Generation {
        let mut generation = asked.clone();
        if generation.repetition_penalty == 1.0 {
            generation.repetition_penalty = self.rules.repetition_penalty;
        }
        generation
    }
}

/// What is said and differs from the library's default.
#[derive(Default)]
struct Chosen(Map<String, Value>);

impl Chosen {
    fn set(&mut self, key: &str, value: &Value) {
        if is_default(key, value) {
            self.0.remove(key);
        } else {
            self.0.insert(key.to_owned(), value.clone());
        }
    }

    /// Takes from a model what is not said yet.
    fn fill(&mut self, model: &Map<String, Value>) {
        for (key, value) in model {
            if !self.0.contains_key(key) && !is_default(key, value) {
                self.0.insert(key.clone(), value.clone());
            }
        }
    }

    fn settings(
        &self,
        prefix: String,
        transcription: Option<Transcription>,
        vocabulary: usize,
    ) -> Result<Settings, PipelineError> {
        for key in UNSUPPORTED {
            if let Some(found) = self.0.get(key).filter(|value| !value.is_null()) {
                return Err(unsupported(key, found));
            }
        }
        let ends = self.tokens("eos_token_id")?;
        let start = self.tokens("decoder_start_token_id")?.first().copied();
        let start = start.or(self.tokens("bos_token_id")?.first().copied());
        let beams = self.size("num_beams")?.unwrap_or(1).max(1);
        if beams > BEAMS_MAX {
            return Err(self.wrong("num_beams", &format!("at most {BEAMS_MAX}")));
        }
        let early_stopping = match self.0.get("early_stopping") {
            None | Some(Value::Null | Value::Bool(false)) => EarlyStopping::No,
            Some(Value::Bool(true)) => EarlyStopping::Yes,
            Some(Value::String(text)) if text == "never" => EarlyStopping::Never,
            Some(_) => return Err(self.wrong("early_stopping", "true, false or \"never\"")),
        };
        let max_length = match (self.size("max_new_tokens")?, self.size("max_length")?) {
            (Some(new), _) => Length::Answer(new),
            (None, Some(length)) => Length::Sequence(length),
            (None, None) => Length::Answer(LENGTH),
        };
        if max_length.after(1) < 2 {
            return Err(self.wrong("max_length", "at least 2"));
        }
        let min_length = match self.size("min_new_tokens")? {
            Some(new) => Length::Answer(new),
            None => Length::Sequence(self.size("min_length")?.unwrap_or(0)),
        };
        let forced_bos = self.tokens("forced_bos_token_id")?.first().copied();
        let rules = Rules {
            repetition_penalty: self.number("repetition_penalty")?.unwrap_or(1.0) as f32,
            no_repeat_ngram: self.size("no_repeat_ngram_size")?.unwrap_or(0),
            bad_words: self.lists("bad_words_ids")?.into_iter().filter(|word| !is_end(word, &ends)).collect(),
            min_length: 0,
            forced_bos,
            forced_eos: self.tokens("forced_eos_token_id")?,
            suppressed: self.tokens("suppress_tokens")?,
            suppressed_first: self.tokens("begin_suppress_tokens")?,
            begin: 0,
            timestamps: None,
        };
        let spoken = transcription.iter().flat_map(Transcription::tokens);
        let named = rules.tokens().chain(start).chain(ends.iter().copied()).chain(spoken);
        if let Some(token) = named.into_iter().find(|&token| token as usize >= vocabulary) {
            let words = format!("the token {token} of {GENERATION_FILE} is outside the vocabulary of {vocabulary}");
            return Err(PipelineError::tokenizer(GENERATION_FILE, words));
        }
        // Who draws among one takes the likeliest. What is written down of a sound is the likeliest, whatever the files say
        // of draws (`generate_with_fallback`).
        let draws = transcription.is_none()
            && self.0.get("do_sample") == Some(&Value::Bool(true))
            && self.size("top_k")? != Some(1)
            && self.0.get("temperature").and_then(Value::as_f64) != Some(0.0);
        let length_penalty = self.number("length_penalty")?.unwrap_or(1.0);
        Ok(Settings {
            prefix,
            start,
            ends,
            beams,
            length_penalty,
            early_stopping,
            max_length,
            min_length,
            draws,
            rules,
            transcription,
        })
    }

    fn value<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, PipelineError> {
        let value = self.0.get(key).filter(|value| !value.is_null());
        value.map(|value| read(value).ok_or_else(|| self.wrong(key, expected))).transpose()
    }

    fn size(&self, key: &str) -> Result<Option<usize>, PipelineError> {
        self.value(key, "a whole number", |value| usize::try_from(value.as_u64()?).ok())
    }

    fn number(&self, key: &str) -> Result<Option<f64>, PipelineError> {
        self.value(key, "a number", Value::as_f64)
    }

    /// One token, or a list of them; none where nothing is said.
    fn tokens(&self, key: &str) -> Result<Vec<u32>, PipelineError> {
        let read = |value: &Value| match value {
            Value::Array(values) => values.iter().map(token).collect(),
            one => Some(vec![token(one)?]),
        };
        Ok(self.value(key, "a token, or a list of tokens", read)?.unwrap_or_default())
    }

    fn lists(&self, key: &str) -> Result<Vec<Vec<u32>>, PipelineError> {
        let list = |value: &Value| value.as_array()?.iter().map(token).collect::<Option<Vec<_>>>();
        let lists = self.value(key, "a list of lists of tokens", |value| {
            value.as_array()?.iter().map(list).collect::<Option<Vec<_>>>()
        })?;
        let lists = lists.unwrap_or_default();
        if lists.iter().any(Vec::is_empty) {
            return Err(self.wrong(key, "lists with at least one token"));
        }
        Ok(lists)
    }

    fn wrong(&self, key: &str, expected: &str) -> PipelineError {
        wrong(key, expected, self.0.get(key))
    }
}

/// The error of a setting that is not as it should be.
pub fn wrong(key: &str, expected: &str, found: Option<&Value>) -> PipelineError {
    let found = found.map_or_else(|| "nothing".into(), Value::to_string);
    let (path, expected) = (format!("{GENERATION_FILE}: {key}"), expected.to_owned());
    config_error(ConfigError::Mistyped { path, expected, found: found.chars().take(80).collect() })
}

/// The error of a setting that is not supported.
pub fn unsupported(key: &str, found: &Value) -> PipelineError {
    PipelineError::Model(ModelError::Unsupported {
        what: format!("the generation setting {key}"),
        found: found.to_string().chars().take(80).collect(),
        supported: "none, or the library's default".into(),
    })
}

fn token(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

/// A word that is only the end is not forbidden.
fn is_end(word: &[u32], ends: &[u32]) -> bool {
    matches!(word, [token] if ends.contains(token))
}

/// Whether a value is what the library has where nothing is said (`GenerationConfig.__init__`).
fn is_default(key: &str, value: &Value) -> bool {
    let default = match key {
        "max_length" => json!(LENGTH),
        "min_length" | "no_repeat_ngram_size" | "encoder_no_repeat_ngram_size" => json!(0),
        "early_stopping" | "do_sample" | "renormalize_logits" | "remove_invalid_values" | "token_healing" => {
            json!(false)
        }
        "num_beams" | "num_beam_groups" | "num_return_sequences" => json!(1),
        "temperature" | "repetition_penalty" | "encoder_repetition_penalty" | "length_penalty" => json!(1.0),
        "diversity_penalty" => json!(0.0),
        _ => Value::Null,
    };
    match (default.as_f64(), value.as_f64()) {
        (Some(default), Some(value)) => default == value,
        // Guidance of 1 changes nothing.
        (None, Some(value)) if key == "guidance_scale" => value == 1.0,
        _ => default == *value,
    }
}

/// Whether a model's settings were written since the library fills up from them again (`_prepare_generation_config`).
fn since_4_50(model: &Map<String, Value>) -> bool {
    let Some(version) = model.get("transformers_version").and_then(Value::as_str) else { return true };
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (4, 50)
}

/// The settings of a task in `config.json`. Of tasks whose names begin so, the first in the file.
fn special<'a>(
    files: &dyn ModelFiles,
    config: &'a Map<String, Value>,
    task: &str,
) -> Result<Option<&'a Map<String, Value>>, PipelineError> {
    let Some(tasks) = config.get("task_specific_params").and_then(Value::as_object) else { return Ok(None) };
    let of = |name: &str| tasks.get(name).and_then(Value::as_object);
    if task != "translation" {
        return Ok(of(task));
    }
    let text = read(files, CONFIG_FILE)?.unwrap_or_default();
    let names: Names = parse(CONFIG_FILE, &text)?;
    Ok(names.task_specific_params.0.iter().find(|name| name.starts_with(task)).and_then(|name| of(name)))
}

#[derive(Deserialize)]
struct Names {
    task_specific_params: Keys,
}

/// The keys of an object in the order of the file.
struct Keys(Vec<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Keys;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut keys = Vec::new();
                while let Some((key, IgnoredAny)) = map.next_entry()? {
                    keys.push(key);
                }
                Ok(Keys(keys))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

fn object(files: &dyn ModelFiles, file: &str) -> Result<Option<Map<String, Value>>, PipelineError> {
    read(files, file)?.map(|text| parse(file, &text)).transpose()
}

fn read(files: &dyn ModelFiles, file: &str) -> Result<Option<Vec<u8>>, PipelineError> {
    let unread = |source| config_error(ConfigError::Read { file: file.to_owned(), source });
    read_small(files, file, FILE_BYTES_MAX).map_err(unread)
}

fn parse<'a, T: Deserialize<'a>>(file: &str, text: &'a [u8]) -> Result<T, PipelineError> {
    let wrong = |error: serde_json::Error| ConfigError::Syntax { file: file.to_owned(), reason: error.to_string() };
    serde_json::from_slice(text).map_err(|error| config_error(wrong(error)))
}

fn config_error(error: ConfigError) -> PipelineError {
    PipelineError::Model(ModelError::Config(error))
}
