//! Paints what a text says: a network takes noise off a small image, step by step, and an autoencoder makes a picture of
//! it.
//!
//! Pictures are those of Diffusers' pipelines with their defaults, of the same seed on the CPU. A step of a job is a step of
//! its sampler, and the last one decodes, so that a job can be left at any of them.

mod flux;
mod latents;
pub mod noise;
mod parts;
mod picture;
mod prompts;
mod safety;
pub mod sampler;
mod stable_diffusion;
mod training;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use accel_backends::files::ModelFiles;
use accel_backends::tensor::{Engine, Tensor};
use accel_models::ModelError;
use accel_models::model::Inputs;
use accel_protocol::{Arithmetic, FinishReason, Input, JobError, JobEvent, JobId, JobSpec, Painting, Task, Usage};

use crate::admission;
use crate::error::PipelineError;
use crate::image_input::RgbImage;
use crate::pipeline::{Cost, LoadOptions, Pipeline, StepPlan};
use latents::Sizes;
use parts::Parts;
use prompts::Prompt;
use sampler::Run;

const STABLE_DIFFUSION: &str = "StableDiffusionPipeline";
const FLUX: &str = "FluxPipeline";
const TASKS: &[Task] = &[Task::TextToImage];

/// What a class of pipelines paints with.
trait Painter: Send {
    /// Steps by default.
    fn steps(&self) -> usize;

    /// The sizes of pictures.
    fn sizes(&self) -> &Sizes;

    /// What is to be painted.
    ///
    /// # Errors
    ///
    /// When a text is too long, or an option is none of this pipeline.
    fn asked(&self, text: &str, painting: &Painting) -> Result<Asked, PipelineError>;

    /// The way of a painting of so many steps and that size through the sampler.
    ///
    /// # Errors
    ///
    /// When the sampler cannot do that many.
    fn run(&self, steps: usize, places: [usize; 2]) -> Result<Run, PipelineError>;

    /// What the text encoders make of what is asked.
    ///
    /// # Errors
    ///
    /// When they cannot be run.
    fn encode(&self, asked: &Asked, places: [usize; 2]) -> Result<States, PipelineError>;

    /// What the network tells of a sample at a moment. shown: `[channels, height, width]` to the same.
    ///
    /// # Errors
    ///
    /// When it cannot be run.
    fn told(
        &self,
        states: &States,
        asked: &Asked,
        places: [usize; 2],
        moment: f64,
        shown: &[f32],
    ) -> Result<Vec<f32>, PipelineError>;

    /// The picture of a sample: `[channels, height, width]`.
    ///
    /// # Errors
    ///
    /// When it cannot be made, or is to be held back.
    fn picture(&self, sample: &[f32], places: [usize; 2]) -> Result<RgbImage, PipelineError>;
}

/// What a class of pipelines paints with, known but not loaded.
trait Loaded {
    /// It with its weights.
    type Painter: Painter;

    /// Bytes of its weights.
    fn bytes(&self) -> u64;

    /// Reads its weights.
    ///
    /// # Errors
    ///
    /// When that cannot be done.
    fn load(self, engine: &Engine) -> Result<Self::Painter, PipelineError>;
}

/// What is to be painted.
struct Asked {
    /// The texts, each as it is read.
    prompts: Vec<Prompt>,
    /// How closely to keep to them.
    guidance: f32,
}

/// What the network is told of a text at each step.
type States = Inputs;

/// A painter that works on jobs.
struct PaintingPipeline<P: Painter> {
    painter: P,
    weight_bytes: u64,
    memory_bytes: Option<u64>,
    jobs: BTreeMap<JobId, Job>,
}

struct Job {
    asked: Asked,
    /// Height and width of its latent image.
    places: [usize; 2],
    run: Run,
    /// The step that comes next.
    at: usize,
    /// `[channels, height, width]`
    sample: Vec<f32>,
    states: Option<States>,
    bytes: u64,
    started: Option<Instant>,
}

/// Whether a model has several parts.
pub(crate) fn has_parts(files: &dyn ModelFiles) -> bool {
    Parts::are_in(files)
}

/// Loads a model of several parts.
///
/// # Errors
///
/// When the files hold no painter that can be run, or it needs more than `options` allow.
pub(crate) fn load(files: Arc<dyn ModelFiles>, options: &LoadOptions) -> Result<Box<dyn Pipeline>, PipelineError> {
    let parts = Parts::read(files)?;
    match parts.class(&[STABLE_DIFFUSION, FLUX])? {
        FLUX => pipeline(flux::Unloaded::read(&parts)?, options),
        _ => pipeline(stable_diffusion::Unloaded::read(&parts)?, options),
    }
}

fn pipeline<L: Loaded>(loaded: L, options: &LoadOptions) -> Result<Box<dyn Pipeline>, PipelineError>
where
    L::Painter: 'static,
{
    let weight_bytes = loaded.bytes();
    if let Some(allowed_bytes) = options.memory_bytes.filter(|&allowed| allowed < weight_bytes) {
        return Err(ModelError::OutOfMemory { needed_bytes: weight_bytes, allowed_bytes }.into());
    }
    let engine = Engine::cpu(options.threads).map_err(PipelineError::Engine)?;
    let (painter, jobs) = (loaded.load(&engine)?, BTreeMap::new());
    Ok(Box::new(PaintingPipeline { painter, weight_bytes, memory_bytes: options.memory_bytes, jobs }))
}

fn not_supported(what: &str, found: &str, supported: &str) -> ModelError {
    ModelError::Unsupported { what: what.to_owned(), found: found.to_owned(), supported: supported.to_owned() }
}

fn output(outputs: Vec<(String, Tensor)>, name: &str) -> Result<Tensor, PipelineError> {
    let found = outputs.into_iter().find(|(found, _)| found == name);
    Ok(found.ok_or_else(|| ModelError::MissingInput { name: name.to_owned() })?.1)
}

impl<P: Painter> PaintingPipeline<P> {
    fn take_on(&self, spec: &JobSpec) -> Result<Job, PipelineError> {
        let Input::Text(text) = &spec.input else {
            return Err(PipelineError::input("the input", format!("expected one text for {}", spec.task)));
        };
        let painting = &spec.options.painting;
        let asked = self.painter.asked(text, painting)?;
        let places = self.painter.sizes().places(painting)?;
        let steps = painting.steps.map_or(self.painter.steps(), |steps| steps as usize);
        let run = self.painter.run(steps, places)?;
        let bytes = self.reserve(places)?;
        let values = self.painter.sizes().channels * places[0] * places[1];
        let noise = noise::normal(values, spec.generation.seed);
        let sample = noise.into_iter().map(|value| value * run.noise).collect();
        Ok(Job { asked, places, sample, run, at: 0, states: None, bytes, started: None })
    }

    /// What a job of that size takes between steps, where there is room for it and for a step of it.
    fn reserve(&self, places: [usize; 2]) -> Result<u64, PipelineError> {
        let sizes = self.painter.sizes();
        let (kept, working) = (sizes.kept_bytes(places), sizes.working_bytes(places));
        let used = self.jobs.values().map(|job| job.bytes).sum::<u64>().saturating_add(self.weight_bytes);
        let what = || format!("a picture of {} pixels", sizes.picture(places));
        admission::check_room(what, kept.saturating_add(working), used, self.memory_bytes)?;
        Ok(kept)
    }

    /// Carries a job on by a step.
    fn work(&mut self, id: JobId, out: &mut dyn FnMut(JobId, JobEvent)) -> Result<(), PipelineError> {
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        let prompt_tokens = job.asked.prompts.iter().map(|prompt| prompt.tokens).sum::<usize>() as u32;
        let started = *job.started.get_or_insert_with(|| {
            out(id, JobEvent::Started { prompt_tokens, arithmetic: crate::pipeline::arithmetic() });
            Instant::now()
        });
        if job.at < job.run.moments.len() {
            job.step(&self.painter)?;
            let (done, total) = (job.at as u32, job.run.moments.len() as u32);
            out(id, JobEvent::Working { done, total });
            return Ok(());
        }
        let results = vec![picture::png(&self.painter.picture(&job.sample, job.places)?)?];
        self.jobs.remove(&id);
        let prefill_ms = started.elapsed().as_secs_f64() * 1e3;
        let usage = Usage { prompt_tokens, prefill_ms, ..Usage::default() };
        out(id, JobEvent::Done { text: String::new(), results, reason: FinishReason::Complete, usage });
        Ok(())
    }
}

impl Job {
    /// Asks the network at the next moment, and takes off what it tells.
    fn step(&mut self, painter: &impl Painter) -> Result<(), PipelineError> {
        let states = match self.states.take() {
            Some(states) => states,
            None => painter.encode(&self.asked, self.places)?,
        };
        let shown = self.run.shown(self.at, &self.sample);
        let moment = self.run.moments.get(self.at).copied().unwrap_or(0.0);
        let told = painter.told(&states, &self.asked, self.places, moment, &shown)?;
        self.states = Some(states);
        self.sample = self.run.step(self.at, &told, &self.sample)?;
        if self.sample.len() != shown.len() || self.sample.iter().any(|value| !value.is_finite()) {
            return Err(PipelineError::NotNumbers { output: format!("the picture after step {}", self.at + 1) });
        }
        self.at += 1;
        Ok(())
    }
}

impl<P: Painter> Pipeline for PaintingPipeline<P> {
    fn arithmetic(&self) -> Arithmetic {
        crate::pipeline::arithmetic()
    }

    fn memory_bytes(&self) -> u64 {
        self.weight_bytes
    }

    fn admit(&mut self, spec: &JobSpec) -> Result<Cost, JobError> {
        admission::check(spec, TASKS, &self.jobs)?;
        let job = self.take_on(spec)?;
        let prompt_tokens = job.asked.prompts.iter().map(|prompt| prompt.tokens).sum::<usize>() as u32;
        let cost = Cost { prompt_tokens, memory_bytes: job.bytes };
        self.jobs.insert(spec.id, job);
        Ok(cost)
    }

    fn step(&mut self, plan: &StepPlan, out: &mut dyn FnMut(JobId, JobEvent)) {
        for &(id, _) in &plan.work {
            if let Err(error) = self.work(id, out) {
                self.jobs.remove(&id);
                out(id, JobEvent::Failed { error: error.into() });
            }
        }
    }

    fn evict(&mut self, job: JobId) {
        self.jobs.remove(&job);
    }
}
