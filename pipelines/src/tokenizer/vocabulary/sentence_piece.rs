//! Tokenizers from models of SentencePiece (`SpmConverter` and those that follow from it).

use std::collections::HashMap;

use accel_backends::files::{ModelFiles, file_bytes};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::super::special::Special;
use super::pieces::{ADDED, CONTROL, MERGES, Model, UNIGRAM, merges};
use super::words::{Defaults, Words};
use super::{needed, template};
use crate::error::PipelineError;

/// What the file is called by those who have one.
const FILES: [&str; 4] = ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model"];
/// Tokens that stand for what is to be filled in, where T5's files do not say how many there are.
const BLANKS: u64 = 100;
/// What a piece is made less likely by that should not be taken.
const NOT_TAKEN: f64 = 100.0;
const SPACE: &str = "▁";

/// How classes differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flavour {
    Albert,
    Camembert,
    DebertaV2,
    Gemma,
    Llama,
    T5,
    XlmRoberta,
}

const ROBERTA: Defaults = Defaults {
    bos: Some("<s>"),
    eos: Some("</s>"),
    unknown: Some("<unk>"),
    separator: Some("</s>"),
    padding: Some("<pad>"),
    class: Some("<s>"),
    mask: Some("<mask>"),
    mask_takes_space: true,
};
const ALBERT: Defaults = Defaults {
    bos: Some("[CLS]"),
    eos: Some("[SEP]"),
    separator: Some("[SEP]"),
    class: Some("[CLS]"),
    mask: Some("[MASK]"),
    ..ROBERTA
};
const DEBERTA: Defaults =
    Defaults { unknown: Some("[UNK]"), padding: Some("[PAD]"), mask_takes_space: false, ..ALBERT };
const LLAMA: Defaults =
    Defaults { separator: None, padding: None, class: None, mask: None, mask_takes_space: false, ..ROBERTA };
const GEMMA: Defaults = Defaults { bos: Some("<bos>"), eos: Some("<eos>"), padding: Some("<pad>"), ..LLAMA };
const T5: Defaults = Defaults { bos: None, padding: Some("<pad>"), ..LLAMA };

impl Flavour {
    fn defaults(self) -> &'static Defaults {
        match self {
            Self::Albert => &ALBERT,
            Self::Camembert | Self::XlmRoberta => &ROBERTA,
            Self::DebertaV2 => &DEBERTA,
            Self::Gemma => &GEMMA,
            Self::Llama => &LLAMA,
            Self::T5 => &T5,
        }
    }

    /// Whether what is no piece is cut into bytes.
    fn has_bytes(self) -> bool {
        matches!(self, Self::Gemma | Self::Llama)
    }
}

/// A model with what its class makes of it.
struct Converter<'a> {
    model: &'a Model,
    flavour: Flavour,
    special: &'a Special,
}

pub(super) fn tokenizer(
    files: &dyn ModelFiles,
    special: &mut Special,
    flavour: Flavour,
) -> Result<Value, PipelineError> {
    let defaults = flavour.defaults();
    special.settle(defaults);
    let file = FILES.into_iter().find(|file| file_bytes(files, file).is_some()).unwrap_or(FILES[0]);
    let model = Model::read(file, &needed(files, file)?)?;
    let special = &*special;
    let converter = Converter { model: &model, flavour, special };
    let pieces = converter.pieces();
    let ids: HashMap<&str, u64> = pieces.iter().map(|(text, _)| text.as_str()).zip(0..).collect();
    let blanks: Vec<_> = (0..converter.blanks()).map(|number| format!("<extra_id_{number}>")).collect();
    let added = converter.model.pieces.iter().filter_map(|piece| {
        let text = piece.text.as_deref()?;
        let turns = flavour == Flavour::Gemma && ["<start_of_turn>", "<end_of_turn>"].contains(&text);
        match piece.kind? {
            CONTROL => Some((text, true)),
            ADDED => Some((text, turns)),
            _ => None,
        }
    });
    let added: Vec<(&str, bool)> = added.chain(blanks.iter().map(|text| (text.as_str(), true))).collect();
    let words = Words::new(files, (file, ids), &added, special, defaults)?;
    Ok(json!({
        "version": "1.0",
        "added_tokens": words.added(),
        "normalizer": converter.normalizer(),
        "pre_tokenizer": converter.cuts(),
        "post_processor": converter.around(&words)?,
        "decoder": converter.decoder(),
        "model": converter.algorithm(&pieces)?,
    }))
}

impl Converter<'_> {
    fn setting(&self, name: &str, default: bool) -> bool {
        self.special.settings[name].as_bool().unwrap_or(default)
    }

    fn blanks(&self) -> u64 {
        match self.flavour {
            Flavour::T5 => self.special.settings["extra_ids"].as_u64().unwrap_or(BLANKS).min(1 << 16),
            _ => 0,
        }
    }

    /// The vocabulary in its order: what the model has, with what the class puts in its place.
    fn pieces(&self) -> Vec<(String, f64)> {
        let own = |from: usize| {
            let pieces = self.model.pieces.iter().skip(from);
            pieces.map(|piece| (piece.text.clone().unwrap_or_default(), f64::from(piece.score.unwrap_or_default())))
        };
        let fixed = |texts: &[&str]| texts.iter().map(|&text| (text.to_owned(), 0.0)).collect::<Vec<_>>();
        let word = |word: &Option<String>| word.clone().unwrap_or_default();
        match self.flavour {
            Flavour::DebertaV2 => own(0).collect(),
            Flavour::Albert => {
                // A number with a comma is better cut before the comma.
                let comma = |text: &str| {
                    let mut ends = text.chars().rev();
                    ends.next() == Some(',') && ends.next().is_some_and(char::is_numeric)
                };
                own(0)
                    .map(|(text, score)| if comma(&text) { (text, score - NOT_TAKEN) } else { (text, score) })
                    .collect()
            }
            Flavour::T5 => {
                let blanks = (0..self.blanks()).rev().map(|number| (format!("<extra_id_{number}>"), 0.0));
                own(0).chain(blanks).collect()
            }
            Flavour::XlmRoberta => {
                fixed(&["<s>", "<pad>", "</s>", "<unk>"]).into_iter().chain(own(3)).chain(fixed(&["<mask>"])).collect()
            }
            Flavour::Camembert => {
                let mut pieces = fixed(&["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>"]);
                pieces.push(("<unk>NOTUSED".to_owned(), -NOT_TAKEN));
                pieces.into_iter().chain(own(1)).chain(fixed(&["<mask>"])).collect()
            }
            Flavour::Llama => own(0).take(3).map(|(text, _)| (text, 0.0)).chain(own(3)).collect(),
            Flavour::Gemma => {
                let first = [word(&self.special.padding), word(&self.special.eos_text), word(&self.special.bos_text)];
                let mut pieces: Vec<_> = first.into_iter().map(|text| (text, 0.0)).chain(own(3)).collect();
                // Older models lack the tab, which is then one of their bytes.
                if !pieces.iter().any(|(text, _)| text == "\t")
                    && let Some(tab) = pieces.iter_mut().find(|(text, _)| text == "<0x09>")
                {
                    *tab = ("\t".to_owned(), 0.0);
                }
                pieces
            }
        }
    }

    fn algorithm(&self, pieces: &[(String, f64)]) -> Result<Value, PipelineError> {
        let trainer = self.model.trainer.clone().unwrap_or_default();
        match trainer.algorithm.unwrap_or(UNIGRAM) {
            UNIGRAM => {
                let unknown = match self.flavour {
                    Flavour::XlmRoberta | Flavour::Camembert | Flavour::Gemma => 3,
                    Flavour::Llama => 0,
                    _ => trainer.unknown_id.unwrap_or(0),
                };
                Ok(json!({
                    "type": "Unigram", "unk_id": unknown, "vocab": pieces, "byte_fallback": self.flavour.has_bytes(),
                }))
            }
            MERGES => {
                let texts: Vec<(&str, f32)> =
                    pieces.iter().map(|(text, score)| (text.as_str(), *score as f32)).collect();
                // Pieces are found by the model's own names, whatever the class calls them.
                let own = self.model.pieces.iter().map(|piece| piece.text.as_deref().unwrap_or_default());
                let mut known: HashMap<&str, usize> = own.zip(0..).collect();
                if self.flavour == Flavour::Gemma
                    && !known.contains_key("\t")
                    && let Some(&tab) = known.get("<0x09>")
                {
                    known.insert("\t", tab);
                }
                let ids: HashMap<&str, usize> = texts.iter().map(|(text, _)| *text).zip(0..).collect();
                let unknown = trainer.unknown.unwrap_or_else(|| "<unk>".to_owned());
                Ok(json!({
                    "type": "BPE", "vocab": ids, "merges": merges(&texts, &known), "unk_token": unknown,
                    "fuse_unk": true, "byte_fallback": self.flavour.has_bytes(),
                }))
            }
            other => Err(PipelineError::Unsupported {
                what: "model_type of SentencePiece",
                found: other.to_string(),
                supported: "1 (unigram), 2 (merges)".to_owned(),
            }),
        }
    }

    fn normalizer(&self) -> Value {
        let replace = |from: Value, to: &str| json!({ "type": "Replace", "pattern": from, "content": to });
        let text = |text: &str| json!({ "String": text });
        let spaces = || json!({ "Regex": " {2,}" });
        let lowercase = || json!({ "type": "Lowercase" });
        let characters = characters(self.model);
        let mut steps = Vec::new();
        match self.flavour {
            Flavour::Gemma => return replace(text(" "), SPACE),
            Flavour::Llama if !self.setting("legacy", true) => return Value::Null,
            Flavour::Llama => {
                if self.setting("add_prefix_space", true) {
                    steps.push(json!({ "type": "Prepend", "prepend": SPACE }));
                }
                steps.push(replace(text(" "), SPACE));
            }
            Flavour::Albert => {
                steps.extend([replace(text("``"), "\""), replace(text("''"), "\"")]);
                if !self.setting("keep_accents", false) {
                    steps.extend([json!({ "type": "NFKD" }), json!({ "type": "StripAccents" })]);
                }
                steps.extend(self.setting("do_lower_case", true).then(lowercase));
                steps.extend(characters);
                steps.push(replace(spaces(), " "));
            }
            Flavour::DebertaV2 => {
                steps.extend(self.setting("do_lower_case", false).then(lowercase));
                steps.push(json!({ "type": "Strip", "strip_left": true, "strip_right": true }));
                steps.extend(characters);
                steps.push(replace(spaces(), " "));
            }
            Flavour::Camembert | Flavour::T5 | Flavour::XlmRoberta => {
                steps.extend(characters);
                steps.push(json!({ "type": "Strip", "strip_left": false, "strip_right": true }));
                steps.push(replace(spaces(), SPACE));
            }
        }
        json!({ "type": "Sequence", "normalizers": steps })
    }

    fn metaspace(&self, split: bool) -> Value {
        // Classes that have these settings; the others are as their defaults.
        let of_its_own = matches!(self.flavour, Flavour::Llama | Flavour::T5);
        let scheme = match (of_its_own, self.setting("add_prefix_space", true), self.setting("legacy", true)) {
            (true, false, _) => "never",
            (true, true, false) => "first",
            _ => "always",
        };
        metaspace(scheme, split)
    }

    fn cuts(&self) -> Value {
        match self.flavour {
            Flavour::Gemma => {
                let pattern = json!({ "String": " " });
                json!({ "type": "Split", "pattern": pattern, "behavior": "MergedWithPrevious", "invert": false })
            }
            Flavour::Llama if self.setting("legacy", true) => Value::Null,
            Flavour::Llama => self.metaspace(false),
            Flavour::DebertaV2 => {
                let punctuation = json!({ "type": "Punctuation", "behavior": "Isolated" });
                let punctuation = self.setting("split_by_punct", false).then_some(punctuation);
                let cuts: Vec<Value> = punctuation.into_iter().chain([self.metaspace(true)]).collect();
                json!({ "type": "Sequence", "pretokenizers": cuts })
            }
            _ => self.metaspace(true),
        }
    }

    fn decoder(&self) -> Value {
        if !self.flavour.has_bytes() {
            return self.metaspace(true);
        }
        let mut steps = vec![
            json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " }),
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ];
        if self.flavour == Flavour::Llama && self.setting("add_prefix_space", true) {
            steps.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        json!({ "type": "Sequence", "decoders": steps })
    }

    fn around(&self, words: &Words<'_>) -> Result<Value, PipelineError> {
        match self.flavour {
            Flavour::T5 => template("$A </s>", "$A </s> $B </s>", words),
            Flavour::Camembert | Flavour::XlmRoberta => template("<s> $A </s>", "<s> $A </s> </s> $B </s>", words),
            Flavour::Albert | Flavour::DebertaV2 => {
                template("[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", words)
            }
            Flavour::Gemma | Flavour::Llama => {
                let word = |name: &str, default: bool, word: &Option<String>, kind: u8| {
                    let word = word.as_ref().filter(|_| self.setting(name, default));
                    word.map_or_else(String::new, |word| format!("{word}:{kind}"))
                };
                let side = |text: &str, kind: u8| {
                    let begin = word("add_bos_token", true, &self.special.bos_text, kind);
                    let end = word("add_eos_token", false, &self.special.eos_text, kind);
                    format!("{begin} {text}:{kind} {end}")
                };
                let single = side("$A", 0);
                template(&single, &format!("{single} {}", side("$B", 1)), words)
            }
        }
    }
}

/// The table by which a model writes characters, where it has one.
pub(super) fn characters(model: &Model) -> Option<Value> {
    let characters = model.normalizer.as_ref()?.characters.as_ref().filter(|characters| !characters.is_empty())?;
    Some(json!({ "type": "Precompiled", "precompiled_charsmap": STANDARD.encode(characters) }))
}

/// Spaces as part of the words that they are before.
pub(super) fn metaspace(scheme: &str, split: bool) -> Value {
    json!({ "type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": split })
}
