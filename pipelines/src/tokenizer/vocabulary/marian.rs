//! The tokenizer of Marian, of which transformers has no fast one (`tokenization_marian.py`): a model of SentencePiece cuts
//! texts, and `vocab.json` has the numbers of its pieces.

use std::collections::HashMap;

use accel_backends::files::ModelFiles;
use serde_json::{Value, json};

use super::super::special::Special;
use super::pieces::{ADDED, Model, NORMAL};
use super::sentence_piece::{characters, metaspace};
use super::words::{Defaults, Words};
use super::{needed, needed_text, template};
use crate::error::PipelineError;

const MODEL_FILE: &str = "source.spm";
const VOCABULARY_FILE: &str = "vocab.json";
const DEFAULTS: Defaults = Defaults {
    bos: None,
    eos: Some("</s>"),
    unknown: Some("<unk>"),
    separator: None,
    padding: Some("<pad>"),
    class: None,
    mask: None,
    mask_takes_space: false,
};
/// The score of characters that a text is cut into only where the model knows no piece.
const LAST_RESORT: f64 = -1e6;
/// Put before longer tokens of the other language, into which no text is ever cut, and taken away from what is written.
const FOREIGN: &str = "\0";
/// Spaces before an answer, which words that are left away may leave.
const SPACES: usize = 16;

pub(super) fn tokenizer(files: &dyn ModelFiles, special: &mut Special) -> Result<Value, PipelineError> {
    special.settle(&DEFAULTS);
    if special.settings["separate_vocabs"] == true {
        let (what, found) = ("separate_vocabs", "true".to_owned());
        return Err(PipelineError::Unsupported { what, found, supported: "one vocabulary for both languages".into() });
    }
    let model = Model::read(MODEL_FILE, &needed(files, MODEL_FILE)?)?;
    let wrong = |error: &dyn std::fmt::Display| PipelineError::tokenizer(VOCABULARY_FILE, error);
    let ids: HashMap<String, u64> =
        serde_json::from_str(&needed_text(files, VOCABULARY_FILE)?).map_err(|error| wrong(&error))?;
    let scores: HashMap<&str, f32> = model
        .pieces
        .iter()
        .filter(|piece| matches!(piece.kind.unwrap_or(NORMAL), NORMAL | ADDED))
        .filter_map(|piece| Some((piece.text.as_deref()?, piece.score.unwrap_or_default())))
        .collect();
    let named = [&special.eos_text, &special.unknown, &special.padding].map(|word| word.clone().unwrap_or_default());
    let is_language = |token: &str| token.starts_with(">>") && token.ends_with("<<");
    let mut pieces: Vec<Option<(String, f64)>> = vec![None; ids.len()];
    for (token, &id) in &ids {
        let stays = token.chars().count() == 1 || is_language(token) || named.contains(token);
        let piece = match scores.get(token.as_str()) {
            Some(&score) => (token.clone(), score.into()),
            None if stays => (token.clone(), LAST_RESORT),
            None => (format!("{FOREIGN}{token}"), LAST_RESORT),
        };
        let place = usize::try_from(id).ok().and_then(|id| pieces.get_mut(id)).filter(|place| place.is_none());
        *place.ok_or_else(|| wrong(&format!("expected numbers without gaps, found {id} for {token:?}")))? = Some(piece);
    }
    let mut pieces: Vec<(String, f64)> = pieces.into_iter().flatten().collect();
    // A piece without a number is unknown, but texts are cut at it all the same.
    special.beyond = u32::try_from(pieces.len()).ok();
    let mut without: Vec<_> = scores.iter().filter(|(text, _)| !ids.contains_key(**text)).collect();
    without.sort_by_key(|(text, _)| **text);
    pieces.extend(without.into_iter().map(|(&text, &score)| (text.to_owned(), f64::from(score))));
    let known: HashMap<&str, u64> = ids.iter().map(|(token, &id)| (token.as_str(), id)).collect();
    // The language to translate to stands before a text.
    let mut languages: Vec<_> = known.keys().filter(|token| is_language(token)).collect();
    languages.sort();
    let languages: Vec<(&str, bool)> = languages.into_iter().map(|&token| (token, false)).collect();
    let words = Words::new(files, (VOCABULARY_FILE, known.clone()), &languages, special, &DEFAULTS)?;
    let unknown = words.id(special.unknown.as_deref().unwrap_or_default())?;
    let end = special.eos_text.as_deref().unwrap_or_default();
    let mut steps: Vec<Value> = characters(&model).into_iter().collect();
    steps.push(json!({ "type": "Strip", "strip_left": true, "strip_right": true }));
    steps.push(json!({ "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": " " }));
    Ok(json!({
        "version": "1.0",
        "added_tokens": words.added(),
        "normalizer": { "type": "Sequence", "normalizers": steps },
        "pre_tokenizer": metaspace("always", true),
        "post_processor": template(&format!("$A {end}"), &format!("$A $B {end}"), &words)?,
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": FOREIGN }, "content": "" },
            metaspace("always", true),
            { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": SPACES, "stop": 0 },
        ] },
        "model": { "type": "Unigram", "unk_id": unknown, "vocab": pieces, "byte_fallback": false },
    }))
}
