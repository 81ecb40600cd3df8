//! Tokenizers of models that have no `tokenizer.json`: from the vocabularies of before, each of which becomes the
//! `tokenizer.json` that transformers makes of it (`transformers/convert_slow_tokenizer.py`).
//!
//! How texts are cut does not stand in a vocabulary; the class of the tokenizer says it, or the type of the model where no
//! class is named. A class that is not known is an error that names it.

mod byte_level;
mod clip;
mod marian;
mod pieces;
mod sentence_piece;
mod word_piece;
mod words;

use accel_backends::files::{ModelFiles, read_small};
use serde_json::{Value, json};

use super::special::{self, Special};
use crate::error::PipelineError;
pub use pieces::merges;
use sentence_piece::Flavour;
use words::Words;

const FILE_BYTES_MAX: u64 = 64 << 20;

/// How a class of tokenizers works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    WordPiece,
    Clip,
    Gpt2,
    Marian,
    Qwen2,
    Roberta,
    Whisper,
    SentencePiece(Flavour),
}

/// Classes, without `Tokenizer` and `Fast` behind them, and the types of models that have them.
const SCHEMES: &[(Scheme, &[&str], &[&str])] = &[
    (
        Scheme::WordPiece,
        &["Bert", "ConvBert", "DistilBert", "Electra", "LayoutLM", "Lxmert", "MobileBert", "SqueezeBert"],
        &["bert", "blip", "convbert", "distilbert", "electra", "layoutlm", "lxmert", "mobilebert", "squeezebert"],
    ),
    (Scheme::Clip, &["CLIP"], &["clip", "clip_text_model"]),
    (Scheme::Gpt2, &["GPT2", "CodeGen"], &["codegen", "gpt2", "gpt_neo", "gptj"]),
    (Scheme::Marian, &["Marian"], &["marian"]),
    (Scheme::Qwen2, &["Qwen2"], &["qwen2", "qwen2_moe", "qwen3", "qwen3_moe"]),
    (
        Scheme::Roberta,
        &["Bart", "LED", "Longformer", "Mvp", "Roberta"],
        &["bart", "led", "longformer", "mvp", "roberta"],
    ),
    (Scheme::Whisper, &["Whisper"], &["whisper"]),
    (Scheme::SentencePiece(Flavour::Albert), &["Albert"], &["albert"]),
    (Scheme::SentencePiece(Flavour::Camembert), &["Camembert"], &["camembert"]),
    (Scheme::SentencePiece(Flavour::DebertaV2), &["DebertaV2"], &["deberta-v2"]),
    (Scheme::SentencePiece(Flavour::Gemma), &["Gemma"], &["gemma", "gemma2", "gemma3_text"]),
    (Scheme::SentencePiece(Flavour::Llama), &["CodeLlama", "Llama"], &["llama", "mistral", "mixtral"]),
    (Scheme::SentencePiece(Flavour::T5), &["T5"], &["longt5", "mt5", "switch_transformers", "t5"]),
    (Scheme::SentencePiece(Flavour::XlmRoberta), &["XLMRoberta"], &["xlm-roberta"]),
];

/// The `tokenizer.json` that a model's vocabulary stands for, which also settles the special tokens that no file names;
/// none where nothing says how the vocabulary is used.
///
/// # Errors
///
/// When the class is not known, a file is missing or damaged, or the vocabulary lacks a special token.
pub fn tokenizer_json(files: &dyn ModelFiles, special: &mut Special) -> Result<Option<Vec<u8>>, PipelineError> {
    let Some(scheme) = scheme(files, special)? else { return Ok(None) };
    let tokenizer = match scheme {
        Scheme::WordPiece => word_piece::tokenizer(files, special)?,
        Scheme::Clip => clip::tokenizer(files, special)?,
        Scheme::Gpt2 => byte_level::gpt2(files, special)?,
        Scheme::Marian => marian::tokenizer(files, special)?,
        Scheme::Qwen2 => byte_level::qwen2(files, special)?,
        Scheme::Roberta => byte_level::roberta(files, special)?,
        Scheme::Whisper => byte_level::whisper(files, special)?,
        Scheme::SentencePiece(flavour) => sentence_piece::tokenizer(files, special, flavour)?,
    };
    Ok(Some(tokenizer.to_string().into_bytes()))
}

fn scheme(files: &dyn ModelFiles, special: &Special) -> Result<Option<Scheme>, PipelineError> {
    let config = special::json(files, "config.json")?.unwrap_or_default();
    let class = special.kind.as_deref().or_else(|| config["tokenizer_class"].as_str());
    let Some(class) = class else {
        let model_type = config["model_type"].as_str().unwrap_or_default();
        return Ok(SCHEMES.iter().find(|(_, _, types)| types.contains(&model_type)).map(|(scheme, ..)| *scheme));
    };
    let bare = class.strip_suffix("Fast").unwrap_or(class);
    let bare = bare.strip_suffix("Tokenizer").unwrap_or(bare);
    match SCHEMES.iter().find(|(_, classes, _)| classes.contains(&bare)) {
        Some((scheme, ..)) => Ok(Some(*scheme)),
        None => {
            let known = SCHEMES.iter().flat_map(|(_, classes, _)| *classes).map(|class| format!("{class}Tokenizer"));
            let supported = format!("tokenizer.json, or one of {}", known.collect::<Vec<_>>().join(", "));
            Err(PipelineError::Unsupported { what: "tokenizer_class", found: class.to_owned(), supported })
        }
    }
}

/// A file that the class needs.
fn needed(files: &dyn ModelFiles, file: &str) -> Result<Vec<u8>, PipelineError> {
    let text = read_small(files, file, FILE_BYTES_MAX).map_err(|error| PipelineError::tokenizer(file, error))?;
    text.ok_or_else(|| PipelineError::tokenizer(file, "expected the file, or tokenizer.json, found neither"))
}

fn needed_text(files: &dyn ModelFiles, file: &str) -> Result<String, PipelineError> {
    String::from_utf8(needed(files, file)?).map_err(|error| PipelineError::tokenizer(file, error))
}

/// What is put around texts, as in `[CLS]:0 $A:0 [SEP]:0`: tokens and the two texts, each with its type.
fn template(single: &str, pair: &str, words: &Words<'_>) -> Result<Value, PipelineError> {
    let mut tokens = serde_json::Map::new();
    let mut side = |text: &str| {
        let part = |part: &str| {
            let (name, kind) = part.rsplit_once(':').unwrap_or((part, "0"));
            let kind = u64::from(kind == "1");
            Ok(match name.strip_prefix('$') {
                Some(text) => json!({ "Sequence": { "id": text, "type_id": kind } }),
                None => {
                    let id = words.id(name)?;
                    tokens.insert(name.to_owned(), json!({ "id": name, "ids": [id], "tokens": [name] }));
                    json!({ "SpecialToken": { "id": name, "type_id": kind } })
                }
            })
        };
        text.split_whitespace().map(part).collect::<Result<Vec<_>, PipelineError>>()
    };
    let (single, pair) = (side(single)?, side(pair)?);
    Ok(json!({ "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens }))
}
