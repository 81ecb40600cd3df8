//! Tokenizers that merge bytes, from `vocab.json` and `merges.txt` (`GPT2Converter`, `Qwen2Converter`,
//! `RobertaConverter`, `WhisperConverter`).

use std::collections::HashMap;

use accel_backends::files::ModelFiles;
use serde_json::{Map, Value, json};

use super::super::gguf::QWEN2;
use super::super::special::Special;
use super::words::{Defaults, Words};
use super::{needed_text, template};
use crate::error::PipelineError;

pub(super) const VOCABULARY_FILE: &str = "vocab.json";
const MERGES_FILE: &str = "merges.txt";
const END: Option<&str> = Some("<|endoftext|>");
const GPT2: Defaults = Defaults {
    bos: END,
    eos: END,
    unknown: END,
    separator: None,
    padding: None,
    class: None,
    mask: None,
    mask_takes_space: false,
};
const QWEN2_WORDS: Defaults = Defaults { bos: None, padding: END, ..GPT2 };
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

/// The two files.
pub(super) struct Vocabulary {
    pub ids: Map<String, Value>,
    pub merges: Vec<String>,
}

impl Vocabulary {
    pub(super) fn read(files: &dyn ModelFiles) -> Result<Self, PipelineError> {
        let damaged = |error| PipelineError::tokenizer(VOCABULARY_FILE, error);
        let ids = serde_json::from_str(&needed_text(files, VOCABULARY_FILE)?).map_err(damaged)?;
        let merges = needed_text(files, MERGES_FILE)?;
        // The first line says the version.
        let merges = merges.split('\n').skip(1).map(|line| line.trim_end_matches('\r'));
        Ok(Self { ids, merges: merges.filter(|line| !line.is_empty()).map(str::to_owned).collect() })
    }

    fn words<'a>(
        &'a self,
        files: &dyn ModelFiles,
        special: &Special,
        defaults: &Defaults,
    ) -> Result<Words<'a>, PipelineError> {
        let ids = self.ids.iter().filter_map(|(token, id)| Some((token.as_str(), id.as_u64()?)));
        let ids: HashMap<&str, u64> = ids.collect();
        Words::new(files, (VOCABULARY_FILE, ids), &[], special, defaults)
    }

    fn tokenizer(&self, words: &Words<'_>, normalizer: Value, cuts: Value, around: Value) -> Value {
        json!({
            "version": "1.0",
            "added_tokens": words.added(),
            "normalizer": normalizer,
            "pre_tokenizer": cuts,
            "post_processor": around,
            "decoder": bytes(true, true, true),
            "model": { "type": "BPE", "vocab": self.ids, "merges": self.merges, "fuse_unk": false },
        })
    }
}

fn bytes(add_prefix_space: bool, trim_offsets: bool, use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": trim_offsets, "use_regex": use_regex,
    })
}

fn setting(special: &Special, name: &str) -> bool {
    special.settings[name] == true
}

fn word(word: &Option<String>) -> &str {
    word.as_deref().unwrap_or_default()
}

pub(super) fn gpt2(files: &dyn ModelFiles, special: &mut Special) -> Result<Value, PipelineError> {
    special.settle(&GPT2);
    let vocabulary = Vocabulary::read(files)?;
    let words = vocabulary.words(files, special, &GPT2)?;
    let around = if setting(special, "add_bos_token") {
        let bos = word(&special.bos_text);
        template(&format!("{bos}:0 $A:0"), &format!("{bos}:0 $A:0 $B:1"), &words)?
    } else {
        bytes(true, false, true)
    };
    let cuts = bytes(setting(special, "add_prefix_space"), true, true);
    Ok(vocabulary.tokenizer(&words, Value::Null, cuts, around))
}

pub(super) fn qwen2(files: &dyn ModelFiles, special: &mut Special) -> Result<Value, PipelineError> {
    special.settle(&QWEN2_WORDS);
    let vocabulary = Vocabulary::read(files)?;
    let words = vocabulary.words(files, special, &QWEN2_WORDS)?;
    let cuts = json!({ "type": "Sequence", "pretokenizers": [
        { "type": "Split", "pattern": { "Regex": QWEN2 }, "behavior": "Isolated", "invert": false },
        bytes(setting(special, "add_prefix_space"), true, false),
    ] });
    Ok(vocabulary.tokenizer(&words, json!({ "type": "NFC" }), cuts, bytes(true, false, true)))
}

pub(super) fn roberta(files: &dyn ModelFiles, special: &mut Special) -> Result<Value, PipelineError> {
    special.settle(&ROBERTA);
    let vocabulary = Vocabulary::read(files)?;
    let words = vocabulary.words(files, special, &ROBERTA)?;
    let (separator, class) = (word(&special.separator), word(&special.class));
    let space = setting(special, "add_prefix_space");
    let around = json!({
        "type": "RobertaProcessing", "sep": [separator, words.id(separator)?], "cls": [class, words.id(class)?],
        "trim_offsets": true, "add_prefix_space": space,
    });
    Ok(vocabulary.tokenizer(&words, Value::Null, bytes(space, true, true), around))
}

pub(super) fn whisper(files: &dyn ModelFiles, special: &mut Special) -> Result<Value, PipelineError> {
    special.settle(&GPT2);
    let vocabulary = Vocabulary::read(files)?;
    let words = vocabulary.words(files, special, &GPT2)?;
    // Without a language and a task, which whoever transcribes says itself.
    let begin = "<|startoftranscript|>:0 <|notimestamps|>:0";
    let end = word(&special.eos_text);
    let around = template(&format!("{begin} $A:0 {end}:0"), &format!("{begin} $A:0 $B:1 {end}:1"), &words)?;
    let cuts = bytes(setting(special, "add_prefix_space"), true, true);
    Ok(vocabulary.tokenizer(&words, Value::Null, cuts, around))
}
