//! Tasks against what `transformers.pipeline` answered, each with a small model.

use std::path::Path;
use std::sync::Arc;

use accel_backends::files::LocalFiles;
use accel_conformance::asking;
use accel_conformance::task::{Question, TaskCase, compare};
use accel_pipelines::{LoadOptions, Pipeline, StepPlan};
use accel_protocol::{
    ErrorCode, FileBytes, FinishReason, Generation, Input, JobError, JobEvent, JobId, JobSpec, ModelRef, Task,
    TaskOptions, TaskResult,
};
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

fn load(name: &str) -> Result<(TaskCase, Box<dyn Pipeline>)> {
    asking::load(name, &asking::unbounded())
}

fn ask(
    pipeline: &mut dyn Pipeline,
    task: Task,
    input: &Input,
    options: TaskOptions,
) -> Result<Vec<TaskResult>, JobError> {
    let model: Result<ModelRef, _> = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy".parse();
    let spec = JobSpec {
        id: JobId([7; 16]),
        model: model.map_err(|error| JobError::new(ErrorCode::Internal, error))?,
        task,
        input: input.clone(),
        generation: Generation::default(),
        options,
        prior: Vec::new(),
        arithmetic: None,
        deadline_ms: 1,
    };
    pipeline.admit(&spec)?;
    // An input that is read takes a step, and there are never more inputs than texts.
    for _ in 0..64 {
        let mut last = None;
        pipeline.step(&StepPlan { work: vec![(spec.id, 128)] }, &mut |_, event| last = Some(event));
        match last {
            Some(JobEvent::Done { results, reason: FinishReason::Complete, .. }) => return Ok(results),
            Some(JobEvent::Failed { error }) => return Err(error),
            _ => {}
        }
    }
    Err(JobError::new(ErrorCode::Internal, "no end"))
}

fn answers_as_the_pipeline(name: &str) -> Result<()> {
    let (case, mut pipeline) = load(name)?;
    ensure!(!case.questions.is_empty());
    for Question { input, written, options, expected, .. } in &case.questions {
        let found = ask(&mut *pipeline, case.task, input, options.clone())?;
        compare(&found, expected).with_context(|| format!("{name}: {written} {options:?}"))?;
    }
    Ok(())
}

#[test]
fn texts_get_labels() -> Result<()> {
    answers_as_the_pipeline("text-classification")
}

#[test]
fn texts_get_labels_of_a_decoder_each_for_itself() -> Result<()> {
    answers_as_the_pipeline("text-classification-decoder")
}

#[test]
fn an_encoder_with_a_decoder_labels_texts() -> Result<()> {
    answers_as_the_pipeline("text-classification-bart")
}

#[test]
fn an_encoder_with_a_decoder_answers_questions() -> Result<()> {
    answers_as_the_pipeline("question-answering-bart")
}

#[test]
fn parts_of_texts_get_labels_however_they_are_put_together() -> Result<()> {
    answers_as_the_pipeline("token-classification")
}

#[test]
fn questions_are_answered_also_from_texts_over_a_window() -> Result<()> {
    answers_as_the_pipeline("question-answering")
}

#[test]
fn masks_are_filled() -> Result<()> {
    answers_as_the_pipeline("fill-mask")
}

#[test]
fn tokens_have_features() -> Result<()> {
    answers_as_the_pipeline("feature-extraction")
}

#[test]
fn texts_become_vectors() -> Result<()> {
    answers_as_the_pipeline("embedding")
}

#[test]
fn pictures_get_labels() -> Result<()> {
    answers_as_the_pipeline("image-classification")
}

/// Texts with their vectors, computed by transformers in f32.
#[derive(Deserialize)]
struct Embeddings {
    rows: Vec<Embedded>,
}

#[derive(Deserialize)]
struct Embedded {
    text: String,
    vector: Vec<f64>,
}

/// Texts of one token, of many scripts, and over the model's length.
#[test]
fn a_real_model_embeds_as_its_reference() -> Result<()> {
    let directory =
        std::env::var_os("ACCEL_TEST_EMBEDDER").context("ACCEL_TEST_EMBEDDER: run the tests by tests/run")?;
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/all-minilm-l6-v2.embeddings.json");
    let expected: Embeddings = serde_json::from_slice(&std::fs::read(data)?)?;
    let options = LoadOptions { threads: 1, context_tokens: None, memory_bytes: None };
    let mut pipeline = accel_pipelines::load(Arc::new(LocalFiles::open(directory)?), &options)?;
    let texts = Input::Texts(expected.rows.iter().map(|row| row.text.clone()).collect());
    let found = ask(&mut *pipeline, Task::Embedding, &texts, TaskOptions::default())?;
    ensure!(found.len() == expected.rows.len());
    for (found, Embedded { text, vector }) in found.iter().zip(&expected.rows) {
        let TaskResult::Features { values, .. } = found else { bail!("{found:?}") };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let values: Vec<f64> = values.iter().copied().map(f64::from).collect();
        ensure!(values.len() == vector.len());
        let cosine = dot(&values, vector) / (dot(&values, &values) * dot(vector, vector)).sqrt();
        ensure!(cosine > 0.999_99, "{text:?}: {cosine}");
    }
    Ok(())
}

/// What is asked wrongly is refused in words, and the next job is answered as ever.
#[test]
fn wrong_questions_are_refused() -> Result<()> {
    let refused = |name: &str, task, input: Input, code, words: &str| {
        let (case, mut pipeline) = load(name)?;
        let Err(error) = ask(&mut *pipeline, task, &input, TaskOptions::default()) else {
            bail!("{name}: {input:?} was answered")
        };
        ensure!(error.code == code && error.message.contains(words), "{error:?}");
        let Some(Question { input, options, expected, .. }) = case.questions.first() else { bail!("no question") };
        compare(&ask(&mut *pipeline, case.task, input, options.clone())?, expected)
    };
    let text = |text: &str| Input::Text(text.to_owned());
    let invalid = ErrorCode::InvalidRequest;
    refused("fill-mask", Task::Embedding, text("x"), ErrorCode::Unsupported, "does fill-mask, not embedding")?;
    refused("fill-mask", Task::FillMask, text("no mask"), invalid, "[MASK]")?;
    refused("question-answering", Task::QuestionAnswering, text("who?"), invalid, "a question with a text")?;
    let long = "tea ".repeat(200);
    refused("text-classification", Task::TextClassification, text(&long), ErrorCode::ContextLength, "128")?;
    let question = Input::Pair(long, "tea".to_owned());
    refused("question-answering", Task::QuestionAnswering, question, invalid, "the text")?;
    let file = Input::File(FileBytes(b"no picture".to_vec()));
    refused("image-classification", Task::ImageClassification, file.clone(), ErrorCode::Unsupported, "format")?;
    refused("feature-extraction", Task::Embedding, file, invalid, "a text, or several")?;
    refused("image-classification", Task::ImageClassification, text("cat.png"), invalid, "a file of a picture")
}
