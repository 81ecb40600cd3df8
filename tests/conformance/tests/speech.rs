//! What is said in sounds, against what `transformers.pipeline` wrote down.

use std::path::Path;
use std::sync::Arc;

use accel_backends::files::LocalFiles;
use accel_conformance::asking::{Said, ask, case, expect, expect_all, expect_refusal};
use accel_conformance::task::Question;
use accel_pipelines::{LoadOptions, Pipeline};
use accel_protocol::{ErrorCode, FileBytes, FinishReason, Input, JobError, Task, TaskOptions};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

const HEAR: Task = Task::AutomaticSpeechRecognition;

fn load(directory: &Path) -> Result<Box<dyn Pipeline>> {
    let options = LoadOptions { threads: 2, context_tokens: None, memory_bytes: None };
    Ok(accel_pipelines::load(Arc::new(LocalFiles::open(directory)?), &options)?)
}

/// The model of a case, with other settings in a file of it.
fn model(name: &str, file: &str, settings: &Value) -> Result<Box<dyn Pipeline>> {
    let directory = tempfile::tempdir()?;
    case(name)?.write_model(directory.path())?;
    let path = directory.path().join(file);
    let mut all: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    for (key, value) in settings.as_object().context("an object")? {
        all[key] = value.clone();
    }
    std::fs::write(&path, all.to_string())?;
    load(directory.path())
}

/// What is heard in a sound.
fn hear(pipeline: &mut dyn Pipeline, input: Input, options: TaskOptions) -> Result<Said, JobError> {
    ask(pipeline, HEAR, &Question { options, ..Question::of(input) }, &[])
}

#[test]
fn sounds_are_written_down_by_beams_in_many_languages() -> Result<()> {
    let said = expect_all("speech-whisper")?;
    ensure!(said.iter().any(|said| said.reason == FinishReason::EndOfText), "no answer ended by itself");
    ensure!(said.iter().any(|said| said.steps > 1), "no sound had several windows: {said:?}");
    Ok(())
}

#[test]
fn sounds_are_written_down_token_by_token() -> Result<()> {
    let said = expect_all("speech-whisper-english")?;
    ensure!(said.iter().any(|said| said.reason == FinishReason::EndOfText), "no answer ended by itself");
    ensure!(said.iter().any(|said| said.tokens.len() > 4 && said.steps == said.tokens.len()), "none came so: {said:?}");
    Ok(())
}

#[test]
fn characters_that_are_heard_become_a_text() -> Result<()> {
    let said = expect_all("speech-ctc")?;
    ensure!(said.iter().all(|said| said.reason == FinishReason::Complete && said.tokens.is_empty()), "{said:?}");
    Ok(())
}

/// A WAV file of one channel of 16 bits.
fn wav(rate: u32, samples: &[i16]) -> Vec<u8> {
    let bytes = samples.len() as u32 * 2;
    let mut file = Vec::new();
    file.extend_from_slice(b"RIFF");
    file.extend_from_slice(&(36 + bytes).to_le_bytes());
    file.extend_from_slice(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
    file.extend_from_slice(&rate.to_le_bytes());
    file.extend_from_slice(&(rate * 2).to_le_bytes());
    file.extend_from_slice(b"\x02\0\x10\0data");
    file.extend_from_slice(&bytes.to_le_bytes());
    samples.iter().for_each(|sample| file.extend_from_slice(&sample.to_le_bytes()));
    file
}

/// A WAV file of floats, of which one is none.
fn not_a_number() -> Vec<u8> {
    let mut file = wav(16_000, &[0; 800]);
    // IEEE floats of 32 bits.
    file.splice(20..22, [3, 0]);
    file.splice(28..32, 64_000_u32.to_le_bytes());
    file.splice(32..36, [4, 0, 32, 0]);
    file.splice(800..804, f32::NAN.to_le_bytes());
    file
}

/// What is asked wrongly is refused in words, and the next job is answered as ever.
#[test]
fn what_cannot_be_heard_is_refused() -> Result<()> {
    let invalid = ErrorCode::InvalidRequest;
    let file = |bytes: &[u8]| Input::File(FileBytes(bytes.to_vec()));
    let spoken = |language: &str| TaskOptions { language: Some(language.to_owned()), ..TaskOptions::default() };
    let silence = |samples: usize| file(&wav(16_000, &vec![0; samples]));
    let whole = wav(16_000, &[100; 400]);
    for name in ["speech-whisper", "speech-whisper-english", "speech-ctc"] {
        let mut pipeline = model(name, "config.json", &json!({}))?;
        let mut refused = |input: Input, options: TaskOptions, code, words: &str| {
            expect_refusal(hear(&mut *pipeline, input, options), code, words).context(name)
        };
        let none = TaskOptions::default;
        refused(Input::Text("mono.wav".into()), none(), invalid, "a file of a sound")?;
        refused(Input::Texts(vec!["a".into(), "b".into()]), none(), invalid, "a file of a sound")?;
        refused(file(b""), none(), ErrorCode::Unsupported, "the sound's format")?;
        refused(file(b"no sound at all"), none(), ErrorCode::Unsupported, "the sound's format")?;
        refused(file(&whole[..100]), none(), invalid, "the sound")?;
        refused(file(&not_a_number()), none(), invalid, "expected finite samples")?;
        refused(silence(0), none(), invalid, "expected samples, found none")?;
        if name == "speech-ctc" {
            refused(silence(16_000 * 121), none(), invalid, "send it in parts")?;
            refused(silence(3), none(), invalid, "expected at least 105 samples, found 3")?;
            refused(silence(400), spoken("de"), ErrorCode::Unsupported, "options")?;
        } else {
            let words = if name == "speech-whisper" { "expected one of de, en, fr, haw" } else { "one language only" };
            refused(silence(400), spoken("klingon"), invalid, words)?;
        }
        expect(&mut *pipeline, HEAR, case(name)?.questions.first().context("no question")?)?;
    }
    Ok(())
}

/// Weights that are no numbers give no answer.
#[test]
fn weights_that_are_no_numbers_are_named() -> Result<()> {
    for name in ["speech-whisper", "speech-whisper-english", "speech-ctc"] {
        let (case, directory) = (case(name)?, tempfile::tempdir()?);
        case.write_model(directory.path())?;
        let path = directory.path().join("model.safetensors");
        let mut file = std::fs::read(&path)?;
        let header = u64::from_le_bytes(*file.first_chunk().context("a header")?) as usize;
        file[8 + header..].chunks_exact_mut(4).for_each(|weight| weight.copy_from_slice(&f32::NAN.to_le_bytes()));
        std::fs::write(&path, file)?;
        let question = case.questions.first().context("no question")?;
        let found = ask(&mut *load(directory.path())?, HEAR, question, &[]);
        expect_refusal(found, ErrorCode::ModelInvalid, "numbers").context(name)?;
    }
    Ok(())
}

/// Settings that are not supported are named when the model is loaded.
#[test]
fn settings_that_are_not_supported_are_named() -> Result<()> {
    let generation = "generation_config.json";
    for (name, file, settings, words) in [
        ("speech-whisper", generation, json!({ "logprob_threshold": -1.0 }), "logprob_threshold"),
        ("speech-whisper", generation, json!({ "condition_on_prev_tokens": true }), "condition_on_prev_tokens"),
        ("speech-whisper", generation, json!({ "num_beam_groups": 2 }), "num_beam_groups"),
        ("speech-whisper", generation, json!({ "lang_to_id": { "<|en|>": 4000 } }), "outside the vocabulary"),
        ("speech-whisper", generation, json!({ "return_timestamps": "word" }), "return_timestamps"),
        ("speech-ctc", "preprocessor_config.json", json!({ "processor_class": "Wav2Vec2ProcessorWithLM" }), "WithLM"),
        ("speech-ctc", "tokenizer_config.json", json!({ "target_lang": "deu" }), "characters of deu"),
        ("speech-ctc", "tokenizer_config.json", json!({ "tokenizer_class": "BertTokenizer" }), "BertTokenizer"),
    ] {
        match model(name, file, &settings) {
            Ok(_) => bail!("{settings} was taken"),
            Err(error) => ensure!(error.to_string().contains(words), "{settings}: {error}"),
        }
    }
    Ok(())
}

/// What transformers wrote down of a sound, once and again and again, in f32.
#[derive(Deserialize)]
struct Transcripts {
    rows: Vec<Transcript>,
}

#[derive(Deserialize)]
struct Transcript {
    times: usize,
    silence_s: usize,
    tokens: Vec<u32>,
    text: String,
}

/// A sentence of espeak-ng's at 22.05 kHz, and 36 seconds of it in two windows: text and times.
#[test]
fn a_real_model_transcribes_as_its_reference() -> Result<()> {
    let directory = std::env::var_os("ACCEL_TEST_WHISPER").context("ACCEL_TEST_WHISPER: run the tests by tests/run")?;
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data");
    let expected = std::fs::read(data.join("whisper-tiny-en.transcripts.json"))?;
    let expected: Transcripts = serde_json::from_slice(&expected)?;
    let file = std::fs::read(data.join("swarm.wav"))?;
    let samples = file.get(44..).context("samples")?.chunks_exact(2);
    let samples: Vec<i16> = samples.map(|pair| i16::from_le_bytes([pair[0], pair[1]])).collect();
    let mut pipeline = load(Path::new(&directory))?;
    for Transcript { times, silence_s, tokens, text } in &expected.rows {
        let file = if *times == 1 {
            file.clone()
        } else {
            let once = [samples.as_slice(), &vec![0; silence_s * 22_050]].concat();
            wav(22_050, &once.repeat(*times))
        };
        let said = hear(&mut *pipeline, Input::File(FileBytes(file)), TaskOptions::default());
        let said = said.map_err(|error| anyhow!("{times} times: {error:?}"))?;
        ensure!(said.tokens == *tokens, "{times} times: expected {tokens:?}, found {said:?}");
        ensure!(said.text == *text && said.reason == FinishReason::EndOfText, "{times} times: {said:?}");
    }
    Ok(())
}
