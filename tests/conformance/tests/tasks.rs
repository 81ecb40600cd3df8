//! Tasks against what `transformers.pipeline` answered, each with a small model.

use std::path::Path;
use std::sync::Arc;

use accel_backends::files::LocalFiles;
use accel_conformance::asking::{ask, expect, expect_all, expect_refusal, load, unbounded};
use accel_conformance::task::Question;
use accel_protocol::{ErrorCode, FileBytes, Input, Task, TaskResult};
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

fn answers_as_the_pipeline(name: &str) -> Result<()> {
    expect_all(name).map(|_| ())
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
    let mut pipeline = accel_pipelines::load(Arc::new(LocalFiles::open(directory)?), &unbounded())?;
    let texts = Input::Texts(expected.rows.iter().map(|row| row.text.clone()).collect());
    let found = ask(&mut *pipeline, Task::Embedding, &Question::of(texts), &[])?.results;
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
        let (case, mut pipeline) = load(name, &unbounded())?;
        expect_refusal(ask(&mut *pipeline, task, &Question::of(input), &[]), code, words).context(name.to_owned())?;
        expect(&mut *pipeline, case.task, case.questions.first().context("no question")?).map(|_| ())
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
