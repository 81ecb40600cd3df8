//! Writes the vocabulary of a GGUF file as a `tokenizer.json`.
//!
//! Byte-level BPE (`gpt2`) differs between models by how texts are cut before merging; the file names the cut, and the
//! expressions are those of llama.cpp (`src/llama-vocab.cpp`). SentencePiece (`llama`) becomes BPE whose merges follow
//! from the scores, as Hugging Face converts it (`convert_slow_tokenizer.py`).

use std::collections::HashMap;

use accel_backends::weights::gguf::{Metadata, Value as GgufValue};
use serde_json::{Value, json};

use super::vocabulary::merges;
use crate::error::PipelineError;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The cut of Qwen 2, by its files of either format.
pub(super) const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How a text is cut before merging: by the name in the file, expressions one after the other, and whether whole words
/// that are tokens skip the merges.
const CUTS: &[(&[&str], &[&str], bool)] = &[
    (&["gpt-2", "gpt2", "phi-2", "jina-es", "jina-de", "mpt", "olmo"], &[GPT2], false),
    (&["smollm", "starcoder", "refact", "command-r", "codeshell"], &[r"\p{N}", GPT2], false),
    (&["llama-bpe", "llama3", "llama-v3", "dbrx", "smaug-bpe"], &[LLAMA3], true),
    (&["qwen2", "stablelm2", "deepseek-r1-qwen"], &[QWEN2], false),
    (&["default"], &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"], false),
];

/// The bytes of a `tokenizer.json`.
///
/// # Errors
///
/// When the vocabulary is missing, damaged, or of a kind that is not known.
pub fn tokenizer_json(metadata: &Metadata) -> Result<Vec<u8>, PipelineError> {
    let tokens = texts(metadata, "tokenizer.ggml.tokens")?;
    let kind = text(metadata, "tokenizer.ggml.model")?;
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let mut tokenizer = match kind {
        "gpt2" => byte_level(metadata, &ids)?,
        "llama" => sentence_piece(metadata, tokens, &ids)?,
        _ => {
            let (what, found) = ("tokenizer.ggml.model", kind.to_owned());
            return Err(PipelineError::Unsupported { what, found, supported: "gpt2, llama".into() });
        }
    };
    tokenizer["version"] = json!("1.0");
    tokenizer["added_tokens"] = added_tokens(metadata, tokens)?;
    serde_json::to_vec(&tokenizer).map_err(|error| PipelineError::tokenizer("GGUF metadata", error))
}

fn byte_level(metadata: &Metadata, ids: &HashMap<&str, usize>) -> Result<Value, PipelineError> {
    let key = "tokenizer.ggml.pre";
    let name = if metadata.get(key).is_some() { text(metadata, key)? } else { "default" };
    let Some((_, expressions, whole)) = CUTS.iter().find(|(names, ..)| names.contains(&name)) else {
        let supported = CUTS.iter().flat_map(|(names, ..)| *names).copied().collect::<Vec<_>>().join(", ");
        return Err(PipelineError::Unsupported { what: "tokenizer.ggml.pre", found: name.to_owned(), supported });
    };
    let split =
        |regex: &&str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let mut cuts: Vec<Value> = expressions.iter().map(split).collect();
    cuts.push(json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}));
    Ok(json!({
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": cuts},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": ids, "merges": texts(metadata, "tokenizer.ggml.merges")?, "ignore_merges": whole},
    }))
}

fn sentence_piece(metadata: &Metadata, tokens: &[String], ids: &HashMap<&str, usize>) -> Result<Value, PipelineError> {
    let key = "tokenizer.ggml.scores";
    let Some(GgufValue::Floats(scores)) = metadata.get(key) else {
        return Err(wrong(key, "a score for each token", metadata.get(key)));
    };
    if scores.len() != tokens.len() {
        return Err(PipelineError::tokenizer(key, format!("expected {} scores, found {}", tokens.len(), scores.len())));
    }
    let pieces: Vec<(&str, f32)> = tokens.iter().map(String::as_str).zip(scores.iter().copied()).collect();
    let merges = merges(&pieces, ids);
    let prefix = !matches!(metadata.get("tokenizer.ggml.add_space_prefix"), Some(GgufValue::Bool(false)));
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let prepend = json!({"type": "Prepend", "prepend": "▁"});
    let normalizers = if prefix { vec![prepend, replace] } else { vec![replace] };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let unknown = match metadata.get("tokenizer.ggml.unknown_token_id") {
        Some(&GgufValue::Unsigned(id)) => usize::try_from(id).ok().and_then(|id| tokens.get(id)),
        _ => tokens.first(),
    };
    Ok(json!({
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "vocab": ids, "merges": merges, "byte_fallback": true, "fuse_unk": true, "unk_token": unknown,
        },
    }))
}

/// Control tokens (3) are special; tokens added by people (4) are found in texts but are plain.
fn added_tokens(metadata: &Metadata, tokens: &[String]) -> Result<Value, PipelineError> {
    let key = "tokenizer.ggml.token_type";
    let kinds = match metadata.get(key) {
        None => return Ok(json!([])),
        Some(GgufValue::Integers(kinds)) if kinds.len() == tokens.len() => kinds,
        other => return Err(wrong(key, "a kind for each token", other)),
    };
    let added =
        tokens.iter().zip(kinds).enumerate().filter(|(_, (token, kind))| matches!(kind, 3 | 4) && !token.is_empty());
    let added = added.map(|(id, (token, &kind))| {
        json!({
            "id": id, "content": token, "special": kind == 3,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        })
    });
    Ok(added.collect())
}

fn texts<'a>(metadata: &'a Metadata, key: &str) -> Result<&'a [String], PipelineError> {
    match metadata.get(key) {
        Some(GgufValue::Texts(texts)) => Ok(texts),
        other => Err(wrong(key, "a list of texts", other)),
    }
}

fn text<'a>(metadata: &'a Metadata, key: &str) -> Result<&'a str, PipelineError> {
    match metadata.get(key) {
        Some(GgufValue::Text(text)) => Ok(text),
        other => Err(wrong(key, "a text", other)),
    }
}

fn wrong(key: &str, expected: &str, found: Option<&GgufValue>) -> PipelineError {
    let found = match found {
        None => "nothing".to_owned(),
        Some(value) => format!("{value:?}").chars().take(60).collect(),
    };
    PipelineError::tokenizer(format!("GGUF metadata: {key}"), format!("expected {expected}, found {found}"))
}
