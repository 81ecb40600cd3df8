//! What a model's files say about beginnings, ends and chat templates, beside the vocabulary.

use accel_backends::files::{ModelFiles, read_small};
use accel_backends::weights::gguf::{Metadata, Value as GgufValue};
use serde_json::Value;

use crate::error::PipelineError;

const FILE_BYTES_MAX: u64 = 16 << 20;

/// Special tokens and the chat template.
#[derive(Debug, Default)]
pub struct Special {
    /// The beginning of a text.
    pub bos: Option<u32>,
    /// Its text, where the file gives it.
    pub bos_text: Option<String>,
    /// Whether it is put before plain texts; `tokenizer.json` says so itself.
    pub add_bos: bool,
    /// Tokens that end an answer.
    pub ends: Vec<u32>,
    /// The text of the end, where the file gives it.
    pub eos_text: Option<String>,
    /// The chat template.
    pub template: Option<String>,
    /// What stands for something to be filled in.
    pub mask: Option<String>,
    /// What fills texts up.
    pub padding: Option<String>,
    /// What stands for words outside the vocabulary.
    pub unknown: Option<String>,
    /// What stands for a whole text.
    pub class: Option<String>,
    /// The most tokens that the model was made for.
    pub length_max: Option<usize>,
    /// Whether spaces before punctuation are taken away.
    pub tidy: bool,
    /// The class of the tokenizer.
    pub kind: Option<String>,
    /// What stands between two texts.
    pub separator: Option<String>,
    /// Tokens from this number on cut texts and count as unknown.
    pub beyond: Option<u32>,
    /// `tokenizer_config.json` as it stands.
    pub settings: Value,
    /// `special_tokens_map.json` as it stands, where it counts.
    pub map: Value,
}

/// From the metadata of a GGUF file.
///
/// # Errors
///
/// When a value is of the wrong kind.
pub fn from_gguf(metadata: &Metadata) -> Result<Special, PipelineError> {
    let wrong = |key: &str, expected: &str, found: &GgufValue| {
        PipelineError::tokenizer(format!("GGUF metadata: {key}"), format!("expected {expected}, found {found:?}"))
    };
    let token = |name: &str| {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let id = |value: &GgufValue| match value {
            GgufValue::Unsigned(id) => u32::try_from(*id).map_err(|_| wrong(&key, "a token", value)),
            _ => Err(wrong(&key, "a token", value)),
        };
        metadata.get(&key).map(id).transpose()
    };
    let bos = token("bos")?;
    let mut ends = Vec::new();
    for name in ["eos", "eot", "eom"] {
        ends.extend(token(name)?);
    }
    let add_bos = match metadata.get("tokenizer.ggml.add_bos_token") {
        // llama.cpp's default for vocabularies of SentencePiece.
        None => metadata.get("tokenizer.ggml.model") == Some(&GgufValue::Text("llama".into())),
        Some(GgufValue::Bool(truth)) => *truth,
        Some(other) => return Err(wrong("tokenizer.ggml.add_bos_token", "true or false", other)),
    };
    let template = match metadata.get("tokenizer.chat_template") {
        None => None,
        Some(GgufValue::Text(text)) => Some(text.clone()),
        Some(other) => return Err(wrong("tokenizer.chat_template", "a text", other)),
    };
    Ok(Special { bos, add_bos, ends, template, ..Special::default() })
}

/// From `generation_config.json`, `config.json`, `tokenizer_config.json`, `chat_template.json` and `chat_template.jinja`.
///
/// # Errors
///
/// When a file cannot be read.
pub fn from_files(files: &dyn ModelFiles) -> Result<Special, PipelineError> {
    let mut special = Special::default();
    for file in ["generation_config.json", "config.json"] {
        let Some(config) = json(files, file)? else { continue };
        if special.ends.is_empty() {
            special.ends = ids(&config["eos_token_id"]);
        }
    }
    let config = json(files, "tokenizer_config.json")?.unwrap_or_default();
    // Files of before this key have their special tokens elsewhere, and those count first (`tokenization_utils_base.py`).
    let map = if config["added_tokens_decoder"].is_null() { json(files, "special_tokens_map.json")? } else { None };
    let map = map.unwrap_or_default();
    let token = |key: &str| token_text(&map[key]).or_else(|| token_text(&config[key]));
    special.bos_text = token("bos_token");
    special.eos_text = token("eos_token");
    special.template = template(&config["chat_template"]);
    special.mask = token("mask_token");
    special.padding = token("pad_token");
    special.unknown = token("unk_token");
    special.class = token("cls_token");
    special.separator = token("sep_token");
    // Where nothing is known, the files have a number far beyond any text.
    let length = config["model_max_length"].as_f64().filter(|length| (1.0..1e9).contains(length));
    special.length_max = length.map(|length| length as usize);
    special.tidy = config["clean_up_tokenization_spaces"] == true;
    special.kind = config["tokenizer_class"].as_str().map(str::to_owned);
    special.settings = config;
    special.map = map;
    // Processors of pictures and texts have had it in a file of its own.
    if let Some(config) = json(files, "chat_template.json")? {
        special.template = template(&config["chat_template"]).or(special.template);
    }
    let file = "chat_template.jinja";
    if let Some(text) = bytes(files, file)? {
        special.template = Some(String::from_utf8(text).map_err(|error| PipelineError::tokenizer(file, error))?);
    }
    Ok(special)
}

fn bytes(files: &dyn ModelFiles, file: &str) -> Result<Option<Vec<u8>>, PipelineError> {
    read_small(files, file, FILE_BYTES_MAX).map_err(|error| PipelineError::tokenizer(file, error))
}

/// A file of JSON, if the model has it.
///
/// # Errors
///
/// When it is damaged, or cannot be read.
pub fn json(files: &dyn ModelFiles, file: &str) -> Result<Option<Value>, PipelineError> {
    let parse = |text: Vec<u8>| serde_json::from_slice(&text).map_err(|error| PipelineError::tokenizer(file, error));
    bytes(files, file)?.map(parse).transpose()
}

/// One token, or a list of them.
fn ids(value: &Value) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(values) => values.iter().filter_map(id).collect(),
        _ => id(value).into_iter().collect(),
    }
}

/// A text, or an added token that has one.
pub fn token_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

/// A template, or the default of a list of named ones.
fn template(value: &Value) -> Option<String> {
    let named = || value.as_array()?.iter().find(|entry| entry["name"] == "default")?["template"].as_str();
    value.as_str().or_else(named).map(str::to_owned)
}
