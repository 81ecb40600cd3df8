//! Real models, against what transformers computes from the same files in f32.
//!
//! The tokens are compared teacher-forced: after each token the reference's own is taken, so one difference does not
//! hide the rest. Where the two likeliest tokens of the reference are closer than [`GAP`], either may come.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that fails should say where")]

use std::path::PathBuf;
use std::sync::Arc;

use accel_backends::files::LocalFiles;
use accel_pipelines::{LoadOptions, Pipeline, StepPlan, load};
use accel_protocol::{FinishReason, Generation, Input, JobEvent, JobId, JobSpec, Message, Task, TaskOptions};
use serde::Deserialize;

const GAP: f64 = 0.1;
/// Any CID: the pipeline is given the model's files.
const MODEL: &str = "bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";

/// The case whose prompt is longer than windows.
const LONG: &str = "long";

/// A file, by the variable that names it, and what it should answer.
struct Real {
    variable: &'static str,
    reference: &'static str,
}

const SMOLLM2: Real =
    Real { variable: "ACCEL_TEST_MODEL", reference: include_str!("../../data/smollm2-135m-instruct-q4_1.tokens.json") };

/// Layers that see near tokens among others that see all, a vocabulary of SentencePiece, and matrices in four formats.
const GEMMA3: Real =
    Real { variable: "ACCEL_TEST_GEMMA", reference: include_str!("../../data/gemma-3-270m-q4_k_m.tokens.json") };

#[derive(Deserialize)]
struct Reference {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    messages: Option<Vec<Message>>,
    rendered: String,
    prompt_ids: Vec<u32>,
    tokens: Vec<u32>,
    gaps: Vec<f64>,
}

impl Case {
    fn input(&self) -> Input {
        match &self.messages {
            Some(messages) => Input::Chat(messages.clone()),
            None => Input::Text(self.rendered.clone()),
        }
    }
}

impl Real {
    fn pipeline(&self) -> Box<dyn Pipeline> {
        let path = std::env::var_os(self.variable).map(PathBuf::from);
        let path = path.unwrap_or_else(|| panic!("{} must name a model; tests/run sets it", self.variable));
        let files = LocalFiles::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        load(Arc::new(files), &LoadOptions { threads: 2, context_tokens: None, memory_bytes: None }).unwrap()
    }

    fn cases(&self) -> Vec<Case> {
        serde_json::from_str::<Reference>(self.reference).unwrap().cases
    }
}

fn job(input: Input, prior: &[u32], max_tokens: usize, ignore_eos: bool) -> JobSpec {
    JobSpec {
        id: JobId([7; 16]),
        model: MODEL.parse().unwrap(),
        task: Task::TextGeneration,
        input,
        generation: Generation { max_tokens: max_tokens as u32, ignore_eos, ..Generation::default() },
        options: TaskOptions::default(),
        prior: prior.to_vec(),
        arithmetic: None,
        deadline_ms: 60_000,
    }
}

fn answer(pipeline: &mut dyn Pipeline, spec: &JobSpec) -> Vec<JobEvent> {
    pipeline.admit(spec).unwrap();
    let mut events = Vec::new();
    while !events.last().is_some_and(JobEvent::is_last) {
        pipeline.step(&StepPlan { work: vec![(spec.id, 512)] }, &mut |_, event| events.push(event));
    }
    events
}

fn tokens(events: &[JobEvent]) -> Vec<u32> {
    let token = |event: &JobEvent| match event {
        JobEvent::Token { id, .. } => Some(*id),
        _ => None,
    };
    events.iter().filter_map(token).collect()
}

fn text(events: &[JobEvent]) -> String {
    let text = |event: &JobEvent| match event {
        JobEvent::Token { text, .. } | JobEvent::Done { text, .. } => text.clone(),
        _ => String::new(),
    };
    events.iter().map(text).collect()
}

#[test]
fn smollm2_answers_the_reference_tokens() {
    answers_are_the_reference_tokens(&SMOLLM2, |_| true);
}

#[test]
fn gemma3_answers_the_reference_tokens() {
    answers_are_the_reference_tokens(&GEMMA3, |name| name != LONG);
}

#[test]
fn gemma3_loses_sight_of_what_is_far_as_the_reference_does() {
    answers_are_the_reference_tokens(&GEMMA3, |name| name == LONG);
}

fn answers_are_the_reference_tokens(real: &Real, chosen: impl Fn(&str) -> bool) {
    let mut pipeline = real.pipeline();
    let mut close = Vec::new();
    for case in real.cases().into_iter().filter(|case| chosen(&case.name)) {
        let mut known = 0;
        while known < case.tokens.len() {
            let spec = job(case.input(), &case.tokens[..known], case.tokens.len(), true);
            let events = answer(&mut *pipeline, &spec);
            let Some(JobEvent::Done { usage, .. }) = events.last() else { panic!("found {:?}", events.last()) };
            assert_eq!(usage.prompt_tokens as usize, case.prompt_ids.len(), "{}", case.name);
            let found = tokens(&events);
            assert_eq!(found.len(), case.tokens.len() - known, "{}", case.name);
            let differs = found.iter().zip(&case.tokens[known..]).position(|(found, expected)| found != expected);
            let Some(place) = differs else { break };
            let at = known + place;
            let (gap, expected) = (case.gaps[at], case.tokens[at]);
            assert!(gap < GAP, "{}[{at}]: expected {expected} with gap {gap}, found {}", case.name, found[place]);
            close.push(format!("{}[{at}]: gap {gap}", case.name));
            known = at + 1;
        }
    }
    println!("the second likeliest token came at {} places: {close:?}", close.len());
}

#[test]
fn the_model_knows_the_capital_of_france() {
    let question = SMOLLM2.cases().into_iter().find(|case| case.name == "capital").unwrap();
    let events = answer(&mut *SMOLLM2.pipeline(), &job(question.input(), &[], 32, false));
    assert_eq!(text(&events), "The capital of France is Paris.");
    let Some(JobEvent::Done { reason, usage, .. }) = events.last() else { panic!("found {:?}", events.last()) };
    assert_eq!((*reason, usage.completion_tokens), (FinishReason::EndOfText, 7));
    assert_eq!(usage.prompt_tokens as usize, question.prompt_ids.len());
    let prompt_rate = f64::from(usage.prompt_tokens) / usage.prefill_ms * 1e3;
    println!("prompt {prompt_rate:.0} tokens/s, answer {:.1} tokens/s", 7.0 / usage.decode_ms * 1e3);
}
