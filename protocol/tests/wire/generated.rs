//! Values of every message: generated ones, and one of each for the snapshot.

use accel_protocol::result::{Bounds, Entity, Filling, Label, Mask, Span, Thing};
use accel_protocol::{
    Advert, Aggregation, Arithmetic, Backend, Device, ErrorCode, EventRecord, ExpertAsk, ExpertRequest, FileBytes,
    FinishReason, Floats, Generation, HeldModel, Input, JobError, JobEvent, JobId, JobRequest, JobResponse, JobSpec,
    JobState, JobStatus, LayerExperts, Load, Message, ModelName, ModelRef, NameRequest, Offer, OfferRequest,
    OutputRequest, Painting, PeerExperts, Proof, Rejection, Role, ShareAnswer, ShareReply, SignedName, StageAsk,
    StageForward, StageRequest, StageRow, StageSource, StateChange, Task, TaskOptions, TaskResult, TokenLogprob, Usage,
    frame,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

const ROOTS: [&str; 3] = [
    "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy",
    "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi",
    "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG",
];

const CODES: [ErrorCode; 12] = [
    ErrorCode::InvalidRequest,
    ErrorCode::ContextLength,
    ErrorCode::ModelNotFound,
    ErrorCode::ModelInvalid,
    ErrorCode::Unsupported,
    ErrorCode::OutOfResources,
    ErrorCode::DeadlineExceeded,
    ErrorCode::WorkerLost,
    ErrorCode::NoWorker,
    ErrorCode::ShuttingDown,
    ErrorCode::UnknownJob,
    ErrorCode::Internal,
];

pub fn model() -> impl Strategy<Value = ModelRef> {
    let path = prop_oneof![Just(String::new()), "[a-zA-Z0-9_-]{1,8}(/[a-zA-Z0-9_. -]{0,6}[a-z]){0,3}"];
    (select(&ROOTS[..]), path).prop_map(|(root, path)| ModelRef { cid: root.parse().unwrap(), path })
}

pub fn request() -> impl Strategy<Value = JobRequest> {
    prop_oneof![
        4 => job().prop_map(|job| JobRequest::Submit(Box::new(job))),
        1 => job_id().prop_map(JobRequest::Status),
        1 => job_id().prop_map(JobRequest::Cancel),
        1 => advert().prop_map(|advert| JobRequest::Capabilities(Box::new(advert))),
        1 => (model(), "[A-Z0-9_]{1,8}")
            .prop_map(|(model, dtype)| JobRequest::Offer(Box::new(OfferRequest { model, dtype }))),
        1 => ("[a-zA-Z0-9]{0,52}", name()).prop_map(|(peer, name)| JobRequest::Name(Box::new(NameRequest { peer, name }))),
    ]
}

pub fn expert_request() -> impl Strategy<Value = ExpertRequest> {
    let hold = (any::<u32>(), model(), layer_experts());
    let forward = (any::<u32>(), any::<u32>(), vec(any::<(u32, u32)>(), 0..6), floats());
    let ask = prop_oneof![
        hold.prop_map(|(holding, model, experts)| ExpertAsk::Hold { holding, model, experts }),
        forward.prop_map(|(holding, layer, places, rows)| ExpertAsk::Forward { holding, layer, places, rows }),
        floats().prop_map(ExpertAsk::Echo),
        any::<u32>().prop_map(|holding| ExpertAsk::Release { holding }),
    ];
    (any::<u64>(), ask).prop_map(|(id, ask)| ExpertRequest { id, ask })
}

pub fn stage_request() -> impl Strategy<Value = StageRequest> {
    let peer_experts = ("[a-zA-Z0-9]{1,8}", layer_experts()).prop_map(|(peer, experts)| PeerExperts { peer, experts });
    let hold = (any::<(u32, u32, u32)>(), model(), layer_experts(), vec(peer_experts, 0..3));
    let change = prop_oneof![
        any::<u32>().prop_map(StateChange::Clear),
        vec(any::<u32>(), 0..5).prop_map(StateChange::Reorder),
        Just(StateChange::Forget),
    ];
    let ask = prop_oneof![
        hold.prop_map(|((holding, first, count), model, experts, elsewhere)| {
            StageAsk::Hold { holding, model, first, count, experts, elsewhere }
        }),
        (any::<u32>(), floats()).prop_map(|(holding, rows)| StageAsk::Piece { holding, rows }),
        stage_forward().prop_map(|forward| StageAsk::Forward(Box::new(forward))),
        (any::<(u32, u32)>(), change).prop_map(|((holding, state), change)| StageAsk::Change {
            holding,
            state,
            change
        }),
        floats().prop_map(StageAsk::Echo),
        any::<u32>().prop_map(|holding| StageAsk::Release { holding }),
    ];
    (any::<u64>(), ask).prop_map(|(id, ask)| StageRequest { id, ask })
}

fn stage_forward() -> impl Strategy<Value = StageForward> {
    let row =
        any::<(u32, u32, u32, u32)>().prop_map(|(len, past, slot, horizon)| StageRow { len, past, slot, horizon });
    let masks = || vec(vec(any::<bool>(), 0..4), 0..3);
    let source = (vec(any::<u32>(), 0..3), masks()).prop_map(|(lengths, absent)| StageSource { lengths, absent });
    let names = (any::<u32>(), option::of(any::<u32>()), vec(any::<u32>(), 0..4), any::<bool>());
    (names, vec(row, 0..3), masks(), option::of(source), floats()).prop_map(
        |((holding, state, wanted, routed), rows, absent, source, floats)| StageForward {
            holding,
            state,
            rows,
            wanted,
            absent,
            source,
            routed,
            floats,
        },
    )
}

pub fn share_reply() -> impl Strategy<Value = ShareReply> {
    let holding = any::<(u64, u64)>();
    let held = any::<(u64, u64, u64)>();
    let answer = prop_oneof![
        holding.prop_map(|(done_bytes, total_bytes)| ShareAnswer::Holding { done_bytes, total_bytes }),
        held.prop_map(|(memory_bytes, fetched_bytes, here_bytes)| {
            ShareAnswer::Held { memory_bytes, fetched_bytes, here_bytes }
        }),
        (floats(), any::<u64>()).prop_map(|(rows, micros)| ShareAnswer::Rows { rows, micros }),
        error().prop_map(ShareAnswer::Failed),
        floats().prop_map(ShareAnswer::Piece),
        layer_experts().prop_map(ShareAnswer::Routed),
    ];
    (any::<u64>(), answer).prop_map(|(id, answer)| ShareReply { id, answer })
}

fn floats() -> impl Strategy<Value = Floats> {
    vec(-1e6_f32..1e6, 0..9).prop_map(Floats)
}

fn layer_experts() -> impl Strategy<Value = Vec<LayerExperts>> {
    vec((any::<u32>(), vec(any::<u32>(), 0..5)).prop_map(|(layer, experts)| LayerExperts { layer, experts }), 0..4)
}

fn offer() -> impl Strategy<Value = Offer> {
    let machine = (any::<bool>(), any::<u64>(), any::<u32>(), any::<u32>());
    let room = (any::<u64>(), any::<u64>(), 0.0..1e3_f64, 0.0..1e4_f64);
    let here = (layer_experts(), vec(any::<u32>(), 0..4), any::<bool>());
    (machine, room, here).prop_map(
        |((serves, host, cores, threads), (memory_bytes, disk_bytes, gbytes_per_second, gflops), here)| {
            let (experts, layers, whole) = here;
            Offer {
                serves,
                host,
                cores,
                threads,
                memory_bytes,
                disk_bytes,
                arithmetic: Arithmetic("f32-1".into()),
                gbytes_per_second,
                gflops,
                experts,
                layers,
                whole,
            }
        },
    )
}

pub fn response() -> impl Strategy<Value = JobResponse> {
    let rejection = (error(), option::of(any::<u64>()));
    prop_oneof![
        (job_id(), vec(record(), 0..6)).prop_map(|(job, events)| JobResponse::Accepted { job, events }),
        rejection.prop_map(|(error, retry_after_ms)| JobResponse::Rejected(Rejection { error, retry_after_ms })),
        option::of(status()).prop_map(JobResponse::Status),
        any::<bool>().prop_map(JobResponse::Cancelled),
        advert().prop_map(|advert| JobResponse::Capabilities(Box::new(advert))),
        offer().prop_map(|offer| JobResponse::Offer(Box::new(offer))),
        option::of(signed_name()).prop_map(|signed| JobResponse::Name(signed.map(Box::new))),
    ]
}

fn name() -> impl Strategy<Value = ModelName> {
    "[a-z][a-z0-9._-]{0,12}(/[a-z0-9]{1,8})?".prop_filter_map("reserved", |text| text.parse().ok())
}

fn signed_name() -> impl Strategy<Value = SignedName> {
    let bytes = || vec(any::<u8>(), 0..64);
    (bytes(), bytes(), bytes()).prop_map(|(record, key, signature)| SignedName { record, key, signature })
}

fn job_id() -> impl Strategy<Value = JobId> {
    any::<[u8; 16]>().prop_map(JobId)
}

fn arithmetic() -> impl Strategy<Value = Arithmetic> {
    "[a-z0-9-]{0,24}".prop_map(Arithmetic)
}

/// Any number but NaN, which is not equal to itself.
fn number() -> impl Strategy<Value = f32> {
    prop_oneof![any::<f32>(), Just(f32::INFINITY), Just(-0.0)].prop_filter("NaN", |value| !value.is_nan())
}

fn error() -> impl Strategy<Value = JobError> {
    (select(&CODES[..]), ".{0,40}").prop_map(|(code, message)| JobError::new(code, message))
}

fn input() -> impl Strategy<Value = Input> {
    let role = select(&[Role::System, Role::User, Role::Assistant][..]);
    let message = (role, ".{0,30}").prop_map(|(role, content)| Message { role, content });
    let file = || vec(any::<u8>(), 0..40).prop_map(FileBytes);
    prop_oneof![
        ".{0,60}".prop_map(Input::Text),
        vec(message.clone(), 0..4).prop_map(Input::Chat),
        vec(".{0,8}", 0..4).prop_map(Input::Texts),
        (".{0,8}", ".{0,8}").prop_map(|(first, second)| Input::Pair(first, second)),
        file().prop_map(Input::File),
        (vec(file(), 0..3), vec(message, 0..3)).prop_map(|(files, messages)| Input::Pictures(files, messages)),
        vec(vec(number(), 0..3), 0..4).prop_map(Input::Series),
        select(&ROOTS[..]).prop_map(|root| Input::Blob(root.into())),
    ]
}

fn generation() -> impl Strategy<Value = Generation> {
    let counts = (any::<u32>(), any::<u32>(), any::<u64>(), option::of(any::<u8>()), any::<bool>());
    (counts, number(), number(), number(), number(), vec(".{0,8}", 0..3)).prop_map(
        |((max_tokens, top_k, seed, logprobs, ignore_eos), temperature, top_p, min_p, repetition_penalty, stop)| {
            Generation {
                max_tokens,
                temperature,
                top_k,
                top_p,
                min_p,
                repetition_penalty,
                seed,
                stop,
                logprobs,
                ignore_eos,
            }
        },
    )
}

fn job() -> impl Strategy<Value = JobSpec> {
    let rest = (vec(any::<u32>(), 0..8), option::of(arithmetic()), any::<u64>());
    (job_id(), model(), (select(&Task::ALL[..]), input()), generation(), rest).prop_map(
        |(id, model, (task, input), generation, (prior, arithmetic, deadline_ms))| {
            let options = options(prior.first().copied(), generation.top_p, &generation.stop);
            JobSpec { id, model, task, input, generation, options, prior, arithmetic, deadline_ms }
        },
    )
}

fn options(count: Option<u32>, number: f32, texts: &[String]) -> TaskOptions {
    let (steps, width, height, threshold) = (count, count, None, Some(number));
    let painting = Painting { steps, guidance: threshold, negative: texts.first().cloned(), width, height };
    let language = texts.last().cloned();
    TaskOptions { top_k: count, aggregation: Aggregation::Max, threshold, language, painting }
}

fn result() -> impl Strategy<Value = TaskResult> {
    let (text, at) = (|| ".{0,8}", any::<u32>);
    let label = (text(), number()).prop_map(|(label, score)| Label { label, score });
    let filling = (number(), at(), text(), text()).prop_map(|(score, token, token_str, sequence)| Filling {
        score,
        token,
        token_str,
        sequence,
    });
    let entity = (text(), number(), option::of(at()), text(), at(), at())
        .prop_map(|(entity, score, index, word, start, end)| Entity { entity, score, index, word, start, end });
    let span =
        (text(), number(), at(), at()).prop_map(|(answer, score, start, end)| Span { answer, score, start, end });
    let corner = || any::<i32>();
    let bounds =
        (corner(), corner(), corner(), corner()).prop_map(|(xmin, ymin, xmax, ymax)| Bounds { xmin, ymin, xmax, ymax });
    let thing = (number(), text(), bounds).prop_map(|(score, label, bounds)| Thing { score, label, bounds });
    let mask =
        (number(), any::<[u32; 2]>(), vec(at(), 0..5)).prop_map(|(score, size, counts)| Mask { score, size, counts });
    prop_oneof![
        vec(thing, 0..3).prop_map(TaskResult::Things),
        vec(mask, 0..3).prop_map(TaskResult::Masks),
        vec(any::<u8>(), 0..40).prop_map(|bytes| TaskResult::Picture(FileBytes(bytes))),
        vec(label, 0..3).prop_map(TaskResult::Labels),
        vec(vec(filling, 0..3), 0..2).prop_map(TaskResult::Fillings),
        vec(entity, 0..3).prop_map(TaskResult::Entities),
        vec(span, 0..3).prop_map(TaskResult::Answers),
        (vec(at(), 0..3), vec(number(), 0..5)).prop_map(|(shape, values)| TaskResult::Features { shape, values }),
    ]
}

fn record() -> impl Strategy<Value = EventRecord> {
    let top = vec((any::<u32>(), ".{0,6}", number()), 0..3);
    let logprob = (number(), top).prop_map(|(logprob, top)| TokenLogprob { logprob, top });
    let reason =
        select(&[FinishReason::EndOfText, FinishReason::Stop, FinishReason::Length, FinishReason::Complete][..]);
    let usage = (any::<u32>(), any::<u32>(), 0.0..1e9, 0.0..1e9).prop_map(
        |(prompt_tokens, completion_tokens, prefill_ms, decode_ms)| Usage {
            prompt_tokens,
            completion_tokens,
            prefill_ms,
            decode_ms,
        },
    );
    let event = prop_oneof![
        any::<(u64, u64, u32)>().prop_map(|(done_bytes, total_bytes, peers)| JobEvent::Fetching {
            done_bytes,
            total_bytes,
            peers
        }),
        (any::<u32>(), arithmetic())
            .prop_map(|(prompt_tokens, arithmetic)| JobEvent::Started { prompt_tokens, arithmetic }),
        (any::<u32>(), any::<u32>())
            .prop_map(|(done_tokens, total_tokens)| JobEvent::Reading { done_tokens, total_tokens }),
        any::<(u32, u32)>().prop_map(|(done, total)| JobEvent::Working { done, total }),
        any::<(u64, u32, u64)>().prop_map(|(bytes, peers, elapsed_ms)| JobEvent::Fetched { bytes, peers, elapsed_ms }),
        (".{0,60}", any::<u32>(), any::<bool>()).prop_map(|(peer, prior_tokens, exact)| JobEvent::Moved {
            peer,
            prior_tokens,
            exact
        }),
        (any::<u32>(), any::<u32>(), ".{0,8}", option::of(logprob))
            .prop_map(|(index, id, text, logprob)| JobEvent::Token { index, id, text, logprob }),
        (".{0,8}", vec(result(), 0..3), reason, usage).prop_map(|(text, results, reason, usage)| JobEvent::Done {
            text,
            results,
            reason,
            usage
        }),
        error().prop_map(|error| JobEvent::Failed { error }),
        Just(JobEvent::Cancelled),
    ];
    (any::<u64>(), event).prop_map(|(number, event)| EventRecord { number, event })
}

fn status() -> impl Strategy<Value = JobStatus> {
    let states = [JobState::Queued, JobState::Running, JobState::Done, JobState::Failed, JobState::Cancelled];
    (job_id(), model(), select(states.to_vec()), any::<u32>(), option::of("[a-zA-Z0-9]{0,52}"), any::<u64>())
        .prop_map(|(id, model, state, tokens, peer, age_ms)| JobStatus { id, model, state, tokens, peer, age_ms })
}

fn device() -> impl Strategy<Value = Device> {
    let backends = [Backend::Cpu, Backend::Cuda, Backend::Rocm, Backend::Mps, Backend::OpenVino, Backend::Qnn];
    let proof = (0.0..1e6, 0.0..1e5, 0.0..1.0).prop_map(|(gflops, gbytes_per_second, max_error)| Proof {
        gflops,
        gbytes_per_second,
        max_error,
    });
    let proof = prop_oneof![proof.prop_map(Ok), ".{0,30}".prop_map(Err)];
    (select(backends.to_vec()), ".{0,20}", any::<u64>(), proof)
        .prop_map(|(backend, name, memory_bytes, proof)| Device { backend, name, memory_bytes, proof })
}

fn advert() -> impl Strategy<Value = Advert> {
    let held =
        (model(), any::<u64>(), any::<bool>()).prop_map(|(model, bytes, loaded)| HeldModel { model, bytes, loaded });
    let load = any::<(u32, u32, u32)>().prop_map(|(running, queued, capacity)| Load { running, queued, capacity });
    let numbers = any::<(u64, u64, u64, bool)>();
    (numbers, ".{0,20}", vec(".{0,20}", 0..3), arithmetic(), vec(device(), 0..3), vec(held, 0..3), load).prop_map(
        |((number, expires_unix_ms, free_bytes, serves_jobs), agent, addresses, arithmetic, devices, models, load)| {
            Advert {
                number,
                expires_unix_ms,
                agent,
                addresses,
                serves_jobs,
                arithmetic,
                devices,
                models,
                free_bytes,
                load,
            }
        },
    )
}

/// The bytes of one of each message, by name.
pub fn one_of_each() -> Vec<(&'static str, Vec<u8>)> {
    let id = JobId(*b"0123456789abcdef");
    let model: ModelRef = format!("{}/model", ROOTS[0]).parse().unwrap();
    let message = |role, content: &str| Message { role, content: content.into() };
    let job = JobSpec {
        id,
        model: model.clone(),
        task: Task::TextGeneration,
        input: Input::Chat(vec![message(Role::System, "Be brief."), message(Role::User, "Why?")]),
        generation: Generation { stop: vec!["\n\n".into()], logprobs: Some(2), ..Generation::default() },
        options: TaskOptions::default(),
        prior: vec![1, 300, 70_000],
        arithmetic: Some(Arithmetic("f32-1".into())),
        deadline_ms: 60_000,
    };
    let error = JobError::new(ErrorCode::ModelNotFound, "nobody has it");
    let logprob = TokenLogprob { logprob: -0.5, top: vec![(9, " Paris".into(), -0.5), (10, " Lyon".into(), -3.0)] };
    let usage = Usage { prompt_tokens: 37, completion_tokens: 8, prefill_ms: 12.5, decode_ms: 40.0 };
    let proof = Proof { gflops: 80.5, gbytes_per_second: 14.25, max_error: 1e-5 };
    let device = Device { backend: Backend::Cpu, name: "A CPU".into(), memory_bytes: 8 << 30, proof: Ok(proof) };
    let missing = Device { backend: Backend::Cuda, name: "CUDA".into(), memory_bytes: 0, proof: Err("none".into()) };
    let advert = Advert {
        number: 5,
        expires_unix_ms: 1_800_000_000_000,
        agent: "accel/0.1.0".into(),
        addresses: vec!["/ip4/192.0.2.1/tcp/4601".into()],
        serves_jobs: true,
        arithmetic: Arithmetic("f32-1".into()),
        devices: vec![device, missing],
        models: vec![HeldModel { model: model.clone(), bytes: 98_362_432, loaded: true }],
        free_bytes: 1 << 40,
        load: Load { running: 1, queued: 2, capacity: 8 },
    };
    let offer = Offer {
        serves: true,
        host: 77,
        cores: 2,
        threads: 1,
        memory_bytes: 4 << 30,
        disk_bytes: 5 << 30,
        arithmetic: Arithmetic("f32-1".into()),
        gbytes_per_second: 14.5,
        gflops: 80.25,
        experts: vec![LayerExperts { layer: 3, experts: vec![0, 15] }],
        layers: vec![3, 4],
        whole: false,
    };
    let wanted = OfferRequest { model: model.clone(), dtype: "BF16".into() };
    let experts = vec![LayerExperts { layer: 5, experts: vec![0, 1, 300] }];
    let hold = ExpertAsk::Hold { holding: 1, model: model.clone(), experts: experts.clone() };
    let elsewhere = vec![PeerExperts { peer: "12D3KooW".into(), experts: experts.clone() }];
    let stage = StageAsk::Hold { holding: 1, model: model.clone(), first: 12, count: 300, experts, elsewhere };
    let rows = || Floats(vec![1.0, -0.5, 0.25]);
    let forward = ExpertAsk::Forward { holding: 1, layer: 5, places: vec![(0, 1), (0, 300)], rows: rows() };
    let pass = StageForward {
        holding: 1,
        state: Some(2),
        rows: vec![StageRow { len: 1, past: 300, slot: 3, horizon: 128 }],
        wanted: vec![0],
        absent: vec![vec![true, false]],
        source: Some(StageSource { lengths: vec![2], absent: vec![vec![false, true]] }),
        routed: true,
        floats: rows(),
    };
    let change = |change| StageAsk::Change { holding: 1, state: 2, change };
    let status = JobStatus { id, model, state: JobState::Running, tokens: 3, peer: Some("12D3".into()), age_ms: 250 };
    let classify = JobSpec {
        task: Task::TextClassification,
        input: Input::File(FileBytes(vec![0, 255])),
        options: TaskOptions { top_k: Some(5), aggregation: Aggregation::Simple, ..TaskOptions::default() },
        ..job.clone()
    };
    let paint = JobSpec {
        task: Task::TextToImage,
        input: Input::Text("a river".into()),
        options: options(Some(20), 7.5, &["rain".into()]),
        ..job.clone()
    };
    let look = JobSpec {
        task: Task::ImageTextToText,
        input: Input::Pictures(vec![FileBytes(vec![7])], vec![message(Role::User, "What?")]),
        ..job.clone()
    };
    let forecast = JobSpec {
        task: Task::TimeSeriesForecasting,
        input: Input::Series(vec![vec![1.0, 2.0], vec![3.0, 4.0]]),
        ..job.clone()
    };
    let bounds = Bounds { xmin: -1, ymin: 2, xmax: 300, ymax: 4 };
    let things = TaskResult::Things(vec![Thing { score: 0.5, label: "moth".into(), bounds }]);
    let masks = TaskResult::Masks(vec![Mask { score: 0.5, size: [2, 3], counts: vec![1, 2, 3] }]);
    let picture = TaskResult::Picture(FileBytes(vec![137, 80]));
    let labels = TaskResult::Labels(vec![Label { label: "joy".into(), score: 0.75 }]);
    let done = |text: &str, results, reason| JobEvent::Done { text: text.into(), results, reason, usage };
    let event = |number, event| frame::encode(&EventRecord { number, event }).unwrap();
    let request = |request: JobRequest| frame::encode(&request).unwrap();
    let response = |response: JobResponse| frame::encode(&response).unwrap();
    let experts = |ask| frame::encode(&ExpertRequest { id: 9, ask }).unwrap();
    let stages = |ask| frame::encode(&StageRequest { id: 9, ask }).unwrap();
    let share = |answer| frame::encode(&ShareReply { id: 9, answer }).unwrap();
    let cancelled = EventRecord { number: 0, event: JobEvent::Cancelled };
    let rejection = Rejection { error: error.clone(), retry_after_ms: Some(500) };
    let token = JobEvent::Token { index: 0, id: 9, text: " Paris".into(), logprob: Some(logprob) };
    vec![
        ("request submit", request(JobRequest::Submit(Box::new(job)))),
        ("request submit a file", request(JobRequest::Submit(Box::new(classify)))),
        ("request submit a painting", request(JobRequest::Submit(Box::new(paint)))),
        ("request submit pictures", request(JobRequest::Submit(Box::new(look)))),
        ("request submit series", request(JobRequest::Submit(Box::new(forecast)))),
        ("request status", request(JobRequest::Status(id))),
        ("request cancel", request(JobRequest::Cancel(id))),
        ("request capabilities", request(JobRequest::Capabilities(Box::new(advert.clone())))),
        ("response accepted", response(JobResponse::Accepted { job: id, events: vec![cancelled] })),
        ("response rejected", response(JobResponse::Rejected(rejection))),
        ("response status", response(JobResponse::Status(Some(status)))),
        ("response cancelled", response(JobResponse::Cancelled(true))),
        ("response capabilities", response(JobResponse::Capabilities(Box::new(advert)))),
        ("request offer", request(JobRequest::Offer(Box::new(wanted)))),
        ("response offer", response(JobResponse::Offer(Box::new(offer)))),
        (
            "request name",
            request(JobRequest::Name(Box::new(NameRequest {
                peer: "12D3".into(),
                name: "smollm2:135m".parse().unwrap(),
            }))),
        ),
        (
            "response name",
            response(JobResponse::Name(Some(Box::new(SignedName {
                record: vec![1],
                key: vec![2],
                signature: vec![3],
            })))),
        ),
        ("experts hold", experts(hold)),
        ("experts forward", experts(forward)),
        ("experts echo", experts(ExpertAsk::Echo(rows()))),
        ("experts release", experts(ExpertAsk::Release { holding: 1 })),
        ("stages hold", stages(stage)),
        ("stages piece", stages(StageAsk::Piece { holding: 1, rows: rows() })),
        ("stages forward", stages(StageAsk::Forward(Box::new(pass)))),
        ("stages clear", stages(change(StateChange::Clear(3)))),
        ("stages reorder", stages(change(StateChange::Reorder(vec![1, 0])))),
        ("stages forget", stages(change(StateChange::Forget))),
        ("stages echo", stages(StageAsk::Echo(rows()))),
        ("stages release", stages(StageAsk::Release { holding: 1 })),
        ("share piece", share(ShareAnswer::Piece(rows()))),
        ("share routed", share(ShareAnswer::Routed(vec![LayerExperts { layer: 5, experts: vec![0, 300] }]))),
        ("share holding", share(ShareAnswer::Holding { done_bytes: 1, total_bytes: 300 })),
        ("share held", share(ShareAnswer::Held { memory_bytes: 300, fetched_bytes: 200, here_bytes: 100 })),
        ("share rows", share(ShareAnswer::Rows { rows: rows(), micros: 250 })),
        ("share failed", share(ShareAnswer::Failed(error.clone()))),
        ("event fetching", event(0, JobEvent::Fetching { done_bytes: 1, total_bytes: 300, peers: 2 })),
        ("event fetched", event(1, JobEvent::Fetched { bytes: 300, peers: 2, elapsed_ms: 40 })),
        ("event moved", event(2, JobEvent::Moved { peer: "12D3KooW".into(), prior_tokens: 40, exact: true })),
        ("event started", event(1, JobEvent::Started { prompt_tokens: 37, arithmetic: Arithmetic("f32-1".into()) })),
        ("event reading", event(2, JobEvent::Reading { done_tokens: 128, total_tokens: 300 })),
        ("event working", event(2, JobEvent::Working { done: 3, total: 50 })),
        ("event token", event(2, token)),
        ("event done", event(3, done(".", Vec::new(), FinishReason::EndOfText))),
        ("event done with a result", event(3, done("", vec![labels], FinishReason::Complete))),
        ("event done with shapes", event(3, done("", vec![things, masks, picture], FinishReason::Complete))),
        ("event failed", event(4, JobEvent::Failed { error })),
        ("event cancelled", event(5, JobEvent::Cancelled)),
        ("output", frame::encode(&OutputRequest { job: id, from: 3 }).unwrap()),
    ]
}
