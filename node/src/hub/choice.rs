//! Which files of a repository a model needs.
//!
//! A repository often holds the same weights in several formats, and much that no loader reads. Lists in it say what
//! belongs together: the parts of a Diffusers model, the shards of weights, the modules of Sentence Transformers. Where a
//! list decides, it is asked for first.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::client::Repository;
use super::error::HubError;

/// What a directory of a model may hold beside weights.
const SMALL: [&str; 26] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "config_sentence_transformers.json",
    "generation_config.json",
    "merges.txt",
    "normalizer.json",
    "preprocessor_config.json",
    "processor_config.json",
    "scheduler_config.json",
    "sentence_bert_config.json",
    "sentencepiece.bpe.model",
    "source.spm",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "target.spm",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
    "vocab.txt",
    MODULES,
    PARTS,
];
const MODULES: &str = "modules.json";
const PARTS: &str = "model_index.json";
/// Weights from the best format to the worst, each in shards that a list names, or whole.
const WEIGHTS: [(&str, &str); 4] = [
    ("model.safetensors.index.json", "model.safetensors"),
    ("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin"),
    ("diffusion_pytorch_model.bin.index.json", "diffusion_pytorch_model.bin"),
];
const SAFETENSORS: &str = ".safetensors";
const GGUF: &str = ".gguf";

/// How the choice goes on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// This file must be read first.
    Read(String),
    /// These files are the model.
    Files {
        /// Their names in the repository.
        files: BTreeSet<String>,
        /// Whether the one file is the model, and not a directory that holds it.
        alone: bool,
    },
}

/// Chooses; `read` are the lists that have been read so far.
pub(super) fn choose(
    repository: &Repository,
    quant: Option<&str>,
    read: &BTreeMap<String, Vec<u8>>,
) -> Result<Choice, HubError> {
    let chooser = Chooser { repository, read };
    let alone = |file| Choice::Files { files: BTreeSet::from([file]), alone: true };
    if let Some(quant) = quant {
        return chooser.gguf(quant).map(alone);
    }
    match chooser.directory() {
        Ok(files) => Ok(Choice::Files { files, alone: false }),
        Err(Stop::Read(file)) => Ok(Choice::Read(file)),
        Err(Stop::Error(error)) => Err(error),
        Err(Stop::NoWeights) => chooser.only_gguf().map(alone),
    }
}

enum Stop {
    Read(String),
    NoWeights,
    Error(HubError),
}

struct Chooser<'a> {
    repository: &'a Repository,
    read: &'a BTreeMap<String, Vec<u8>>,
}

impl Chooser<'_> {
    fn has(&self, file: &str) -> bool {
        self.repository.files.contains_key(file)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.repository.files.keys().map(String::as_str)
    }

    fn damaged(&self, file: &str, found: impl std::fmt::Display) -> Stop {
        let (repository, file) = (self.repository.name.clone(), file.to_owned());
        Stop::Error(HubError::Damaged { repository, file, found: found.to_string() })
    }

    /// A list, once it is here.
    fn json(&self, file: &str) -> Result<Value, Stop> {
        let text = self.read.get(file).ok_or_else(|| Stop::Read(file.to_owned()))?;
        serde_json::from_slice(text).map_err(|error| self.damaged(file, error))
    }

    fn directory(&self) -> Result<BTreeSet<String>, Stop> {
        let mut files = BTreeSet::new();
        let mut weights = false;
        if self.has(PARTS) {
            files.insert(PARTS.to_owned());
            let index = self.json(PARTS)?;
            let parts = index.as_object().ok_or_else(|| self.damaged(PARTS, "expected the parts by name"))?;
            // A part is named with its library and class; one that was taken out has neither.
            let is_part = |value: &Value| value.as_array().is_some_and(|pair| pair.iter().any(Value::is_string));
            for part in parts.iter().filter(|(_, value)| is_part(value)).map(|(name, _)| name) {
                weights |= self.part(&format!("{part}/"), &mut files)?;
            }
        } else {
            weights = self.part("", &mut files)?;
        }
        if !weights {
            return Err(Stop::NoWeights);
        }
        if self.has(MODULES) {
            let modules = self.json(MODULES)?;
            let paths = modules.as_array().into_iter().flatten().filter_map(|module| module["path"].as_str());
            for path in paths.filter(|path| !path.is_empty()) {
                self.part(&format!("{path}/"), &mut files)?;
            }
        }
        Ok(files)
    }

    /// Adds the files of one directory, and says whether weights are among them.
    fn part(&self, directory: &str, files: &mut BTreeSet<String>) -> Result<bool, Stop> {
        let small = SMALL.iter().map(|name| format!("{directory}{name}"));
        files.extend(small.filter(|file| self.has(file)));
        for (list, whole) in WEIGHTS {
            let (list, whole) = (format!("{directory}{list}"), format!("{directory}{whole}"));
            if self.has(&list) {
                files.extend(self.shards(directory, &list)?);
                files.insert(list);
                return Ok(true);
            }
            if self.has(&whole) {
                files.insert(whole);
                return Ok(true);
            }
            // Pickles count only where there is nothing else.
            if whole.ends_with(SAFETENSORS)
                && let Some(file) = self.only(directory, SAFETENSORS)?
            {
                files.insert(file);
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn shards(&self, directory: &str, list: &str) -> Result<BTreeSet<String>, Stop> {
        let index = self.json(list)?;
        let map = index["weight_map"].as_object().ok_or_else(|| self.damaged(list, "expected a weight_map"))?;
        let shards: BTreeSet<String> =
            map.values().filter_map(Value::as_str).map(|file| format!("{directory}{file}")).collect();
        match shards.iter().find(|shard| !self.has(shard)) {
            Some(missing) => Err(self.damaged(list, format!("it names {missing}, which is not there"))),
            None => Ok(shards),
        }
    }

    /// The one file of a directory that ends so, where its name is none of the usual ones.
    fn only(&self, directory: &str, end: &str) -> Result<Option<String>, Stop> {
        // The usual names go first, here and in the loader.
        if WEIGHTS.iter().any(|(list, whole)| {
            whole.ends_with(end)
                && (self.has(&format!("{directory}{list}")) || self.has(&format!("{directory}{whole}")))
        }) {
            return Ok(None);
        }
        let inside = |name: &str| name.strip_prefix(directory).is_some_and(|name| !name.contains('/'));
        let found: Vec<String> =
            self.names().filter(|name| inside(name) && name.ends_with(end)).map(str::to_owned).collect();
        match found.len() {
            0 => Ok(None),
            1 => Ok(found.into_iter().next()),
            _ => Err(Stop::Error(HubError::Ambiguous { repository: self.repository.name.clone(), found })),
        }
    }

    /// The GGUF files by their quantisation. What sees pictures for a model is no model.
    fn quants(&self) -> BTreeMap<String, Vec<String>> {
        let mut quants: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let is_model = |name: &&str| name.ends_with(GGUF) && !name.to_ascii_lowercase().contains("mmproj");
        for name in self.names().filter(is_model) {
            // A file that does not say how it is quantised is known by its own name.
            let quant = quant_of(name).unwrap_or_else(|| stem(name).0.to_ascii_uppercase());
            quants.entry(quant).or_default().push(name.to_owned());
        }
        quants
    }

    fn gguf(&self, quant: &str) -> Result<String, HubError> {
        let quants = self.quants();
        let repository = self.repository.name.clone();
        let Some(files) = quants.get(quant) else {
            return Err(HubError::NoQuant { repository, quant: quant.to_owned(), found: quants.into_keys().collect() });
        };
        match files.as_slice() {
            files if files.iter().any(|file| stem(file).1) => {
                Err(HubError::Split { repository, quant: quant.to_owned(), found: files.to_vec() })
            }
            [file] => Ok(file.clone()),
            files => Err(HubError::Ambiguous { repository, found: files.to_vec() }),
        }
    }

    /// The GGUF of a repository that has nothing else.
    fn only_gguf(&self) -> Result<String, HubError> {
        let quants = self.quants();
        let repository = self.repository.name.clone();
        let mut names = quants.keys();
        match (names.next(), names.next()) {
            (Some(quant), None) => self.gguf(quant),
            (Some(_), Some(_)) => Err(HubError::WhichQuant { repository, found: quants.into_keys().collect() }),
            (None, _) => Err(HubError::NoWeights { repository, found: self.names().map(str::to_owned).collect() }),
        }
    }
}

/// The name of a GGUF file without directories, ending and number, and whether it had a number, as one of several has.
fn stem(file: &str) -> (&str, bool) {
    let name = file.rsplit('/').next().unwrap_or(file);
    let name = name.strip_suffix(GGUF).unwrap_or(name);
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let numbered = name.rsplit_once("-of-").filter(|(_, count)| is_number(count));
    match numbered.and_then(|(rest, _)| rest.rsplit_once('-')).filter(|(_, number)| is_number(number)) {
        Some((name, _)) => (name, true),
        None => (name, false),
    }
}

/// How a GGUF file is quantised, as the end of its name says, in capitals: `Q4_K_M`, `IQ2_XXS`, `UD-Q4_K_XL`, `BF16`.
fn quant_of(file: &str) -> Option<String> {
    let name = stem(file).0.to_ascii_uppercase();
    let ends = name.char_indices().filter(|(_, c)| "-._".contains(*c)).map(|(place, _)| &name[place + 1..]);
    let quant = [name.as_str()].into_iter().chain(ends).find(|end| is_quant(end))?;
    let dynamic = name[..name.len() - quant.len()].ends_with("-UD-");
    Some(if dynamic { format!("UD-{quant}") } else { quant.to_owned() })
}

fn is_quant(text: &str) -> bool {
    let plain = ["F16", "FP16", "BF16", "F32", "FP32", "MXFP4", "MXFP4_MOE"].contains(&text);
    let numbered = ["IQ", "TQ", "Q"].iter().find_map(|kind| text.strip_prefix(kind)).is_some_and(|rest| {
        rest.starts_with(|c: char| c.is_ascii_digit())
            && rest.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
    });
    plain || numbered
}
