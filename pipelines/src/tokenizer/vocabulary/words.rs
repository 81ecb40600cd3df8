//! Special tokens of a class: what its files name, what it has where they name nothing, and which of them are found in
//! texts as they stand (`tokenization_utils_base.py` and `tokenization_utils_fast.py` of transformers).

use std::collections::{BTreeMap, HashMap};

use accel_backends::files::ModelFiles;
use serde_json::{Value, json};

use super::super::special::{self, Special};
use crate::error::PipelineError;

/// The special tokens that a class has where the files name none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Defaults {
    pub bos: Option<&'static str>,
    pub eos: Option<&'static str>,
    pub unknown: Option<&'static str>,
    pub separator: Option<&'static str>,
    pub padding: Option<&'static str>,
    pub class: Option<&'static str>,
    pub mask: Option<&'static str>,
    /// Whether the mask takes the space before it.
    pub mask_takes_space: bool,
}

impl Special {
    /// Settles what no file names.
    pub(super) fn settle(&mut self, defaults: &Defaults) {
        for (word, default) in [
            (&mut self.bos_text, defaults.bos),
            (&mut self.eos_text, defaults.eos),
            (&mut self.unknown, defaults.unknown),
            (&mut self.separator, defaults.separator),
            (&mut self.padding, defaults.padding),
            (&mut self.class, defaults.class),
            (&mut self.mask, defaults.mask),
        ] {
            *word = word.take().or_else(|| default.map(str::to_owned));
        }
    }
}

/// A vocabulary with its special tokens.
pub(super) struct Words<'a> {
    /// Where the vocabulary stands.
    file: &'a str,
    ids: HashMap<&'a str, u64>,
    /// Tokens beside the vocabulary, and those of it that are found as they stand.
    added: BTreeMap<u64, Value>,
}

impl<'a> Words<'a> {
    /// `ids` is the vocabulary of `size` tokens; `pieces` are those that it says itself are found as they stand, each with
    /// whether it is special.
    ///
    /// # Errors
    ///
    /// When a file is damaged, or leaves numbers out.
    pub(super) fn new(
        files: &dyn ModelFiles,
        (file, ids): (&'a str, HashMap<&'a str, u64>),
        pieces: &[(&str, bool)],
        special: &Special,
        defaults: &Defaults,
    ) -> Result<Self, PipelineError> {
        let size = ids.values().max().map_or(0, |last| last + 1);
        let mut words = Self { file, ids, added: BTreeMap::new() };
        let named = named(special);
        let is_special = |text: &str| named.iter().any(|(known, _)| known == text);
        if let Some(known) = special.settings["added_tokens_decoder"].as_object() {
            for (id, token) in known {
                let id = id.parse().map_err(|error| PipelineError::tokenizer("tokenizer_config.json", error))?;
                let text = token["content"].as_str().unwrap_or_default();
                words.add(id, text, token, token["special"] == true);
            }
        } else if let Some(known) = special::json(files, "added_tokens.json")?.as_ref().and_then(Value::as_object) {
            for (text, id) in known {
                let wrong = || PipelineError::tokenizer("added_tokens.json", format!("{text:?} has no number"));
                let is_special = is_special(text);
                let flags = json!({ "normalized": !is_special });
                words.add(id.as_u64().ok_or_else(wrong)?, text, &flags, is_special);
            }
        }
        let mask = special.mask.as_deref().filter(|_| defaults.mask_takes_space);
        let pieces = pieces.iter().map(|&(text, is_special)| (text.to_owned(), Value::Null, is_special));
        let named = named.into_iter().map(|(text, flags)| (text, flags, true));
        for (text, mut flags, is_special) in pieces.chain(named) {
            if words.is_added(&text) {
                continue;
            }
            if mask == Some(text.as_str()) && flags.is_null() {
                flags = json!({ "lstrip": true });
            }
            let next = words.added.keys().next_back().map_or(size, |last| size.max(last + 1));
            let id = words.ids.get(text.as_str()).copied().unwrap_or(next);
            words.add(id, &text, &flags, is_special);
        }
        // A library that counts by itself would give them other numbers.
        for (number, id) in words.added.keys().filter(|id| **id >= size).enumerate() {
            if *id != size + number as u64 {
                let found = format!("expected an added token of number {}, found {id}", size + number as u64);
                return Err(PipelineError::tokenizer("added tokens", found));
            }
        }
        Ok(words)
    }

    fn is_added(&self, text: &str) -> bool {
        self.added.values().any(|token| token["content"] == text)
    }

    fn add(&mut self, id: u64, text: &str, flags: &Value, special: bool) {
        let flag = |name: &str| flags[name] == true;
        let token = json!({
            "id": id, "content": text, "special": special, "single_word": flag("single_word"),
            "lstrip": flag("lstrip"), "rstrip": flag("rstrip"), "normalized": flag("normalized"),
        });
        self.added.insert(id, token);
    }

    /// The number of a token.
    ///
    /// # Errors
    ///
    /// When the vocabulary lacks it.
    pub(super) fn id(&self, text: &str) -> Result<u64, PipelineError> {
        let added = || self.added.iter().find(|(_, token)| token["content"] == text).map(|(id, _)| *id);
        let missing = || PipelineError::tokenizer(self.file, format!("expected the token {text:?}, found none"));
        self.ids.get(text).copied().or_else(added).ok_or_else(missing)
    }

    /// What `tokenizer.json` calls `added_tokens`.
    pub(super) fn added(&self) -> Value {
        self.added.values().cloned().collect()
    }
}

/// All special tokens, each with what the files say of how it is found.
fn named(special: &Special) -> Vec<(String, Value)> {
    let flags = |key: &str| {
        let told = [&special.map[key], &special.settings[key]].into_iter().find(|told| !told.is_null());
        told.filter(|told| told.is_object()).cloned().unwrap_or_default()
    };
    let named = [
        ("bos_token", &special.bos_text),
        ("eos_token", &special.eos_text),
        ("unk_token", &special.unknown),
        ("sep_token", &special.separator),
        ("pad_token", &special.padding),
        ("cls_token", &special.class),
        ("mask_token", &special.mask),
    ];
    let mut words: Vec<(String, Value)> =
        named.into_iter().filter_map(|(key, text)| Some((text.clone()?, flags(key)))).collect();
    let key = "additional_special_tokens";
    let more = [&special.map[key], &special.settings[key]].into_iter().find_map(Value::as_array);
    words.extend(more.into_iter().flatten().filter_map(|token| {
        let text = special::token_text(token)?;
        Some((text, if token.is_object() { token.clone() } else { Value::Null }))
    }));
    words
}
