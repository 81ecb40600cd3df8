//! Answers as server-sent events, ending in `[DONE]`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use accel_protocol::{JobError, Usage};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, BoxStream, SelectAll, StreamExt};
use serde_json::Value;

use super::{Refusal, finish_reason, usage_of};
use crate::http::answers::{Answer, Likely, Part};

/// So often a client hears that an answer is still worked on.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The form of the pieces of an answer.
pub(super) trait Chunks: Send + 'static {
    /// What comes before the first token, if anything does.
    fn begin(&self, index: usize) -> Option<Value>;
    /// A piece of the text.
    fn text(&mut self, index: usize, text: &str, likely: Option<&Likely>) -> Value;
    /// The end of one answer.
    fn end(&self, index: usize, reason: &str) -> Value;
    /// What all took.
    fn usage(&self, usage: Value) -> Value;
    /// How many prompts the answers are to.
    fn prompts(&self) -> usize;
}

/// The answers, each piece as it comes. What is wrong before anything has begun is a refusal as any other; what goes
/// wrong later is the last event.
pub(super) async fn chunks(answers: Vec<Answer>, form: impl Chunks, include_usage: bool) -> Result<Response, Refusal> {
    let each = answers.into_iter().enumerate();
    let numbered = each.map(|(index, answer)| answer.parts().map(move |part| (index, part)).boxed());
    let mut parts: SelectAll<BoxStream<'static, (usize, Result<Part, JobError>)>> = numbered.collect();
    let first = match parts.next().await {
        Some((_, Err(error))) => return Err(error.into()),
        Some((index, Ok(part))) => VecDeque::from([(index, Ok(part))]),
        None => VecDeque::new(),
    };
    let state = Streaming { parts, ready: first, form, include_usage, usage: Vec::new(), over: false };
    let events = stream::unfold(state, |mut state| async move {
        let told = state.next().await?;
        Some((stream::iter(told.into_iter().map(Ok::<_, Infallible>)), state))
    });
    Ok(Sse::new(events.flatten()).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

struct Streaming<F> {
    parts: SelectAll<BoxStream<'static, (usize, Result<Part, JobError>)>>,
    ready: VecDeque<(usize, Result<Part, JobError>)>,
    form: F,
    include_usage: bool,
    usage: Vec<(usize, Usage)>,
    over: bool,
}

impl<F: Chunks> Streaming<F> {
    async fn next(&mut self) -> Option<Vec<Event>> {
        if self.over {
            return None;
        }
        let next = match self.ready.pop_front() {
            Some(ready) => Some(ready),
            None => self.parts.next().await,
        };
        let Some((index, part)) = next else {
            self.over = true;
            return Some(self.finish());
        };
        let told = match part {
            Ok(Part::Fetching(done, total)) => {
                // A comment, which clients pass over and people who look see.
                return Some(vec![Event::default().comment(format!("fetching the model: {done} of {total} bytes"))]);
            }
            Ok(Part::Begun { .. }) => self.form.begin(index).into_iter().collect(),
            Ok(Part::Token { id, text, logprob }) => {
                let likely = logprob.map(|of| Likely::of(id, &text, of));
                if text.is_empty() && likely.is_none() {
                    return Some(Vec::new());
                }
                vec![self.form.text(index, &text, likely.as_ref())]
            }
            Ok(Part::End { text, reason, usage, .. }) => {
                self.usage.push((index, usage));
                let held_back = (!text.is_empty()).then(|| self.form.text(index, &text, None));
                let end = self.form.end(index, finish_reason(reason));
                held_back.into_iter().chain([end]).collect()
            }
            Err(error) => {
                self.over = true;
                return Some(vec![data(&Refusal::from(error).envelope())]);
            }
        };
        Some(told.into_iter().map(|piece| data(&self.without_usage(piece))).collect())
    }

    /// With usage to come at the end, every other piece says that it has none.
    fn without_usage(&self, mut piece: Value) -> Value {
        if self.include_usage {
            piece["usage"] = Value::Null;
        }
        piece
    }

    /// What comes after all answers.
    fn finish(&mut self) -> Vec<Event> {
        let mut last = Vec::new();
        if self.include_usage {
            self.usage.sort_by_key(|(index, _)| *index);
            let all: Vec<Usage> = self.usage.iter().map(|(_, usage)| *usage).collect();
            last.push(data(&self.form.usage(usage_of(&all, self.form.prompts()))));
        }
        last.push(Event::default().data("[DONE]"));
        last
    }
}

/// JSON has no line ends, so that it is one line of data.
fn data(value: &Value) -> Event {
    Event::default().data(value.to_string())
}
