//! Tasks on pictures against what `transformers.pipeline` answered, each with a small model.

use std::sync::Arc;

use accel_backends::files::LocalFiles;
use accel_conformance::asking::{self, ask, case, expect, expect_all, expect_refusal, unbounded};
use accel_conformance::task::{Question, TaskCase};
use accel_pipelines::Pipeline;
use accel_protocol::{ErrorCode, FileBytes, FinishReason, Input, Message, Painting, Role, Task, TaskOptions};
use anyhow::{Context, Result, bail, ensure};

fn load(name: &str) -> Result<(TaskCase, Box<dyn Pipeline>)> {
    asking::load(name, &unbounded())
}

/// A case's first question.
fn first(case: &TaskCase) -> Result<Question> {
    case.questions.first().cloned().context("no question")
}

fn answers_as_the_pipeline(name: &str) -> Result<()> {
    let ended = expect_all(name)?.iter().any(|said| said.reason != FinishReason::Length);
    ensure!(ended, "{name}: no answer ended by itself");
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
    let pipeline = accel_pipelines::load(Arc::new(LocalFiles::open(directory.path())?), &unbounded())?;
    Ok((case, pipeline))
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
        expect_refusal(ask(&mut *pipeline, case.task, &question, &[]), code, words).context(name.to_owned())?;
        expect(&mut *pipeline, case.task, &whole)?;
    }
    let text = Question { input: Input::Text("cat.png".into()), ..whole.clone() };
    expect_refusal(ask(&mut *pipeline, case.task, &text, &[]), invalid, "a file of a picture")?;
    expect_refusal(ask(&mut *pipeline, Task::FillMask, &whole, &[]), unsupported, "not fill-mask")?;
    let painting = Painting { steps: Some(3), ..Painting::default() };
    for (options, words) in [
        (TaskOptions { painting, ..TaskOptions::default() }, "has no painting"),
        (TaskOptions { language: Some("de".into()), ..TaskOptions::default() }, "has no language"),
        (TaskOptions { top_k: Some(3), ..TaskOptions::default() }, "has no top_k"),
    ] {
        let question = Question { options, ..whole.clone() };
        expect_refusal(ask(&mut *pipeline, case.task, &question, &[]), invalid, words)?;
    }
    let (case, mut pipeline) = load_without_numbers(name)?;
    expect_refusal(ask(&mut *pipeline, case.task, &whole, &[]), ErrorCode::ModelInvalid, "number")
        .context(name.to_owned())
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
            expect_refusal(ask(&mut *pipeline, case.task, &question, &[]), code, words).context(name)?;
        }
        ensure!(!messages.is_empty());
        expect(&mut *pipeline, case.task, &whole)?;
        let (case, mut pipeline) = load_without_numbers(name)?;
        expect_refusal(ask(&mut *pipeline, case.task, &whole, &[]), ErrorCode::ModelInvalid, "are not numbers")
            .context(name)?;
    }
    Ok(())
}
