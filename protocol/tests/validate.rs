//! Jobs at and just over each bound.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test, helpers included")]

use accel_protocol::limits::{
    ANSWER_TOKENS, ARITHMETIC_BYTES, BLOB_INPUT_BYTES, CHAT_MESSAGES, DEADLINE_MS_MAX, FRAME_BYTES, INLINE_INPUT_BYTES,
    STOP_TEXT_BYTES, STOP_TEXTS, TOP_LOGPROBS,
};
use accel_protocol::{
    Arithmetic, ErrorCode, Generation, Input, JobId, JobRequest, JobSpec, Message, ModelRef, Role, Task, TaskOptions,
    frame,
};

const MODEL: &str = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";

fn model() -> ModelRef {
    MODEL.parse().unwrap()
}

fn job() -> JobSpec {
    JobSpec {
        id: JobId([7; 16]),
        model: model(),
        task: Task::TextGeneration,
        input: Input::Text("Once".into()),
        generation: Generation::default(),
        options: TaskOptions::default(),
        prior: Vec::new(),
        arithmetic: None,
        deadline_ms: 60_000,
    }
}

/// The words of the error that a change to a good job causes.
fn refused(change: impl FnOnce(&mut JobSpec)) -> String {
    let mut job = job();
    change(&mut job);
    let error = job.validate().expect_err("the job should be refused");
    assert_eq!(error.code, ErrorCode::InvalidRequest);
    error.message
}

fn accepted(change: impl FnOnce(&mut JobSpec)) {
    let mut job = job();
    change(&mut job);
    job.validate().unwrap();
}

fn message(content: &str) -> Message {
    Message { role: Role::User, content: content.into() }
}

#[test]
fn defaults_are_accepted() {
    accepted(|_| ());
    Generation::default().validate().unwrap();
}

#[test]
fn numbers_out_of_range_are_refused_by_name() {
    assert_eq!(refused(|job| job.generation.max_tokens = 0), "max_tokens: expected 1 to 131072, found 0");
    assert!(refused(|job| job.generation.max_tokens = ANSWER_TOKENS + 1).starts_with("max_tokens:"));
    assert_eq!(refused(|job| job.generation.top_p = f32::NAN), "top_p: expected 0 to 1, found NaN");
    assert_eq!(refused(|job| job.generation.min_p = 1.5), "min_p: expected 0 to 1, found 1.5");
    for temperature in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.1] {
        assert!(refused(|job| job.generation.temperature = temperature).starts_with("temperature:"));
    }
    for penalty in [f32::NAN, f32::INFINITY, 0.0, -1.0] {
        assert!(refused(|job| job.generation.repetition_penalty = penalty).starts_with("repetition_penalty:"));
    }
    assert_eq!(refused(|job| job.generation.logprobs = Some(TOP_LOGPROBS + 1)), "logprobs: expected 0 to 20, found 21");
    assert!(refused(|job| job.deadline_ms = 0).starts_with("deadline_ms:"));
    assert!(refused(|job| job.deadline_ms = DEADLINE_MS_MAX + 1).starts_with("deadline_ms:"));
}

#[test]
fn stop_texts_are_bounded_and_never_empty() {
    accepted(|job| job.generation.stop = vec!["x".repeat(STOP_TEXT_BYTES); STOP_TEXTS]);
    assert!(refused(|job| job.generation.stop = vec!["x".into(); STOP_TEXTS + 1]).starts_with("stop texts:"));
    assert!(refused(|job| job.generation.stop = vec![String::new()]).starts_with("bytes of a stop text:"));
    assert!(refused(|job| job.generation.stop = vec!["x".repeat(STOP_TEXT_BYTES + 1)]).contains("found 257"));
}

#[test]
fn inputs_are_bounded_wherever_they_come_from() {
    accepted(|job| job.input = Input::Text("x".repeat(INLINE_INPUT_BYTES)));
    assert!(refused(|job| job.input = Input::Text("x".repeat(INLINE_INPUT_BYTES + 1))).starts_with("input bytes:"));
    assert!(refused(|job| job.input = Input::Chat(Vec::new())).starts_with("messages: expected 1 to"));
    assert!(refused(|job| job.input = Input::Chat(vec![message(""); CHAT_MESSAGES + 1])).starts_with("messages:"));
    let half = "x".repeat(INLINE_INPUT_BYTES / 2 + 1);
    assert!(refused(|job| job.input = Input::Chat(vec![message(&half), message(&half)])).starts_with("input bytes:"));

    accepted(|job| job.input = Input::Blob(MODEL.into()));
    assert!(refused(|job| job.input = Input::Blob("../../etc".into())).starts_with("input blob: expected a CID"));
    let large = JobSpec { input: Input::Text("x".repeat(INLINE_INPUT_BYTES + 1)), ..job() };
    large.input.validate_blob_content().unwrap();
    large.validate_local().unwrap();
    let too_large = JobSpec { input: Input::Text("x".repeat(BLOB_INPUT_BYTES as usize + 1)), ..job() };
    too_large.validate_local().expect_err("an input over every bound should be refused");
    Input::Blob(MODEL.into()).validate_blob_content().expect_err("a blob inside a blob should be refused");
}

#[test]
fn what_was_produced_already_fits_what_is_asked_for() {
    accepted(|job| job.prior = vec![1; job.generation.max_tokens as usize]);
    assert!(refused(|job| job.prior = vec![1; job.generation.max_tokens as usize + 1]).starts_with("prior tokens:"));
    let long = Arithmetic("x".repeat(ARITHMETIC_BYTES + 1));
    assert!(refused(|job| job.arithmetic = Some(long)).starts_with("arithmetic bytes:"));
}

#[test]
fn the_largest_job_that_is_valid_fits_a_frame() {
    let mut job = job();
    job.generation.max_tokens = ANSWER_TOKENS;
    job.generation.stop = vec!["x".repeat(STOP_TEXT_BYTES); STOP_TEXTS];
    job.prior = vec![u32::MAX; ANSWER_TOKENS as usize];
    let content = "x".repeat(INLINE_INPUT_BYTES / CHAT_MESSAGES);
    job.input = Input::Chat(vec![message(&content); CHAT_MESSAGES]);
    job.validate().unwrap();
    let request = JobRequest::Submit(Box::new(job));
    let bytes = frame::encode(&request).unwrap();
    assert!(bytes.len() <= FRAME_BYTES);
    assert_eq!(frame::decode::<JobRequest>(&bytes).unwrap(), request);
}
