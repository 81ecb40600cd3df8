//! What is said in a sound, by models that say at each place of it which character is heard (connectionist temporal
//! classification, <https://www.cs.toronto.edu/~graves/icml_2006.pdf>).
//!
//! The answer is a text, that of `pipelines/automatic_speech_recognition.py` in `transformers` without chunks: the sound is
//! heard whole, each place takes its likeliest character, and what repeats counts once. It comes in one step. Language
//! models that some files bring beside are not supported.

mod characters;

use std::collections::BTreeMap;
use std::time::Instant;

use accel_backends::files::ModelFiles;
use accel_backends::tensor::{Engine, Tensor};
use accel_models::ModelError;
use accel_models::family::speech::Speech;
use accel_models::model::Inputs;
use accel_protocol::{
    Arithmetic, ErrorCode, FinishReason, JobError, JobEvent, JobId, JobSpec, Task, TaskOptions, Usage,
};

use crate::admission;
use crate::audio_input::{self, AudioInput, AudioPreprocessor};
use crate::error::PipelineError;
use crate::pipeline::{Cost, Pipeline, StepPlan};
use characters::Characters;

const TASKS: [Task; 1] = [Task::AutomaticSpeechRecognition];
/// The longest sound that is heard whole. All places see each other, and convolutions make 100 numbers of a sample.
const SECONDS_MAX: usize = 120;

/// How a model's sounds are read, and its answers written.
pub struct TranscriptReader {
    audio: AudioPreprocessor,
    characters: Characters,
}

impl TranscriptReader {
    /// Reads a model's files.
    ///
    /// # Errors
    ///
    /// When they do not say how sounds are prepared or which characters there are, or ask for a language model.
    pub fn read(files: &dyn ModelFiles) -> Result<Self, PipelineError> {
        let audio = AudioPreprocessor::read(files)?;
        Ok(Self { audio, characters: Characters::read(files)? })
    }
}

/// A model of speech that works on jobs.
pub struct TranscriptPipeline {
    engine: Engine,
    model: Speech,
    reader: TranscriptReader,
    weight_bytes: u64,
    jobs: BTreeMap<JobId, AudioInput>,
}

impl TranscriptPipeline {
    /// A pipeline without jobs.
    pub fn new(engine: Engine, model: Speech, reader: TranscriptReader, weight_bytes: u64) -> Self {
        Self { engine, model, reader, weight_bytes, jobs: BTreeMap::new() }
    }

    /// What is said in a sound.
    fn transcribe(&self, sound: AudioInput) -> Result<String, PipelineError> {
        let at = |place: &str| {
            let place = place.to_owned();
            move |source| ModelError::Tensor { place, source }
        };
        let dims = [&[1], sound.shape.as_slice()].concat();
        let mut inputs = Inputs::default();
        inputs.insert("input_values", Tensor::new(&self.engine, sound.values, &dims).map_err(at("input_values"))?);
        let outputs = self.model.answer(&inputs)?;
        let logits = outputs.into_iter().find(|(name, _)| name == "logits");
        let (_, logits) = logits.ok_or_else(|| ModelError::MissingInput { name: "logits".into() })?;
        let vocabulary = logits.dims().last().copied().unwrap_or(0).max(1);
        let logits = logits.to_vec().map_err(at("logits"))?;
        if logits.iter().any(|logit| logit.is_nan()) {
            return Err(PipelineError::NotNumbers { output: "logits".into() });
        }
        // Of equals the first.
        let likeliest = |place: &[f32]| {
            let best = place.iter().enumerate().rev().max_by(|(_, a), (_, b)| a.total_cmp(b));
            best.map_or(0, |(id, _)| id as u32)
        };
        let ids: Vec<u32> = logits.chunks_exact(vocabulary).map(likeliest).collect();
        Ok(self.reader.characters.text(&ids))
    }
}

impl Pipeline for TranscriptPipeline {
    fn arithmetic(&self) -> Arithmetic {
        crate::pipeline::arithmetic()
    }

    fn memory_bytes(&self) -> u64 {
        self.weight_bytes
    }

    fn admit(&mut self, spec: &JobSpec) -> Result<Cost, JobError> {
        admission::check(spec, &TASKS, &self.jobs)?;
        if spec.options != TaskOptions::default() {
            let words = "expected no options of the task: the model writes down what it hears in its own language";
            return Err(JobError::new(ErrorCode::Unsupported, words));
        }
        let sound = audio_input::heard(&self.reader.audio, spec.task, &spec.input)?;
        let (samples, allowed) = (sound.values.len(), SECONDS_MAX * self.reader.audio.rate() as usize);
        if samples > allowed {
            let what = "a sound that is heard whole (send it in parts)";
            return Err(PipelineError::too_large(what, samples, allowed, "samples").into());
        }
        let least = self.model.samples_min();
        if samples < least {
            return Err(PipelineError::input(
                "the sound",
                format!("expected at least {least} samples, found {samples}"),
            )
            .into());
        }
        self.jobs.insert(spec.id, sound);
        Ok(Cost { prompt_tokens: 0, memory_bytes: 0 })
    }

    fn step(&mut self, plan: &StepPlan, out: &mut dyn FnMut(JobId, JobEvent)) {
        for &(id, _) in &plan.work {
            let Some(sound) = self.jobs.remove(&id) else { continue };
            let started = Instant::now();
            out(id, JobEvent::Started { prompt_tokens: 0, arithmetic: self.arithmetic() });
            let event = match self.transcribe(sound) {
                Ok(text) => {
                    let prefill_ms = started.elapsed().as_secs_f64() * 1e3;
                    let usage = Usage { prefill_ms, ..Usage::default() };
                    JobEvent::Done { text, results: Vec::new(), reason: FinishReason::Complete, usage }
                }
                Err(error) => JobEvent::Failed { error: error.into() },
            };
            out(id, event);
        }
    }

    fn evict(&mut self, job: JobId) {
        self.jobs.remove(&job);
    }
}
