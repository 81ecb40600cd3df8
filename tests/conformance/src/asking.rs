//! Models of task cases, loaded and asked as a node does.

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

use accel_backends::files::LocalFiles;
use accel_pipelines::{LoadOptions, Pipeline, StepPlan};
use accel_protocol::{ErrorCode, FinishReason, JobError, JobEvent, JobId, JobSpec, ModelRef, Task, TaskResult};
use anyhow::{Context, Result, anyhow, bail, ensure};
use cid::Cid;

use crate::task::{Question, TaskCase, compare};

/// More steps than any question here takes.
const STEPS: usize = 4096;

/// A case of `tests/data/tasks`.
///
/// # Errors
///
/// When there is no such case.
pub fn case(name: &str) -> Result<TaskCase> {
    TaskCase::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/tasks").join(name))
}

/// A case of `tests/data/tasks`, and its model.
///
/// # Errors
///
/// When there is no such case, or its model cannot be loaded.
pub fn load(name: &str, options: &LoadOptions) -> Result<(TaskCase, Box<dyn Pipeline>)> {
    let case = case(name)?;
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
pub fn job(task: Task, question: &Question) -> JobSpec {
    JobSpec {
        id: JobId([7; 16]),
        model: ModelRef { cid: Cid::default(), path: String::new() },
        task,
        input: question.input.clone(),
        generation: question.generation.clone(),
        options: question.options.clone(),
        prior: Vec::new(),
        arithmetic: None,
        deadline_ms: 1,
    }
}

/// What was answered, and why the answer ends.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// What the task makes.
    pub results: Vec<TaskResult>,
    /// What was written.
    pub text: String,
    /// The same in tokens, without those that another peer has said.
    pub tokens: Vec<u32>,
    /// Why it ends.
    pub reason: FinishReason,
    /// Steps in which there was a token.
    pub steps: usize,
    /// What else was told on the way.
    pub events: Vec<JobEvent>,
}

/// Does a job to its end.
///
/// # Errors
///
/// When the job fails, or tells its tokens otherwise than once and in order, or does not count them.
pub fn answer(pipeline: &mut dyn Pipeline, spec: &JobSpec) -> Result<Said, JobError> {
    let wrong = |what: String| Err(JobError::new(ErrorCode::Internal, what));
    pipeline.admit(spec)?;
    let (mut text, mut tokens, mut steps, mut events) = (String::new(), Vec::new(), 0, Vec::new());
    for _ in 0..STEPS {
        let mut told = Vec::new();
        pipeline.step(&StepPlan { work: vec![(spec.id, 128)] }, &mut |_, event| told.push(event));
        let before = tokens.len();
        for event in told {
            match event {
                JobEvent::Token { index, id, text: piece, .. } => {
                    if index as usize != spec.prior.len() + tokens.len() {
                        return wrong(format!("the token {index} comes after {} new ones", tokens.len()));
                    }
                    tokens.push(id);
                    text += &piece;
                }
                JobEvent::Done { text: rest, results, reason, usage } => {
                    if usage.completion_tokens as usize != spec.prior.len() + tokens.len() {
                        return wrong(format!("{usage:?} after {} new tokens", tokens.len()));
                    }
                    steps += usize::from(tokens.len() > before);
                    return Ok(Said { results, text: text + &rest, tokens, reason, steps, events });
                }
                JobEvent::Failed { error } => return Err(error),
                event => events.push(event),
            }
        }
        steps += usize::from(tokens.len() > before);
    }
    wrong("no end".into())
}

/// Asks with tokens that another peer has said already.
///
/// # Errors
///
/// As [`answer`].
pub fn ask(pipeline: &mut dyn Pipeline, task: Task, question: &Question, prior: &[u32]) -> Result<Said, JobError> {
    let arithmetic = (!prior.is_empty()).then(|| pipeline.arithmetic());
    answer(pipeline, &JobSpec { prior: prior.to_vec(), arithmetic, ..job(task, question) })
}

/// Asks, and compares the answer with what the question expects.
///
/// # Errors
///
/// When it is another.
pub fn expect(pipeline: &mut dyn Pipeline, task: Task, question: &Question) -> Result<Said> {
    let about = || format!("{} {:?} {:?}", question.written, question.options, question.generation);
    let said = ask(pipeline, task, question, &[]).map_err(|error| anyhow!("{}: {error:?}", about()))?;
    compare(&said.results, &question.expected).with_context(about)?;
    let expected = question.text.as_deref().unwrap_or_default();
    ensure!(said.text == expected, "{}: expected {expected:?}, found {said:?}", about());
    ensure!(task.is_generation() || said.reason == FinishReason::Complete, "{}: {said:?}", about());
    Ok(said)
}

/// Asks every question of a case. What was written goes on from wherever another peer left it.
///
/// # Errors
///
/// When an answer is not the one expected.
pub fn expect_all(name: &str) -> Result<Vec<Said>> {
    let (case, mut pipeline) = load(name, &unbounded())?;
    ensure!(!case.questions.is_empty(), "{name}: no questions");
    let one = |question: &Question| {
        let said = expect(&mut *pipeline, case.task, question)?;
        let places = [1, said.tokens.len() / 2, said.tokens.len()];
        for place in places.into_iter().filter(|&place| place > 0 && place <= said.tokens.len()) {
            let rest = ask(&mut *pipeline, case.task, question, &said.tokens[..place])
                .map_err(|error| anyhow!("after {place} tokens: {error:?}"))?;
            ensure!(rest.tokens == said.tokens[place..], "after {place} tokens of {said:?}: {rest:?}");
            ensure!(said.text.ends_with(&rest.text) && rest.reason == said.reason, "{said:?}: {rest:?}");
        }
        Ok(said)
    };
    case.questions.iter().map(one).collect::<Result<_>>().with_context(|| name.to_owned())
}

/// Whether an error has that code, and those words in it.
///
/// # Errors
///
/// When there is none, or another.
pub fn expect_refusal<T: Debug>(found: Result<T, JobError>, code: ErrorCode, words: &str) -> Result<()> {
    match found {
        Ok(found) => bail!("expected an error about {words}, found {found:?}"),
        Err(error) => {
            ensure!(error.code == code && error.message.contains(words), "expected {code:?} {words}: {error:?}");
            Ok(())
        }
    }
}
