//! One vector for a whole text, as Sentence Transformers make it of the states of its tokens.

use accel_backends::files::{ModelFiles, read_small};
use serde_json::Value;

use crate::error::PipelineError;

const MODULES_FILE: &str = "modules.json";
const FILE_BYTES_MAX: u64 = 1 << 20;

/// How the states of tokens become one vector.
#[derive(Debug)]
pub struct Pooling {
    parts: Vec<Part>,
    normalise: bool,
    /// The most tokens of a text; what is longer is cut.
    pub length: Option<usize>,
}

/// What of the states is kept; several are laid side by side.
#[derive(Clone, Copy, Debug)]
enum Part {
    First,
    Last,
    Largest,
    Mean,
    /// The sum, divided by the square root of how many they are.
    MeanRoot,
}

/// The keys of a pooling's `config.json`, in the order in which their vectors are laid side by side.
const PARTS: [(&str, Part); 5] = [
    ("pooling_mode_cls_token", Part::First),
    ("pooling_mode_max_tokens", Part::Largest),
    ("pooling_mode_mean_tokens", Part::Mean),
    ("pooling_mode_mean_sqrt_len_tokens", Part::MeanRoot),
    ("pooling_mode_lasttoken", Part::Last),
];

impl Pooling {
    /// Reads `modules.json` and what it names. A model without it gives the mean of its states.
    ///
    /// # Errors
    ///
    /// When a file is damaged or asks for steps that are not known here.
    pub fn read(files: &dyn ModelFiles) -> Result<Self, PipelineError> {
        let mut pooling = Self { parts: vec![Part::Mean], normalise: false, length: None };
        let Some(modules) = json(files, MODULES_FILE)? else { return Ok(pooling) };
        let modules = modules.as_array().cloned().unwrap_or_default();
        for module in &modules {
            let kind = module["type"].as_str().unwrap_or_default();
            match kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" => {}
                "Normalize" => pooling.normalise = true,
                "Pooling" => {
                    let file = format!("{}/config.json", module["path"].as_str().unwrap_or_default());
                    let config = json(files, &file)?
                        .ok_or_else(|| PipelineError::tokenizer(&file, "expected the file, found none"))?;
                    let known = |key: &str| PARTS.iter().any(|(name, _)| *name == key);
                    let asked = config.as_object().into_iter().flatten();
                    let mut asked = asked.filter(|(key, value)| key.starts_with("pooling_mode") && *value == true);
                    if let Some((key, _)) = asked.find(|(key, _)| !known(key)) {
                        return Err(unsupported(key));
                    }
                    let parts = PARTS.iter().filter(|(name, _)| config[*name] == true);
                    pooling.parts = parts.map(|(_, part)| *part).collect();
                    if pooling.parts.is_empty() {
                        return Err(PipelineError::tokenizer(&file, "expected a pooling mode, found none"));
                    }
                }
                other => return Err(unsupported(other)),
            }
        }
        let config = json(files, "sentence_bert_config.json")?.unwrap_or_default();
        pooling.length = config["max_seq_length"].as_u64().and_then(|length| usize::try_from(length).ok());
        if config["do_lower_case"] == true {
            return Err(unsupported("do_lower_case"));
        }
        Ok(pooling)
    }

    /// The vector of `[tokens, width]` states.
    pub fn pool(&self, states: &[f32], width: usize) -> Vec<f32> {
        let tokens = (states.len() / width.max(1)).max(1);
        let rows = || states.chunks_exact(width.max(1));
        let sum = |column: usize| rows().map(|row| f64::from(row[column])).sum::<f64>();
        let value = |part: &Part, column: usize| match part {
            Part::First => states[column],
            Part::Last => states[(tokens - 1) * width + column],
            Part::Largest => rows().map(|row| row[column]).fold(f32::NEG_INFINITY, f32::max),
            Part::Mean => (sum(column) / tokens as f64) as f32,
            Part::MeanRoot => (sum(column) / libm::sqrt(tokens as f64)) as f32,
        };
        let mut vector: Vec<f32> =
            self.parts.iter().flat_map(|part| (0..width).map(move |column| value(part, column))).collect();
        if self.normalise {
            let norm = libm::sqrt(vector.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>()).max(1e-12);
            vector.iter_mut().for_each(|value| *value = (f64::from(*value) / norm) as f32);
        }
        vector
    }
}

fn unsupported(found: &str) -> PipelineError {
    let supported = "Transformer, Pooling (cls, max, mean, mean_sqrt_len, lasttoken) and Normalize";
    PipelineError::Unsupported {
        what: "the Sentence Transformers module",
        found: found.to_owned(),
        supported: supported.to_owned(),
    }
}

fn json(files: &dyn ModelFiles, file: &str) -> Result<Option<Value>, PipelineError> {
    let text = read_small(files, file, FILE_BYTES_MAX).map_err(|error| PipelineError::tokenizer(file, error))?;
    let parse = |text: Vec<u8>| serde_json::from_slice(&text).map_err(|error| PipelineError::tokenizer(file, error));
    text.map(parse).transpose()
}
