//! The tokenizer of BERT from `vocab.txt` (`BertConverter`).

use std::collections::HashMap;

use accel_backends::files::ModelFiles;
use serde_json::{Value, json};

use super::super::special::Special;
use super::words::{Defaults, Words};
use super::{needed_text, template};
use crate::error::PipelineError;

const FILE: &str = "vocab.txt";
/// Longer words are unknown.
const WORD_CHARACTERS_MAX: usize = 100;
const DEFAULTS: Defaults = Defaults {
    bos: None,
    eos: None,
    unknown: Some("[UNK]"),
    separator: Some("[SEP]"),
    padding: Some("[PAD]"),
    class: Some("[CLS]"),
    mask: Some("[MASK]"),
    mask_takes_space: false,
};

pub(super) fn tokenizer(files: &dyn ModelFiles, special: &mut Special) -> Result<Value, PipelineError> {
    special.settle(&DEFAULTS);
    let text = needed_text(files, FILE)?;
    // A token that stands there twice has the later number.
    let tokens = text.strip_suffix('\n').unwrap_or(&text).split('\n').map(|line| line.trim_end_matches('\r'));
    let ids: HashMap<&str, u64> = tokens.zip(0..).collect();
    let words = Words::new(files, (FILE, ids.clone()), &[], special, &DEFAULTS)?;
    let setting = |name: &str, default: bool| special.settings[name].as_bool().unwrap_or(default);
    let word = |word: &Option<String>| word.clone().unwrap_or_default();
    let (class, separator) = (word(&special.class), word(&special.separator));
    let single = format!("{class}:0 $A:0 {separator}:0");
    Ok(json!({
        "version": "1.0",
        "added_tokens": words.added(),
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "lowercase": setting("do_lower_case", true),
            "handle_chinese_chars": setting("tokenize_chinese_chars", true),
            // Where nothing is said, accents go with capitals.
            "strip_accents": special.settings["strip_accents"].as_bool(),
        },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": template(&single, &format!("{single} $B:1 {separator}:1"), &words)?,
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": {
            "type": "WordPiece", "unk_token": special.unknown, "continuing_subword_prefix": "##",
            "max_input_chars_per_word": WORD_CHARACTERS_MAX, "vocab": ids,
        },
    }))
}
