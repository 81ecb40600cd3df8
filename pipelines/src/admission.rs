//! What every pipeline asks of a job before it takes it on.

use std::collections::BTreeMap;

use accel_protocol::{Aggregation, Arithmetic, ErrorCode, JobError, JobId, JobSpec, Painting, Task, TaskOptions};

use crate::error::PipelineError;

/// What a job that writes takes memory for.
pub const KEPT: &str = "what is kept of the job's tokens";

/// Whether a job is one that the model does, has options of its task only, and is not here yet.
///
/// # Errors
///
/// In words for whoever asks for it.
pub fn check<T>(spec: &JobSpec, tasks: &[Task], jobs: &BTreeMap<JobId, T>) -> Result<(), JobError> {
    spec.generation.validate()?;
    if !tasks.contains(&spec.task) {
        return Err(wrong_task(spec.task, tasks));
    }
    if jobs.contains_key(&spec.id) {
        return Err(JobError::new(ErrorCode::InvalidRequest, format!("the job {} is here already", spec.id)));
    }
    check_options(spec.task, &spec.options)
}

/// Whether an answer that another peer has begun can go on here, with the very tokens that would have come there.
///
/// # Errors
///
/// When it was begun by another arithmetic.
pub fn check_prior(spec: &JobSpec, arithmetic: &Arithmetic) -> Result<(), JobError> {
    match &spec.arithmetic {
        Some(asked) if !spec.prior.is_empty() && asked != arithmetic => {
            let words = format!("the answer was begun by {}, and this peer computes {}", asked.0, arithmetic.0);
            Err(JobError::new(ErrorCode::Unsupported, words))
        }
        _ => Ok(()),
    }
}

/// Whether tokens are in a model's vocabulary.
///
/// # Errors
///
/// Naming the first that is not.
pub fn check_tokens(tokens: &[u32], vocabulary: usize) -> Result<(), JobError> {
    match tokens.iter().find(|&&id| id as usize >= vocabulary) {
        None => Ok(()),
        Some(id) => {
            let words = format!("the token {id} is outside the model's vocabulary of {vocabulary}");
            Err(JobError::new(ErrorCode::ModelInvalid, words))
        }
    }
}

/// Whether there is room for what a job needs, beside what is used of what is allowed.
///
/// # Errors
///
/// When there is not, saying how much is left.
pub fn check_room(
    what: impl FnOnce() -> String,
    needed_bytes: u64,
    used_bytes: u64,
    allowed_bytes: Option<u64>,
) -> Result<(), PipelineError> {
    match allowed_bytes.map(|allowed| allowed.saturating_sub(used_bytes)) {
        Some(left_bytes) if needed_bytes > left_bytes => {
            Err(PipelineError::NoRoom { what: what(), needed_bytes, left_bytes })
        }
        _ => Ok(()),
    }
}

/// Whether a task has all the options that are given.
///
/// # Errors
///
/// When one would be passed over.
fn check_options(task: Task, options: &TaskOptions) -> Result<(), JobError> {
    let TaskOptions { top_k, aggregation, threshold, language, painting } = options;
    let ranks = [Task::FillMask, Task::TextClassification, Task::QuestionAnswering, Task::ImageClassification];
    let given: [(&str, bool, &[Task]); 5] = [
        ("top_k", top_k.is_some(), &ranks),
        ("aggregation", *aggregation != Aggregation::None, &[Task::TokenClassification]),
        ("threshold", threshold.is_some(), &[Task::ObjectDetection, Task::MaskGeneration]),
        ("language", language.is_some(), &[Task::AutomaticSpeechRecognition]),
        ("painting", *painting != Painting::default(), &[Task::TextToImage]),
    ];
    match given.into_iter().find(|(_, given, tasks)| *given && !tasks.contains(&task)) {
        None => Ok(()),
        Some((name, _, tasks)) => {
            let tasks: Vec<&str> = tasks.iter().map(|task| task.name()).collect();
            let words = format!("{task} has no {name}; {} has", tasks.join(", "));
            Err(JobError::new(ErrorCode::InvalidRequest, words))
        }
    }
}

/// The error of a job that asks for what a model does not do.
pub fn wrong_task(asked: Task, tasks: &[Task]) -> JobError {
    let tasks = tasks.iter().map(|task| task.name()).collect::<Vec<_>>().join(" and ");
    JobError::new(ErrorCode::Unsupported, format!("this model does {tasks}, not {asked}"))
}
