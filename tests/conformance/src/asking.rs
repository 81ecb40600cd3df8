//! Models of task cases, loaded and asked as a node does.

use std::path::Path;
use std::sync::Arc;

use accel_backends::files::LocalFiles;
use accel_pipelines::{LoadOptions, Pipeline, StepPlan};
use accel_protocol::{ErrorCode, FinishReason, JobError, JobEvent, JobId, JobSpec, ModelRef, TaskResult};
use anyhow::{Context, Result};

use crate::task::{Question, TaskCase};

/// More steps than any question here takes.
const STEPS: usize = 4096;

/// A case of `tests/data/tasks`, and its model.
///
/// # Errors
///
/// When there is no such case, or its model cannot be loaded.
pub fn load(name: &str, options: &LoadOptions) -> Result<(TaskCase, Box<dyn Pipeline>)> {
    let case = TaskCase::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/tasks").join(name))?;
    let directory = tempfile::tempdir()?;
    case.write_model(directory.path())?;
    let pipeline = accel_pipelines::load(Arc::new(LocalFiles::open(directory.path())?), options);
    Ok((case, pipeline.with_context(|| name.to_owned())?))
}

/// What a node loads models with by default: no bound, and one thread.
pub fn unbounded() -> LoadOptions {
    LoadOptions { threads: 1, context_tokens: None, memory_bytes: None }
}

/// The job of a question.
///
/// # Errors
///
/// Never; it is that of a name that is parsed.
pub fn job(case: &TaskCase, question: &Question) -> Result<JobSpec> {
    let model: ModelRef = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy".parse()?;
    Ok(JobSpec {
        id: JobId([7; 16]),
        model,
        task: case.task,
        input: question.input.clone(),
        generation: question.generation.clone(),
        options: question.options.clone(),
        prior: Vec::new(),
        arithmetic: None,
        deadline_ms: 1,
    })
}

/// Does a job to its end, and answers its results and the events before the last.
///
/// # Errors
///
/// When the job fails.
pub fn answer(pipeline: &mut dyn Pipeline, spec: &JobSpec) -> Result<(Vec<TaskResult>, Vec<JobEvent>), JobError> {
    pipeline.admit(spec)?;
    let mut events = Vec::new();
    for _ in 0..STEPS {
        pipeline.step(&StepPlan { work: vec![(spec.id, 128)] }, &mut |_, event| events.push(event));
        match events.pop_if(|event| event.is_last()) {
            Some(JobEvent::Done { results, reason: FinishReason::Complete, .. }) => return Ok((results, events)),
            Some(JobEvent::Failed { error }) => return Err(error),
            Some(other) => return Err(JobError::new(ErrorCode::Internal, format!("{other:?}"))),
            None => {}
        }
    }
    Err(JobError::new(ErrorCode::Internal, "no end"))
}
