//! How a sound becomes a text: what the decoder's sequence begins with, and how a decoder that hears a window at a time
//! walks over a sound (`generation_whisper.py` in `transformers`; <https://arxiv.org/abs/2212.04356>, 3.8).
//!
//! A sound that is longer than a window is read as `return_timestamps=True` has it: the model says when it said what,
//! and the next window begins where it was last sure of that. Answers are texts, so times are only counted.

use std::collections::BTreeMap;

use accel_backends::tensor::{Engine, Tensor};
use accel_models::ModelError;
use accel_models::model::Inputs;
use serde_json::{Map, Value};

use super::beams::Logprob;
use super::languages;
use crate::audio_input::AudioInput;
use crate::error::PipelineError;
use crate::generation::rules::Timestamps;
use crate::generation::settings::{unsupported, wrong};

/// Frames of features in one step of a time: the convolutions before the encoder halve them.
const STEP_FRAMES: usize = 2;
/// Settings that choose again what was said, or that keep what was said before in mind.
const UNSUPPORTED: [&str; 4] =
    ["compression_ratio_threshold", "logprob_threshold", "no_speech_threshold", "condition_on_prev_tokens"];

/// What a model's files say about writing down what is said.
#[derive(Clone, Debug, Default)]
pub struct Transcription {
    /// The tokens of languages, as `<|en|>` names them; none for a model that is not told languages.
    languages: Option<BTreeMap<String, u32>>,
    /// The tokens of what is done: `transcribe` or `translate`.
    tasks: Option<BTreeMap<String, u32>>,
    /// The language that is spoken.
    language: Option<String>,
    /// What is done.
    task: Option<String>,
    /// What follows the token that starts, where neither of these is said; nothing where it is to be found out.
    forced: Vec<Option<u32>>,
    /// The token that says that no times are wanted. Times are the tokens after it.
    no_timestamps: Option<u32>,
    /// Whether the model knows more than one language, where that is said.
    multilingual: Option<bool>,
    /// Whether times are wanted.
    timestamps: bool,
    /// The latest that the first time may be, in steps.
    initial_timestamp_max: Option<u32>,
}

/// What a decoder's sequence begins with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// How many of these the model reads together with what is given.
    pub read: usize,
    /// Whether they are a text, which the answer goes on with.
    pub is_text: bool,
    /// Tokens of languages, of which the likeliest is to be the second token; none where that is said.
    pub languages: Vec<u32>,
}

impl Transcription {
    /// Reads settings, and `forced_decoder_ids` of `config.json` where these have none.
    ///
    /// # Errors
    ///
    /// When one is mistyped or not supported.
    pub fn read(chosen: &Map<String, Value>, config: &Map<String, Value>) -> Result<Self, PipelineError> {
        let said = |key: &str| chosen.get(key).filter(|value| !value.is_null());
        for key in UNSUPPORTED {
            if let Some(found) = said(key).filter(|found| **found != false) {
                return Err(unsupported(key, found));
            }
        }
        let wrong_type = |key: &str, expected: &str| wrong(key, expected, chosen.get(key));
        let table = |key: &str| {
            let read = |value: &Value| {
                let entries = value.as_object()?.iter();
                entries.map(|(name, id)| Some((name.clone(), whole(id)?))).collect::<Option<BTreeMap<_, _>>>()
            };
            said(key).map(|value| read(value).ok_or_else(|| wrong_type(key, "tokens by name"))).transpose()
        };
        let text = |key: &str| {
            let read = |value: &Value| value.as_str().map(str::to_owned).ok_or_else(|| wrong_type(key, "one text"));
            said(key).map(read).transpose()
        };
        let truth = |key: &str| {
            said(key).map(|value| value.as_bool().ok_or_else(|| wrong_type(key, "true or false"))).transpose()
        };
        let number = |key: &str| {
            said(key).map(|value| whole(value).ok_or_else(|| wrong_type(key, "a whole number"))).transpose()
        };
        let key = "forced_decoder_ids";
        let forced = said(key).or_else(|| config.get(key).filter(|value| !value.is_null()));
        let expected = "tokens with their places: 1, 2, and so on";
        let forced = forced.map(|value| forced_tokens(value).ok_or_else(|| wrong(key, expected, Some(value))));
        Ok(Self {
            languages: table("lang_to_id")?,
            tasks: table("task_to_id")?,
            language: text("language")?,
            task: text("task")?,
            forced: forced.transpose()?.unwrap_or_default(),
            no_timestamps: number("no_timestamps_token_id")?,
            multilingual: truth("is_multilingual")?,
            timestamps: truth("return_timestamps")?.unwrap_or(false),
            initial_timestamp_max: number("max_initial_timestamp_index")?,
        })
    }

    /// Every token that is named.
    pub fn tokens(&self) -> impl Iterator<Item = u32> {
        let tables = [&self.languages, &self.tasks].into_iter().flatten().flat_map(BTreeMap::values);
        tables.chain(self.forced.iter().flatten()).chain(&self.no_timestamps).copied()
    }

    /// The first token that is a time.
    pub fn first_time(&self) -> Option<u32> {
        self.no_timestamps.map(|token| token.saturating_add(1))
    }

    /// Whether a sound of so many frames is read with times, by a model that hears `window` at once.
    pub fn is_timed(&self, frames: usize, window: usize) -> bool {
        self.timestamps || frames > window
    }

    /// The rule that times follow.
    ///
    /// # Errors
    ///
    /// When the model has no times, or several tokens that end an answer.
    pub fn rule(&self, ends: &[u32]) -> Result<Timestamps, PipelineError> {
        let key = "no_timestamps_token_id";
        let none = self.no_timestamps.ok_or_else(|| {
            wrong(key, "a token, without which no sound over one window is understood: send a shorter one", None)
        })?;
        let &[end] = ends else {
            return Err(wrong("eos_token_id", "one token, for a model that says times", None));
        };
        Ok(Timestamps { none, end, initial_max: self.initial_timestamp_max })
    }

    /// What a decoder's sequence begins with (`_retrieve_init_tokens`).
    ///
    /// # Errors
    ///
    /// When the model does not know the language, or a setting lacks a token.
    pub fn prompt(&self, start: u32, asked: Option<&str>, timed: bool) -> Result<Prompt, PipelineError> {
        if let Some(asked) = asked
            && self.multilingual == Some(false)
        {
            let reason = format!("expected none for a model that knows one language only, found {asked:?}");
            return Err(PipelineError::input("the language", reason));
        }
        let language = asked.or(self.language.as_deref());
        let mut tokens = vec![Some(start)];
        if language.is_none() && self.task.is_none() {
            tokens.extend(&self.forced);
        }
        let mut candidates = Vec::new();
        let spoken = match (language, &self.languages) {
            (Some(language), _) => Some(self.language(language)?),
            (None, Some(known)) if tokens.get(1).is_none_or(Option::is_none) => {
                candidates = known.values().copied().collect();
                candidates.first().copied()
            }
            (None, _) => None,
        };
        if let Some(spoken) = spoken {
            match tokens.get_mut(1) {
                Some(second) => *second = Some(spoken),
                None => tokens.push(Some(spoken)),
            }
        }
        let done = |task: &str| {
            let token = self.tasks.as_ref().and_then(|tasks| tasks.get(task)).copied();
            token.ok_or_else(|| wrong("task_to_id", &format!("a token for {task}"), None))
        };
        if let Some(task) = &self.task {
            tokens.push(Some(done(task)?));
        } else if language.is_some()
            && let Some(tasks) = &self.tasks
            && !tokens.iter().flatten().any(|token| tasks.values().any(|task| task == token))
        {
            tokens.push(Some(done("transcribe")?));
        }
        let last = tokens.last().copied().flatten();
        match self.no_timestamps {
            Some(none) if !timed && last != Some(none) => tokens.push(Some(none)),
            Some(none) if timed && last == Some(none) => tokens.truncate(tokens.len() - 1),
            _ => {}
        }
        let tokens = tokens.into_iter().flatten().collect();
        Ok(Prompt { tokens, read: 1, is_text: false, languages: candidates })
    }

    /// The token of a language by its name, its code, or the token's own name.
    fn language(&self, language: &str) -> Result<u32, PipelineError> {
        let known = self.languages.as_ref().ok_or_else(|| {
            PipelineError::input("the language", "expected none: the model's files have no lang_to_id")
        })?;
        let asked = language.to_lowercase();
        let token = match languages::code(&asked) {
            _ if known.contains_key(&asked) => known.get(&asked),
            Some(code) => known.get(&format!("<|{code}|>")),
            None => None,
        };
        token.copied().ok_or_else(|| {
            let codes: Vec<&str> = known.keys().map(|name| name.trim_matches(['<', '|', '>'])).collect();
            let reason = format!("expected one of {}, found {language:?}", codes.join(", "));
            PipelineError::input("the language", reason)
        })
    }
}

/// Tokens with their places, `[[1, null], [2, 50359]]`, in the order of their places from the first on.
fn forced_tokens(value: &Value) -> Option<Vec<Option<u32>>> {
    let token = |(place, pair): (usize, &Value)| match pair.as_array()?.as_slice() {
        [at, token] if at.as_u64() == Some(place as u64 + 1) => match token {
            Value::Null => Some(None),
            token => whole(token).map(Some),
        },
        _ => None,
    };
    value.as_array()?.iter().enumerate().map(token).collect()
}

fn whole(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

impl Prompt {
    /// The token that starts a decoder.
    pub fn start(token: u32) -> Self {
        Self { tokens: vec![token], read: 1, is_text: false, languages: Vec::new() }
    }

    /// Takes the likeliest language where it is to be found out (`detect_language`). logits: `[vocabulary]`, of what
    /// follows the token that starts.
    ///
    /// # Errors
    ///
    /// When logits are no numbers.
    pub fn settle(&mut self, logits: &[f32]) -> Result<(), PipelineError> {
        if self.languages.is_empty() {
            return Ok(());
        }
        let mut candidates = std::mem::take(&mut self.languages);
        candidates.sort_unstable();
        let score = |&token: &u32| logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
        if candidates.iter().any(|token| score(token).is_nan()) {
            return Err(PipelineError::NotNumbers { output: "logits".into() });
        }
        // Of equals the first.
        let likeliest = candidates.into_iter().rev().max_by(|a, b| score(a).total_cmp(&score(b)));
        if let (Some(second), Some(likeliest)) = (self.tokens.get_mut(1), likeliest) {
            *second = likeliest;
        }
        Ok(())
    }
}

/// A sound, and how far it is written down.
pub struct Sound {
    /// `[pitches, frames]`
    features: Vec<f32>,
    frames: usize,
    /// Frames that the encoder hears at once.
    window: usize,
    /// The first frame of this window.
    seek: usize,
    first_time: Option<u32>,
}

/// A token, and its log probabilities where they are asked for.
pub type Said = (u32, Option<Logprob>);

/// How a window ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    /// How many of its tokens stand.
    kept: usize,
    /// Frames from its beginning to that of the next; none for all of it.
    frames: Option<usize>,
}

impl Sound {
    /// A sound from its features: `[pitches, frames]`.
    pub fn new(input: AudioInput, window: usize, first_time: Option<u32>) -> Self {
        let frames = input.shape.last().copied().unwrap_or(0);
        Self { features: input.values, frames, window, seek: 0, first_time }
    }

    /// Frames of all of it.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Positions that the encoder makes of a window.
    pub fn window_positions(&self) -> usize {
        self.window.div_ceil(STEP_FRAMES)
    }

    /// What the features take.
    pub fn bytes(&self) -> u64 {
        size_of_val(self.features.as_slice()) as u64
    }

    /// What the encoder reads of this window: `[1, pitches, window]`. After its end it is zero.
    ///
    /// # Errors
    ///
    /// When the features are of another shape.
    pub fn inputs(&self, engine: &Engine) -> Result<Inputs, ModelError> {
        let pitches = self.features.len() / self.frames.max(1);
        let mut values = vec![0.0; pitches * self.window];
        let rows = self.features.chunks_exact(self.frames.max(1)).zip(values.chunks_exact_mut(self.window.max(1)));
        for (features, heard) in rows {
            let features = features.get(self.seek..).unwrap_or_default();
            heard.iter_mut().zip(features).for_each(|(heard, feature)| *heard = *feature);
        }
        let features = Tensor::new(engine, values, &[1, pitches, self.window]);
        let mut inputs = Inputs::default();
        inputs.insert(
            "input_features",
            features.map_err(|source| ModelError::Tensor { place: "input_features".into(), source })?,
        );
        Ok(inputs)
    }

    /// Whether a token is a time, which is no part of a text.
    pub fn is_time(&self, token: u32) -> bool {
        self.first_time.is_some_and(|first| token >= first)
    }

    /// How many tokens of the window stand whatever follows them.
    pub fn certain(&self, said: &[Said]) -> usize {
        self.last_pair(said).map_or(said.len(), |second| second + 1)
    }

    /// How many tokens of the window stand after its last one.
    pub fn kept(&self, said: &[Said]) -> usize {
        self.end(said).kept
    }

    /// Goes on to the next window; whether there is one.
    ///
    /// # Errors
    ///
    /// When the model says that the next begins where this one does.
    pub fn turn(&mut self, said: &[Said]) -> Result<bool, PipelineError> {
        let window = self.window.min(self.frames.saturating_sub(self.seek));
        let frames = self.end(said).frames.unwrap_or(window);
        if frames == 0 {
            let reason = format!("the model hears nothing from frame {} on, and goes no further", self.seek);
            return Err(PipelineError::input("the sound", reason));
        }
        self.seek = self.seek.saturating_add(frames);
        Ok(self.seek < self.frames)
    }

    /// The later of the last two times of this window that follow one another: one part ends and another begins there.
    fn last_pair(&self, said: &[Said]) -> Option<usize> {
        (1..said.len()).rev().find(|&at| self.is_time(said[at - 1].0) && self.is_time(said[at].0))
    }

    /// `_retrieve_segment`
    fn end(&self, said: &[Said]) -> End {
        let whole = End { kept: said.len(), frames: None };
        let Some(second) = self.last_pair(said) else { return whole };
        // One time at the end: nothing was said after it.
        if let [.., (before, _), (last, _)] = said
            && !self.is_time(*before)
            && self.is_time(*last)
        {
            return whole;
        }
        // What follows was cut off by the window's end and is heard again.
        let time = said[second - 1].0 - self.first_time.unwrap_or(0);
        End { kept: second + 1, frames: Some(time as usize * STEP_FRAMES) }
    }
}

#[cfg(test)]
mod tests;
