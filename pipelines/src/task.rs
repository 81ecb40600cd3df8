//! Tasks that are answered whole: a step reads one input of each planned job, and the last brings all results.
//!
//! What a head answers is Hugging Face's `transformers.pipelines`, with its defaults.

mod answers;
mod entities;
mod features;
mod fillings;
pub mod image;
mod labels;
pub mod masks;
mod objects;
pub mod series;
pub mod text;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use accel_models::ModelError;
use accel_models::model::{Model, Outputs};
use accel_models::usage::ExpertUsage;
use accel_protocol::limits::RESULT_BYTES;
use accel_protocol::{
    Arithmetic, ErrorCode, FinishReason, Input, JobError, JobEvent, JobId, JobSpec, Task, TaskOptions, TaskResult,
    Usage, frame,
};

use crate::admission;
use crate::error::PipelineError;
use crate::pipeline::{Cost, LOSSES, Pipeline, StepPlan};

/// How a model's head is asked, and what its answers mean.
pub trait Head: Send {
    /// What the model reads for one input.
    type Reading: Send;

    /// The tasks that it does, the first by custom.
    fn tasks(&self) -> &'static [Task];

    /// What the model reads for each input of a job.
    ///
    /// # Errors
    ///
    /// When the input is of another kind, or is none that the model can take.
    fn prepare(&self, task: Task, input: &Input) -> Result<Vec<Self::Reading>, PipelineError>;

    /// The tokens that are read.
    fn tokens(reading: &Self::Reading) -> usize;

    /// Asks the model.
    ///
    /// # Errors
    ///
    /// When it cannot be run.
    fn answer(
        &self,
        model: &Model,
        task: Task,
        options: &TaskOptions,
        reading: &Self::Reading,
    ) -> Result<TaskResult, PipelineError>;
}

/// A model that answers whole.
pub struct TaskPipeline<H: Head> {
    model: Model,
    head: H,
    weight_bytes: u64,
    jobs: BTreeMap<JobId, Job<H::Reading>>,
}

struct Job<R> {
    task: Task,
    options: TaskOptions,
    readings: Vec<R>,
    results: Vec<TaskResult>,
    result_bytes: usize,
    tokens: u32,
    /// Times that stages lost what they were sent of it.
    losses: usize,
    started: Option<Instant>,
}

impl<H: Head> TaskPipeline<H> {
    /// A pipeline without jobs.
    pub fn new(model: Model, head: H, weight_bytes: u64) -> Self {
        Self { model, head, weight_bytes, jobs: BTreeMap::new() }
    }

    /// Reads a job's next input. When it was the last, the job is done.
    fn work(&mut self, id: JobId, out: &mut dyn FnMut(JobId, JobEvent)) -> Result<(), JobError> {
        let arithmetic = self.arithmetic();
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        let started = *job.started.get_or_insert_with(|| {
            out(id, JobEvent::Started { prompt_tokens: job.tokens, arithmetic });
            Instant::now()
        });
        if let Some(reading) = job.readings.get(job.results.len()) {
            let result = match self.head.answer(&self.model, job.task, &job.options, reading) {
                // It is read again with the next step.
                Err(PipelineError::Model(ModelError::Lost { .. })) if job.losses < LOSSES => {
                    job.losses += 1;
                    return Ok(());
                }
                result => result?,
            };
            let bytes = frame::encode(&result).map(|bytes| bytes.len()).unwrap_or(usize::MAX);
            job.result_bytes = job.result_bytes.saturating_add(bytes);
            if job.result_bytes > RESULT_BYTES {
                let words =
                    format!("the results take over {RESULT_BYTES} bytes; ask for fewer texts or labels at once");
                return Err(JobError::new(ErrorCode::InvalidRequest, words));
            }
            job.results.push(result);
            let (done, total) = (job.results.len() as u32, job.readings.len() as u32);
            if done < total {
                out(id, JobEvent::Working { done, total });
            }
        }
        if job.results.len() == job.readings.len()
            && let Some(job) = self.jobs.remove(&id)
        {
            let prefill_ms = started.elapsed().as_secs_f64() * 1e3;
            let usage = Usage { prompt_tokens: job.tokens, prefill_ms, ..Usage::default() };
            let (text, reason) = (String::new(), FinishReason::Complete);
            out(id, JobEvent::Done { text, results: job.results, reason, usage });
        }
        Ok(())
    }
}

impl<H: Head> Pipeline for TaskPipeline<H> {
    fn arithmetic(&self) -> Arithmetic {
        crate::pipeline::arithmetic()
    }

    fn memory_bytes(&self) -> u64 {
        self.weight_bytes
    }

    fn admit(&mut self, spec: &JobSpec) -> Result<Cost, JobError> {
        admission::check(spec, self.head.tasks(), &self.jobs)?;
        let readings = self.head.prepare(spec.task, &spec.input)?;
        let tokens = readings.iter().map(H::tokens).sum::<usize>() as u32;
        let (task, options, results) = (spec.task, spec.options.clone(), Vec::new());
        let job = Job { task, options, readings, results, result_bytes: 0, tokens, losses: 0, started: None };
        self.jobs.insert(spec.id, job);
        Ok(Cost { prompt_tokens: tokens, memory_bytes: 0 })
    }

    fn step(&mut self, plan: &StepPlan, out: &mut dyn FnMut(JobId, JobEvent)) {
        for &(id, _) in &plan.work {
            if let Err(error) = self.work(id, out) {
                self.jobs.remove(&id);
                out(id, JobEvent::Failed { error });
            }
        }
    }

    fn evict(&mut self, job: JobId) {
        self.jobs.remove(&job);
    }

    fn expert_usage(&self) -> Option<Arc<ExpertUsage>> {
        self.model.expert_usage().cloned()
    }
}

/// The values of the outputs of these names.
///
/// # Errors
///
/// When one is not there, or is not made of numbers.
fn numbers<const N: usize>(outputs: &Outputs, names: [&str; N]) -> Result<[Vec<f32>; N], PipelineError> {
    let mut values = [const { Vec::new() }; N];
    for (values, name) in values.iter_mut().zip(names) {
        let found = outputs.iter().find(|(found, _)| found == name);
        let (_, tensor) = found.ok_or_else(|| ModelError::MissingInput { name: name.to_owned() })?;
        *values = tensor.to_vec().map_err(|source| ModelError::Tensor { place: name.to_owned(), source })?;
        if values.iter().any(|value| value.is_nan()) {
            return Err(PipelineError::NotNumbers { output: name.to_owned() });
        }
    }
    Ok(values)
}
