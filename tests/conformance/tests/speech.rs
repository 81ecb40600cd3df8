//! What is said in sounds, against what `transformers.pipeline` wrote down.

use std::path::Path;
use std::sync::Arc;

use accel_backends::files::LocalFiles;
use accel_conformance::task::{Question, TaskCase};
use accel_pipelines::{LoadOptions, Pipeline, StepPlan};
use accel_protocol::{
    ErrorCode, FileBytes, FinishReason, Generation, Input, JobError, JobEvent, JobId, JobSpec, ModelRef, Task,
    TaskOptions,
};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

const HEAR: Task = Task::AutomaticSpeechRecognition;

fn case(name: &str) -> Result<TaskCase> {
    TaskCase::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/tasks").join(name))
}

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

/// What a model says, token by token, and why it ends.
#[derive(Debug, PartialEq)]
struct Said {
    text: String,
    tokens: Vec<u32>,
    reason: FinishReason,
    /// Steps after which there was a token.
    steps: usize,
}

/// Asks with tokens that were said already.
fn hear(
    pipeline: &mut dyn Pipeline,
    input: &Input,
    options: &TaskOptions,
    generation: &Generation,
    prior: &[u32],
) -> Result<Said, JobError> {
    let model: Result<ModelRef, _> = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy".parse();
    let spec = JobSpec {
        id: JobId([9; 16]),
        model: model.map_err(|error| JobError::new(ErrorCode::Internal, error))?,
        task: HEAR,
        input: input.clone(),
        generation: generation.clone(),
        options: options.clone(),
        prior: prior.to_vec(),
        arithmetic: (!prior.is_empty()).then(|| pipeline.arithmetic()),
        deadline_ms: 1,
    };
    pipeline.admit(&spec)?;
    let mut said = Said { text: String::new(), tokens: Vec::new(), reason: FinishReason::Complete, steps: 0 };
    for _ in 0..2000 {
        let (mut last, before) = (None, said.tokens.len());
        pipeline.step(&StepPlan { work: vec![(spec.id, 128)] }, &mut |_, event| match event {
            JobEvent::Token { index, id, text, .. } => {
                assert_eq!(index as usize, prior.len() + said.tokens.len(), "tokens come once and in order");
                said.tokens.push(id);
                said.text += &text;
            }
            event => last = Some(event),
        });
        said.steps += usize::from(said.tokens.len() > before);
        match last {
            Some(JobEvent::Done { text, results, reason, usage }) => {
                assert!(results.is_empty(), "{results:?}");
                said.text += &text;
                said.reason = reason;
                assert_eq!(usage.completion_tokens as usize, prior.len() + said.tokens.len(), "{usage:?}");
                return Ok(said);
            }
            Some(JobEvent::Failed { error }) => return Err(error),
            _ => {}
        }
    }
    Err(JobError::new(ErrorCode::Internal, "no end"))
}

fn ask(pipeline: &mut dyn Pipeline, question: &Question, prior: &[u32]) -> Result<Said> {
    let Question { input, options, generation, written, .. } = question;
    hear(pipeline, input, options, generation, prior).map_err(|error| anyhow!("{written} {options:?}: {error:?}"))
}

/// Every question of a case, from its beginning and from where another peer left it.
fn writes_down_as_the_pipeline(name: &str) -> Result<Vec<Said>> {
    let (case, mut pipeline) = (case(name)?, model(name, "config.json", &json!({}))?);
    let mut all = Vec::new();
    for question in &case.questions {
        let said = ask(&mut *pipeline, question, &[])?;
        let expected = question.text.as_ref();
        ensure!(Some(&said.text) == expected, "{name}: {question:?}: expected {expected:?}, found {said:?}");
        for prior in [1, said.tokens.len() / 2, said.tokens.len()] {
            let prior = said.tokens.get(..prior).unwrap_or_default();
            let rest = ask(&mut *pipeline, question, prior)?;
            ensure!(rest.tokens == said.tokens[prior.len()..], "{name}: {question:?}: after {prior:?}, found {rest:?}");
            ensure!(said.text.ends_with(&rest.text) && rest.reason == said.reason, "{rest:?}");
        }
        all.push(said);
    }
    Ok(all)
}

#[test]
fn sounds_are_written_down_by_beams_in_many_languages() -> Result<()> {
    let said = writes_down_as_the_pipeline("speech-whisper")?;
    ensure!(said.iter().any(|said| said.reason == FinishReason::EndOfText), "no answer ended by itself");
    ensure!(said.iter().any(|said| said.steps > 1), "no sound had several windows: {said:?}");
    Ok(())
}

#[test]
fn sounds_are_written_down_token_by_token() -> Result<()> {
    let said = writes_down_as_the_pipeline("speech-whisper-english")?;
    ensure!(said.iter().any(|said| said.reason == FinishReason::EndOfText), "no answer ended by itself");
    ensure!(said.iter().any(|said| said.tokens.len() > 4 && said.steps == said.tokens.len()), "none came so: {said:?}");
    Ok(())
}

#[test]
fn characters_that_are_heard_become_a_text() -> Result<()> {
    let said = writes_down_as_the_pipeline("speech-ctc")?;
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
        let mut refused = |input: Input, options: TaskOptions, code, words: &str| match hear(
            &mut *pipeline,
            &input,
            &options,
            &Generation::default(),
            &[],
        ) {
            Ok(said) => bail!("{name}: {words}: {said:?} was said"),
            Err(error) => {
                ensure!(error.code == code && error.message.contains(words), "{name}: {words}: {error:?}");
                Ok(())
            }
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
        let mut case = case(name)?;
        let first = case.questions.remove(0);
        ensure!(first.text == Some(ask(&mut *pipeline, &first, &[])?.text));
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
        let Question { input, options, generation, .. } = question;
        match hear(&mut *load(directory.path())?, input, options, generation, &[]) {
            Ok(said) => bail!("{name}: {said:?} was said"),
            Err(error) => {
                let named = error.message.contains("logits") && error.message.contains("numbers");
                ensure!(error.code == ErrorCode::ModelInvalid && named, "{name}: {error:?}");
            }
        }
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
        let (input, options) = (Input::File(FileBytes(file)), TaskOptions::default());
        let said = hear(&mut *pipeline, &input, &options, &Generation::default(), &[]);
        let said = said.map_err(|error| anyhow!("{times} times: {error:?}"))?;
        ensure!(said.tokens == *tokens, "{times} times: expected {tokens:?}, found {said:?}");
        ensure!(said.text == *text && said.reason == FinishReason::EndOfText, "{times} times: {said:?}");
    }
    Ok(())
}
