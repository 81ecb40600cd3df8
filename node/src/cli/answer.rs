//! An answer as it comes in: shown piece by piece, and summed up at the end.

use std::time::{Duration, Instant};

use accel_protocol::{
    ErrorCode, EventRecord, FinishReason, JobError, JobEvent, JobId, TaskResult, TokenLogprob, Usage,
};
use futures::{Stream, StreamExt};
use serde::Serialize;

use super::CliError;
use super::interrupts::Interrupts;
use super::output::Output;
use crate::api::{Api, ApiError, JobBody};

/// What a daemon gets to cancel a job before the command ends without it.
const CALL_OFF: Duration = Duration::from_secs(5);

/// A whole answer, with what it took.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Answer {
    /// The job.
    pub job: Option<JobId>,
    /// The text.
    pub text: String,
    /// What a task other than generation gives, for each of its inputs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub results: Vec<TaskResult>,
    /// Why it ends.
    pub finish_reason: Option<FinishReason>,
    /// What it took.
    pub usage: Usage,
    /// Log probabilities, where asked for: token id, text, probabilities.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<(u32, String, TokenLogprob)>,
    /// Milliseconds from submission to the first token, fetching and loading the model included.
    pub first_token_ms: Option<f64>,
    /// Milliseconds from the loaded model to the first token.
    pub prefill_ms: Option<f64>,
    /// Tokens a second after the first.
    pub tokens_per_second: Option<f64>,
    /// The arithmetic that answered.
    pub arithmetic: Option<String>,
    /// What the worker fetched for it.
    pub fetched: Option<Fetched>,
    /// Moves to other peers on the way.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub moves: Vec<Move>,
    /// The peer that answered last.
    pub answered_by: Option<String>,
}

/// What a worker fetched.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Fetched {
    /// Bytes that came from peers.
    pub bytes: u64,
    /// Peers that sent them.
    pub peers: u32,
    /// Seconds it took.
    pub seconds: f64,
}

/// A job that went on elsewhere.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Move {
    /// The peer that went on.
    pub peer: String,
    /// Tokens that it read back in.
    pub prior_tokens: u32,
    /// Whether the answer is what it would have been.
    pub exact: bool,
}

/// Submits a job and shows its answer as it comes. The job is cancelled when nobody waits for the answer any more.
pub(super) async fn ask(
    api: &Api,
    mut body: JobBody,
    interrupts: &mut Interrupts,
    output: &Output,
) -> Result<Answer, CliError> {
    let id = JobId(rand::random());
    body.id = Some(id);
    let begun = Instant::now();
    let answer = interrupts.unless(async { read(api.submit(&body).await?, begun, output).await }).await;
    if let Err(CliError::Interrupted | CliError::Closed | CliError::Failed { .. }) = &answer {
        call_off(api, id, output).await;
    }
    let mut answer = answer?;
    answer.job = Some(id);
    // The answer is here; who gave it is worth no error.
    answer.answered_by = interrupts.unless(who_answered(api, id)).await.ok();
    Ok(answer)
}

async fn who_answered(api: &Api, id: JobId) -> Result<String, CliError> {
    match api.job(id).await?.peer {
        Some(peer) => Ok(peer),
        None => Ok(api.node().await?.peer),
    }
}

async fn call_off(api: &Api, id: JobId, output: &Output) {
    match tokio::time::timeout(CALL_OFF, api.cancel(id)).await {
        // The signal may have come before the submission.
        Ok(Ok(_) | Err(ApiError::Refused(JobError { code: ErrorCode::UnknownJob, .. }))) => {}
        Ok(Err(error)) => output.note(&format!("the job {id} was not cancelled: {error}")),
        Err(_) => output.note(&format!("the job {id} was not cancelled: the daemon does not answer")),
    }
}

async fn read(
    mut events: impl Stream<Item = Result<EventRecord, ApiError>> + Unpin,
    begun: Instant,
    output: &Output,
) -> Result<Answer, CliError> {
    let mut answer = Answer::default();
    let mut clock = Clock { begun, loaded: None, first: None };
    let mut bar = None;
    while let Some(record) = events.next().await {
        let event = record?.event;
        match event {
            JobEvent::Fetching { done_bytes, total_bytes, .. } => {
                bar.get_or_insert_with(|| output.bytes_bar("fetching")).show(done_bytes, total_bytes);
                continue;
            }
            // After a move, the bar would stand in the middle of the answer.
            JobEvent::Reading { done_tokens, total_tokens } if clock.first.is_none() => {
                bar.get_or_insert_with(|| output.tokens_bar("reading")).show(done_tokens.into(), total_tokens.into());
                continue;
            }
            JobEvent::Working { done, total } if clock.first.is_none() => {
                bar.get_or_insert_with(|| output.steps_bar("working")).show(done.into(), total.into());
                continue;
            }
            _ => bar = None,
        }
        if take(&mut answer, &mut clock, event, output)? {
            return Ok(answer);
        }
    }
    Err(JobError::new(ErrorCode::Internal, "the answer broke off without an end").into())
}

struct Clock {
    begun: Instant,
    loaded: Option<Instant>,
    first: Option<Instant>,
}

/// Adds one event to the answer; `true` when it was the last.
fn take(answer: &mut Answer, clock: &mut Clock, event: JobEvent, output: &Output) -> Result<bool, CliError> {
    let ms = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1e3;
    match event {
        JobEvent::Fetching { .. } | JobEvent::Reading { .. } | JobEvent::Working { .. } => {}
        JobEvent::Fetched { bytes, peers, elapsed_ms } => {
            answer.fetched = Some(Fetched { bytes, peers, seconds: elapsed_ms as f64 / 1e3 });
        }
        JobEvent::Started { arithmetic, .. } => {
            clock.loaded = Some(Instant::now());
            answer.arithmetic = Some(arithmetic.0);
        }
        JobEvent::Moved { peer, prior_tokens, exact } => {
            if !exact {
                output.note("\n(the answer goes on with another arithmetic: it may differ from here on)");
            }
            answer.moves.push(Move { peer, prior_tokens, exact });
        }
        JobEvent::Token { id, text, logprob, .. } => {
            let now = Instant::now();
            if clock.first.is_none() {
                clock.first = Some(now);
                answer.first_token_ms = Some(ms(clock.begun, now));
                answer.prefill_ms = clock.loaded.map(|loaded| ms(loaded, now));
            }
            show(answer, &text, output)?;
            if let Some(logprob) = logprob {
                answer.logprobs.push((id, text, logprob));
            }
        }
        JobEvent::Done { text, results, reason, usage } => {
            show(answer, &text, output)?;
            answer.results = results;
            answer.finish_reason = Some(reason);
            answer.usage = usage;
            let decode_s = clock.first.map_or(0.0, |first| first.elapsed().as_secs_f64());
            if usage.completion_tokens > 1 && decode_s > 0.0 {
                answer.tokens_per_second = Some(f64::from(usage.completion_tokens - 1) / decode_s);
            }
            return Ok(true);
        }
        JobEvent::Failed { error } => return Err(error.into()),
        JobEvent::Cancelled => return Err(CliError::Cancelled),
    }
    Ok(false)
}

fn show(answer: &mut Answer, text: &str, output: &Output) -> Result<(), CliError> {
    answer.text.push_str(text);
    if output.is_json() { Ok(()) } else { output.answer(text) }
}
