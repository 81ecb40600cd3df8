//! Text generation at the seam that the node uses, with a tiny model made here.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "text/tiny.rs"]
mod tiny;

use std::collections::BTreeMap;
use std::sync::Arc;

use accel_backends::files::LocalFiles;
use accel_pipelines::{LoadOptions, Pipeline, StepPlan, load};
use accel_protocol::{
    Arithmetic, ErrorCode, FinishReason, Generation, Input, JobEvent, JobId, JobSpec, Message, Role, Task, TaskOptions,
};
use serde_json::{Value, json};

const OPTIONS: LoadOptions = LoadOptions { threads: 2, context_tokens: None, memory_bytes: None };

fn directory(changes: Value) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    tiny::write(directory.path(), changes, &tiny::tensors());
    directory
}

fn pipeline(options: &LoadOptions) -> Box<dyn Pipeline> {
    load(Arc::new(LocalFiles::open(directory(json!({})).path()).unwrap()), options).unwrap()
}

fn id(number: u8) -> JobId {
    JobId([number; 16])
}

fn job(number: u8, text: &str, generation: Generation) -> JobSpec {
    JobSpec {
        id: id(number),
        model: "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy".parse().unwrap(),
        task: Task::TextGeneration,
        input: Input::Text(text.into()),
        generation,
        options: TaskOptions::default(),
        prior: Vec::new(),
        arithmetic: None,
        deadline_ms: 1000,
    }
}

fn warm(tokens: u32, seed: u64) -> Generation {
    Generation { max_tokens: tokens, temperature: 1.0, seed, ignore_eos: true, ..Generation::default() }
}

/// Runs jobs side by side to their ends, each with its own number of tokens a step.
fn run(pipeline: &mut dyn Pipeline, jobs: &[(JobSpec, usize)]) -> BTreeMap<JobId, Vec<JobEvent>> {
    let mut events: BTreeMap<JobId, Vec<JobEvent>> = BTreeMap::new();
    for (spec, _) in jobs {
        pipeline.admit(spec).unwrap();
        events.insert(spec.id, Vec::new());
    }
    for _ in 0..5000 {
        let open = jobs.iter().filter(|(spec, _)| !events[&spec.id].last().is_some_and(JobEvent::is_last));
        let work: Vec<_> = open.map(|(spec, budget)| (spec.id, *budget)).collect();
        if work.is_empty() {
            return events;
        }
        pipeline.step(&StepPlan { work }, &mut |id, event| events.get_mut(&id).unwrap().push(event));
    }
    panic!("the jobs did not end: {events:?}");
}

fn run_one(pipeline: &mut dyn Pipeline, spec: JobSpec) -> Vec<JobEvent> {
    let id = spec.id;
    run(pipeline, &[(spec, 512)]).remove(&id).unwrap()
}

fn tokens(events: &[JobEvent]) -> Vec<(u32, u32, String)> {
    let token = |event: &JobEvent| match event {
        JobEvent::Token { index, id, text, .. } => Some((*index, *id, text.clone())),
        _ => None,
    };
    events.iter().filter_map(token).collect()
}

fn ending(events: &[JobEvent]) -> (String, FinishReason) {
    match events.last() {
        Some(JobEvent::Done { text, reason, .. }) => (text.clone(), *reason),
        other => panic!("expected a result, found {other:?}"),
    }
}

#[test]
fn an_answer_has_its_events_in_order() {
    let events = run_one(&mut *pipeline(&OPTIONS), job(1, "Hello", warm(20, 3)));
    let arithmetic = Arithmetic("cpu-f32-1".into());
    assert_eq!(events[0], JobEvent::Started { prompt_tokens: 5, arithmetic });
    let tokens = tokens(&events);
    assert_eq!(tokens.iter().map(|token| token.0).collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
    assert_eq!(ending(&events).1, FinishReason::Length);
    assert_eq!(events.len(), 22);
    match events.last() {
        Some(JobEvent::Done { usage, .. }) => assert_eq!((usage.prompt_tokens, usage.completion_tokens), (5, 20)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn neighbours_chunks_and_threads_change_nothing() {
    let alone: Vec<_> = (1..=3)
        .map(|number| {
            let options = LoadOptions { threads: 1, ..OPTIONS };
            tokens(&run_one(&mut *pipeline(&options), job(number, "A somewhat longer prompt", warm(30, number.into()))))
        })
        .collect();
    let mut shared = pipeline(&LoadOptions { threads: 3, ..OPTIONS });
    let jobs = [(1, 1), (2, 5), (3, 7)];
    let jobs: Vec<_> = jobs
        .into_iter()
        .map(|(number, budget)| (job(number, "A somewhat longer prompt", warm(30, number.into())), budget))
        .collect();
    let together = run(&mut *shared, &jobs);
    for (number, alone) in (1..=3).zip(alone) {
        assert_eq!(tokens(&together[&id(number)]), alone);
    }
}

#[test]
fn a_job_taken_over_goes_on_as_if_nothing_had_happened() {
    let generation = Generation { logprobs: Some(2), repetition_penalty: 1.2, stop: vec!["@@".into()], ..warm(40, 11) };
    let spec = job(1, "Take me over", generation);
    let whole = run_one(&mut *pipeline(&OPTIONS), spec.clone());
    let ids: Vec<u32> = tokens(&whole).iter().map(|token| token.1).collect();
    for done in [1, 7, 20, ids.len()] {
        let arithmetic = Some(Arithmetic("cpu-f32-1".into()));
        let taken = JobSpec { prior: ids[..done].to_vec(), arithmetic, ..spec.clone() };
        let rest = run_one(&mut *pipeline(&OPTIONS), taken);
        let end = whole.len() - 1;
        assert_eq!(rest[1..rest.len() - 1], whole[1 + done..end], "after {done}");
        assert_eq!(ending(&rest), ending(&whole));
    }
    let other = JobSpec { prior: vec![1], arithmetic: Some(Arithmetic("other".into())), ..spec };
    assert_eq!(pipeline(&OPTIONS).admit(&other).unwrap_err().code, ErrorCode::Unsupported);
}

/// A context so short that the prompt ends beyond it, and one that ends within the answer.
#[test]
fn scalings_by_length_do_not_depend_on_chunks_or_who_goes_on() {
    let dynamic = json!({"rope_type": "dynamic", "factor": 8.0});
    let factors = [[1.0; 4], [1.0, 2.0, 3.0, 4.0]];
    let long = json!({"rope_type": "longrope", "short_factor": factors[0], "long_factor": factors[1]});
    for (context, scaling) in [(8, &dynamic), (20, &dynamic), (8, &long), (20, &long)] {
        let is_long = scaling["rope_type"] == "longrope";
        let key = if is_long { "original_max_position_embeddings" } else { "max_position_embeddings" };
        let directory = directory(json!({key: context, "rope_scaling": scaling}));
        let load = || load(Arc::new(LocalFiles::open(directory.path()).unwrap()), &OPTIONS).unwrap();
        let spec = job(1, "Take me over", warm(30, 11));
        let whole = tokens(&run_one(&mut *load(), spec.clone()));
        assert_eq!(whole.len(), 30);
        assert_ne!(whole, tokens(&run_one(&mut *pipeline(&OPTIONS), spec.clone())));
        let in_pieces = run(&mut *load(), &[(spec.clone(), 5), (job(2, "Another", warm(30, 1)), 3)]);
        assert_eq!(tokens(&in_pieces[&id(1)]), whole);
        let taken = JobSpec { prior: whole[..14].iter().map(|token| token.1).collect(), ..spec };
        assert_eq!(tokens(&run_one(&mut *load(), taken)), whole[14..]);
    }
}

#[test]
fn a_character_is_never_split() {
    for seed in 0..20 {
        let events = run_one(&mut *pipeline(&OPTIONS), job(1, "é", warm(100, seed)));
        let letters = tiny::letters();
        let bytes = tokens(&events).iter().filter(|token| token.1 < 256).map(|token| token.1 as u8).collect::<Vec<_>>();
        assert_eq!(letters.len(), 256);
        let said: String =
            tokens(&events).iter().map(|token| token.2.as_str()).collect::<String>() + &ending(&events).0;
        assert_eq!(
            said.replace('\u{fffd}', ""),
            String::from_utf8_lossy(&bytes).replace('\u{fffd}', ""),
            "seed {seed}"
        );
    }
}

#[test]
fn a_stop_text_ends_the_answer_before_it() {
    let plain = run_one(&mut *pipeline(&OPTIONS), job(1, "Hello", warm(60, 3)));
    let text: String = tokens(&plain).iter().map(|token| token.2.as_str()).collect();
    let middle: Vec<char> = text.chars().filter(|letter| *letter != '\u{fffd}').collect();
    let stop = text.split('\u{fffd}').find(|part| part.chars().count() >= 2).unwrap_or(&text).to_owned();
    assert!(middle.len() > 2 && !stop.is_empty());
    let stopped =
        run_one(&mut *pipeline(&OPTIONS), job(1, "Hello", Generation { stop: vec![stop.clone()], ..warm(60, 3) }));
    let said: String = tokens(&stopped).iter().map(|token| token.2.as_str()).collect::<String>() + &ending(&stopped).0;
    assert_eq!(said, text[..text.find(&stop).unwrap()]);
    assert_eq!(ending(&stopped).1, FinishReason::Stop);
}

#[test]
fn both_formats_give_the_same_answer() {
    let directory = directory(json!({}));
    let path = directory.path().join("model.gguf");
    tiny::write_gguf(&path);
    let mut gguf = load(Arc::new(LocalFiles::open(&path).unwrap()), &OPTIONS).unwrap();
    let chat = Input::Chat(vec![Message { role: Role::User, content: "Hi there 123".into() }]);
    let spec = JobSpec { input: chat, ..job(1, "", warm(40, 5)) };
    let (one, two) = (run_one(&mut *gguf, spec.clone()), run_one(&mut *pipeline(&OPTIONS), spec));
    assert_eq!(one[0], two[0]);
    assert_eq!(tokens(&one), tokens(&two));
}

#[test]
fn an_answer_ends_with_the_context() {
    let mut short = pipeline(&LoadOptions { context_tokens: Some(16), ..OPTIONS });
    let events = run_one(&mut *short, job(1, "0123456789", warm(100, 1)));
    assert_eq!((tokens(&events).len(), ending(&events).1), (7, FinishReason::Length));
    let error = short.admit(&job(2, "0123456789abcdefg", warm(1, 1))).unwrap_err();
    assert_eq!(error.code, ErrorCode::ContextLength);
    assert!(error.message.contains("17") && error.message.contains("16"), "{error}");
}

#[test]
fn wrong_requests_are_refused_with_the_reason() {
    let mut pipeline = pipeline(&OPTIONS);
    let mut refuse = |spec: JobSpec, code: ErrorCode, words: &str| {
        let error = pipeline.admit(&spec).unwrap_err();
        assert!(error.code == code && error.message.contains(words), "{:?}: {error}", error.code);
    };
    let with = |generation: Generation| job(1, "Hello", generation);
    refuse(job(1, "", warm(1, 1)), ErrorCode::InvalidRequest, "no tokens");
    refuse(with(Generation { temperature: f32::NAN, ..warm(1, 1) }), ErrorCode::InvalidRequest, "temperature");
    refuse(with(Generation { stop: vec![String::new()], ..warm(1, 1) }), ErrorCode::InvalidRequest, "stop");
    refuse(with(Generation { logprobs: Some(21), ..warm(1, 1) }), ErrorCode::InvalidRequest, "logprobs");
    let blob = JobSpec { input: Input::Blob("x".into()), ..with(warm(1, 1)) };
    refuse(blob, ErrorCode::InvalidRequest, "CID");
    let prior = JobSpec { prior: vec![300], ..with(warm(1, 1)) };
    refuse(prior, ErrorCode::ModelInvalid, "vocabulary");
}

#[test]
fn memory_is_bounded() {
    let weights = pipeline(&OPTIONS).memory_bytes();
    let options = LoadOptions { memory_bytes: Some(weights + 10_000), ..OPTIONS };
    let mut tight = pipeline(&options);
    // A position takes 2 layers * 2 * 16 * 4 bytes.
    assert_eq!(tight.admit(&job(1, "Hello", warm(20, 1))).unwrap().memory_bytes, 25 * 256);
    assert_eq!(tight.admit(&job(2, "Hello", warm(20, 1))).unwrap_err().code, ErrorCode::OutOfResources);
    tight.evict(id(1));
    assert!(tight.admit(&job(2, "Hello", warm(20, 1))).is_ok());
    let files = LocalFiles::open(directory(json!({})).path()).unwrap();
    let error = load(Arc::new(files), &LoadOptions { memory_bytes: Some(10), ..OPTIONS }).err().unwrap();
    assert_eq!(error.code(), ErrorCode::OutOfResources);
}

#[test]
fn a_wrong_model_is_refused_with_the_place() {
    let refuse = |changes: Value, code: ErrorCode, words: &str| {
        let error = load(Arc::new(LocalFiles::open(directory(changes).path()).unwrap()), &OPTIONS).err().unwrap();
        assert!(error.code() == code && error.to_string().contains(words), "{:?}: {error}", error.code());
    };
    refuse(json!({"model_type": "no_such"}), ErrorCode::Unsupported, "\"no_such\" is not supported; supported: arcee,");
    refuse(json!({"architectures": ["LlamaForNothing"]}), ErrorCode::Unsupported, "LlamaForCausalLM");
    refuse(
        json!({"hidden_size": null}),
        ErrorCode::ModelInvalid,
        "config.json: hidden_size: expected a positive whole",
    );
    refuse(
        json!({"hidden_size": "wide"}),
        ErrorCode::ModelInvalid,
        "hidden_size: expected a positive whole number, found \"wide\"",
    );
    refuse(
        json!({"num_key_value_heads": 3}),
        ErrorCode::ModelInvalid,
        "num_key_value_heads: expected a divisor of the 4",
    );
    refuse(json!({"num_hidden_layers": 3}), ErrorCode::ModelInvalid, "\"model.layers.2.self_attn.q_proj.weight\"");
    refuse(
        json!({"intermediate_size": 40}),
        ErrorCode::ModelInvalid,
        "layers.0.mlp.gate.weight: expected [40, 32], found [48, 32]",
    );
    refuse(json!({"hidden_act": "no_such"}), ErrorCode::Unsupported, "hidden_act \"no_such\"");
    let scaling = |scaling: Value| json!({"rope_scaling": scaling});
    let strange = scaling(json!({"rope_type": "strange", "factor": 2.0}));
    refuse(strange, ErrorCode::Unsupported, "rope_scaling: rope_type \"strange\" is not supported");
    let yarn = scaling(json!({"rope_type": "yarn"}));
    refuse(yarn, ErrorCode::ModelInvalid, "config.json: rope_scaling: factor: expected a number, found nothing");
    let short = json!({"rope_type": "longrope", "factor": 2.0, "short_factor": [1, 1], "long_factor": [1, 1, 1, 1]});
    refuse(scaling(short), ErrorCode::ModelInvalid, "rope_scaling: short_factor: expected 4 numbers, found [1,1]");
}

#[test]
fn logits_that_are_no_numbers_fail_the_job() {
    let directory = tempfile::tempdir().unwrap();
    let mut tensors = tiny::tensors();
    tensors.last_mut().unwrap().2[40] = f32::NAN;
    tiny::write(directory.path(), json!({}), &tensors);
    let mut pipeline = load(Arc::new(LocalFiles::open(directory.path()).unwrap()), &OPTIONS).unwrap();
    match run_one(&mut *pipeline, job(1, "Hello", warm(4, 1))).last() {
        Some(JobEvent::Failed { error }) => assert_eq!(error.code, ErrorCode::ModelInvalid),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_end_of_text_ends_the_answer() {
    let all: Vec<u32> = (0..tiny::VOCABULARY as u32).collect();
    let directory = directory(json!({"eos_token_id": all}));
    let mut pipeline = load(Arc::new(LocalFiles::open(directory.path()).unwrap()), &OPTIONS).unwrap();
    let ending_job = job(1, "Hello", Generation { ignore_eos: false, ..warm(4, 1) });
    let events = run_one(&mut *pipeline, ending_job);
    assert_eq!((tokens(&events).len(), ending(&events).1), (0, FinishReason::EndOfText));
}
