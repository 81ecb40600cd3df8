//! The tokenizer of CLIP from the two files that models of before `tokenizer.json` have, as every Stable Diffusion
//! (`CLIPConverter` of `transformers/convert_slow_tokenizer.py`).

use accel_backends::files::{ModelFiles, read_small};
use serde_json::{Map, Value, json};

use super::special::Special;
use crate::error::PipelineError;

const VOCABULARY_FILE: &str = "vocab.json";
const MERGES_FILE: &str = "merges.txt";
const FILE_BYTES_MAX: u64 = 16 << 20;
/// What is a word: ends of English words, letters, single digits, and what is neither.
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// The `tokenizer.json` that the files stand for; none where they are not there.
///
/// # Errors
///
/// When a file is damaged, or the vocabulary lacks a special token.
pub fn tokenizer_json(files: &dyn ModelFiles, special: &Special) -> Result<Option<Vec<u8>>, PipelineError> {
    let read =
        |file: &str| read_small(files, file, FILE_BYTES_MAX).map_err(|error| PipelineError::tokenizer(file, error));
    let (Some(vocabulary), Some(merges)) = (read(VOCABULARY_FILE)?, read(MERGES_FILE)?) else { return Ok(None) };
    let damaged = |error| PipelineError::tokenizer(VOCABULARY_FILE, error);
    let vocabulary: Map<String, Value> = serde_json::from_slice(&vocabulary).map_err(damaged)?;
    let merges = String::from_utf8(merges).map_err(|error| PipelineError::tokenizer(MERGES_FILE, error))?;
    // The first line says the version.
    let merges: Vec<&str> = merges.lines().skip(1).filter(|line| !line.is_empty()).collect();
    let named = |token: &Option<String>, default: &str| {
        let token = token.clone().unwrap_or_else(|| default.to_owned());
        let id = vocabulary.get(&token).and_then(Value::as_u64);
        let missing = || PipelineError::tokenizer(VOCABULARY_FILE, format!("expected the token {token:?}, found none"));
        id.ok_or_else(missing).map(|id| (token.clone(), id))
    };
    let first = named(&special.bos_text, "<|startoftext|>")?;
    let last = named(&special.eos_text, "<|endoftext|>")?;
    let unknown = named(&special.unknown, "<|endoftext|>")?;
    let padding = named(&special.padding, "<|endoftext|>")?;
    let mut all = vec![first.clone(), last.clone(), unknown.clone(), padding];
    all.sort_by_key(|(_, id)| *id);
    all.dedup();
    let added = |(token, id): &(String, u64)| {
        json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
    };
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": all.iter().map(added).collect::<Vec<_>>(),
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "NFC" },
            { "type": "Replace", "pattern": { "Regex": r"\s+" }, "content": " " },
            { "type": "Lowercase" },
        ] },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": WORDS }, "behavior": "Removed", "invert": true },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        ] },
        "post_processor": { "type": "RobertaProcessing", "sep": last, "cls": first, "trim_offsets": false,
                            "add_prefix_space": false },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "dropout": null, "unk_token": unknown.0, "continuing_subword_prefix": "",
                   "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false,
                   "vocab": vocabulary, "merges": merges },
    });
    Ok(Some(tokenizer.to_string().into_bytes()))
}
