//! The tokenizer of CLIP, as every Stable Diffusion has it (`CLIPConverter`).

use accel_backends::files::ModelFiles;
use serde_json::{Value, json};

use super::super::special::Special;
use super::byte_level::{VOCABULARY_FILE, Vocabulary};
use crate::error::PipelineError;

/// What is a word: ends of English words, letters, single digits, and what is neither.
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

pub(super) fn tokenizer(files: &dyn ModelFiles, special: &Special) -> Result<Value, PipelineError> {
    let Vocabulary { ids: vocabulary, merges } = Vocabulary::read(files)?;
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
    Ok(tokenizer)
}
