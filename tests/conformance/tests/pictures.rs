//! Tasks on pictures against what `transformers.pipeline` answered, each with a small model.

use std::path::Path;
use std::sync::Arc;

use accel_backends::files::LocalFiles;
use accel_conformance::asking;
use accel_conformance::task::{Question, TaskCase, compare};
use accel_pipelines::{LoadOptions, Pipeline, StepPlan};
use accel_protocol::{
    ErrorCode, FileBytes, FinishReason, Input, JobError, JobEvent, JobId, JobSpec, Message, ModelRef, Painting, Role,
    Task, TaskOptions, TaskResult,
};
use anyhow::{Context, Result, bail, ensure};

const OPTIONS: LoadOptions = LoadOptions { threads: 1, context_tokens: None, memory_bytes: None };

fn case(name: &str) -> Result<TaskCase> {
    TaskCase::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/tasks").join(name))
}

fn load(name: &str) -> Result<(TaskCase, Box<dyn Pipeline>)> {
    asking::load(name, &asking::unbounded())
}

/// What was answered, and why the answer ends.
#[derive(Debug, PartialEq)]
struct Said {
    results: Vec<TaskResult>,
    text: String,
    tokens: Vec<u32>,
    reason: FinishReason,
}

/// Asks, with tokens that were said already.
fn ask(pipeline: &mut dyn Pipeline, task: Task, question: &Question, prior: &[u32]) -> Result<Said, JobError> {
    let model: Result<ModelRef, _> = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy".parse();
    let spec = JobSpec {
        id: JobId([9; 16]),
        model: model.map_err(|error| JobError::new(ErrorCode::Internal, error))?,
        task,
        input: question.input.clone(),
        generation: question.generation.clone(),
        options: question.options.clone(),
        prior: prior.to_vec(),
        arithmetic: (!prior.is_empty()).then(|| pipeline.arithmetic()),
        deadline_ms: 1,
    };
    pipeline.admit(&spec)?;
    let (mut text, mut tokens) = (String::new(), Vec::new());
    // A search that is made again takes twice as long, and no answer here has over 256 tokens.
    for _ in 0..600 {
        let mut last = None;
        pipeline.step(&StepPlan { work: vec![(spec.id, 128)] }, &mut |_, event| match event {
            JobEvent::Token { index, id, text: said, .. } => {
                assert_eq!(index as usize, prior.len() + tokens.len(), "tokens come once and in order");
                tokens.push(id);
                text += &said;
            }
            event => last = Some(event),
        });
        match last {
            Some(JobEvent::Done { text: rest, results, reason, usage }) => {
                assert_eq!(usage.completion_tokens as usize, prior.len() + tokens.len(), "{usage:?}");
                text += &rest;
                return Ok(Said { results, text, tokens, reason });
            }
            Some(JobEvent::Failed { error }) => return Err(error),
            _ => {}
        }
    }
    Err(JobError::new(ErrorCode::Internal, "no end"))
}

/// A case's first question.
fn first(case: &TaskCase) -> Result<Question> {
    case.questions.first().cloned().context("no question")
}

/// Whether a question is answered as the pipeline did.
fn answers(pipeline: &mut dyn Pipeline, task: Task, question: &Question) -> Result<Said> {
    let said = ask(pipeline, task, question, &[])?;
    let about = || format!("{} {:?}", question.written, question.options);
    compare(&said.results, &question.expected).with_context(about)?;
    let expected = question.text.clone().unwrap_or_default();
    ensure!(said.text == expected, "{}: expected {expected:?}, found {said:?}", about());
    Ok(said)
}

fn answers_as_the_pipeline(name: &str) -> Result<()> {
    let (case, mut pipeline) = load(name)?;
    ensure!(!case.questions.is_empty());
    let mut ended = 0;
    for question in &case.questions {
        let said = answers(&mut *pipeline, case.task, question).context(name.to_owned())?;
        ended += usize::from(said.reason != FinishReason::Length);
        if !case.task.is_generation() {
            continue;
        }
        // An answer goes on from wherever it was left.
        for prior in [1, said.tokens.len() / 2, said.tokens.len()] {
            let rest = ask(&mut *pipeline, case.task, question, &said.tokens[..prior])?;
            ensure!(rest.tokens == said.tokens[prior..], "{name}: {}: after {prior}, {rest:?}", question.written);
            ensure!(said.text.ends_with(&rest.text) && rest.reason == said.reason, "{rest:?}");
        }
    }
    ensure!(ended > 0, "{name}: no answer ended by itself");
    Ok(())
}

/// A model whose weights are all no numbers.
fn load_without_numbers(name: &str) -> Result<(TaskCase, Box<dyn Pipeline>)> {
    let case = case(name)?;
    let directory = tempfile::tempdir()?;
    case.write_model(directory.path())?;
    let path = directory.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path)?;
    let head = bytes.first_chunk::<8>().map_or(0, |length| u64::from_le_bytes(*length) as usize + 8);
    bytes[head..].fill(0xff);
    std::fs::write(&path, bytes)?;
    let pipeline = accel_pipelines::load(Arc::new(LocalFiles::open(directory.path())?), &OPTIONS)?;
    Ok((case, pipeline))
}

fn refused<T: std::fmt::Debug>(found: Result<T, JobError>, code: ErrorCode, words: &str) -> Result<()> {
    match found {
        Ok(found) => bail!("expected an error about {words}, found {found:?}"),
        Err(error) => {
            ensure!(error.code == code && error.message.contains(words), "{words}: {error:?}");
            Ok(())
        }
    }
}

/// A PNG that says that it is 60,000 pixels wide and high, and has none.
fn huge() -> Vec<u8> {
    let side = 60_000_u32.to_be_bytes();
    let head = [b"IHDR", &side[..], &side, &[8, 2, 0, 0, 0]].concat();
    // CRC-32 (ISO 3309), bit by bit.
    let crc = head.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    });
    let data = [0, 0, 0, 0, b'I', b'D', b'A', b'T', 0x35, 0xaf, 0x06, 0x1e];
    [&b"\x89PNG\r\n\x1a\n"[..], &13_u32.to_be_bytes(), &head, &(!crc).to_be_bytes(), &data].concat()
}

/// What every task on a file of a picture refuses; the next job is answered as ever.
fn refuses_bad_pictures(name: &str) -> Result<()> {
    let (case, mut pipeline) = load(name)?;
    let (invalid, unsupported) = (ErrorCode::InvalidRequest, ErrorCode::Unsupported);
    let whole = first(&case)?;
    let Input::File(FileBytes(bytes)) = &whole.input else { bail!("{:?}", whole.written) };
    for (file, code, words) in [
        (b"no picture".to_vec(), unsupported, "the image's format"),
        (bytes[..bytes.len() / 2].to_vec(), invalid, "the image"),
        (huge(), invalid, "at most 67108864 pixels"),
        (Vec::new(), unsupported, "the image's format"),
    ] {
        let question = Question { input: Input::File(FileBytes(file)), ..whole.clone() };
        refused(ask(&mut *pipeline, case.task, &question, &[]), code, words).context(name.to_owned())?;
        answers(&mut *pipeline, case.task, &whole)?;
    }
    let text = Question { input: Input::Text("cat.png".into()), ..whole.clone() };
    refused(ask(&mut *pipeline, case.task, &text, &[]), invalid, "a file of a picture")?;
    refused(ask(&mut *pipeline, Task::FillMask, &whole, &[]), unsupported, "not fill-mask")?;
    let painting = Painting { steps: Some(3), ..Painting::default() };
    for (options, words) in [
        (TaskOptions { painting, ..TaskOptions::default() }, "has no painting"),
        (TaskOptions { language: Some("de".into()), ..TaskOptions::default() }, "has no language"),
        (TaskOptions { top_k: Some(3), ..TaskOptions::default() }, "has no top_k"),
    ] {
        let question = Question { options, ..whole.clone() };
        refused(ask(&mut *pipeline, case.task, &question, &[]), invalid, words)?;
    }
    let (case, mut pipeline) = load_without_numbers(name)?;
    refused(ask(&mut *pipeline, case.task, &whole, &[]), ErrorCode::ModelInvalid, "number").context(name.to_owned())
}

#[test]
fn objects_are_found() -> Result<()> {
    answers_as_the_pipeline("object-detection")?;
    answers_as_the_pipeline("object-detection-points")
}

#[test]
fn pictures_are_captioned_by_settings_of_the_model_and_of_the_one_within() -> Result<()> {
    answers_as_the_pipeline("image-to-text")?;
    answers_as_the_pipeline("image-to-text-within")
}

#[test]
fn conversations_are_about_pictures_of_one_size_and_of_any() -> Result<()> {
    answers_as_the_pipeline("image-text-to-text")?;
    answers_as_the_pipeline("image-text-to-text-grid")
}

#[test]
fn all_that_is_in_a_picture_is_cut_out() -> Result<()> {
    answers_as_the_pipeline("mask-generation")
}

#[test]
fn files_that_are_no_pictures_are_refused() -> Result<()> {
    for name in ["object-detection", "object-detection-points", "image-to-text", "mask-generation"] {
        refuses_bad_pictures(name)?;
    }
    Ok(())
}

/// What cannot be said about pictures is refused in words, and the next job is answered as ever.
#[test]
fn wrong_conversations_are_refused() -> Result<()> {
    let invalid = ErrorCode::InvalidRequest;
    for name in ["image-text-to-text", "image-text-to-text-grid"] {
        let (case, mut pipeline) = load(name)?;
        let whole = first(&case)?;
        let Input::Pictures(files, messages) = &whole.input else { bail!("{:?}", whole.written) };
        let [picture] = files.as_slice() else { bail!("{:?}", whole.written) };
        let said = |role, content: &str| Message { role, content: content.to_owned() };
        let with = |files: &[FileBytes], message| Input::Pictures(files.to_vec(), vec![message]);
        let own = if name == "image-text-to-text" { "<image>" } else { "<|image_pad|>" };
        for (input, code, words) in [
            (Input::File(picture.clone()), invalid, "a conversation"),
            (Input::Text("What is it?".into()), invalid, "a conversation"),
            (with(files, said(Role::Assistant, "Tea.")), invalid, "the person speaks last"),
            (Input::Pictures(files.clone(), Vec::new()), invalid, "the person speaks last"),
            (with(files, said(Role::User, own)), invalid, "places for pictures"),
            (with(&[FileBytes(huge())], said(Role::User, "Tea?")), invalid, "at most 67108864 pixels"),
            (with(&vec![picture.clone(); 64], said(Role::User, "Tea?")), ErrorCode::ContextLength, "256"),
            (with(files, said(Role::User, &"tea ".repeat(200))), ErrorCode::ContextLength, "256"),
        ] {
            let question = Question { input, ..whole.clone() };
            refused(ask(&mut *pipeline, case.task, &question, &[]), code, words).context(name)?;
        }
        ensure!(!messages.is_empty());
        answers(&mut *pipeline, case.task, &whole)?;
        let (case, mut pipeline) = load_without_numbers(name)?;
        refused(ask(&mut *pipeline, case.task, &whole, &[]), ErrorCode::ModelInvalid, "are not numbers")
            .context(name)?;
    }
    Ok(())
}
