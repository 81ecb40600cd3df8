//! A swarm of processes does what its users expect, also when things go wrong.

#![expect(clippy::panic, reason = "a test that fails should say where")]

use std::time::Instant;

use accel_node::api::ApiError;
use accel_node::config::SwarmConfig;
use accel_node::swarm::Swarm;
use accel_protocol::{ErrorCode, FinishReason, Generation, Input, JobError, JobEvent};
use accel_tests::cluster::{Cluster, events, eventually, import, model_file, question, text};
use accel_tests::failover::Failover;
use futures::StreamExt;

fn failure(events: &[JobEvent]) -> &JobError {
    match events.last() {
        Some(JobEvent::Failed { error }) => error,
        other => panic!("expected a failure, found {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_without_weights_fetches_them_by_cid_and_answers() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    let provider = cluster.start("provider", false, &[]).await?;
    let model = import(&provider, model_file()?).await?;
    let worker = cluster.start("worker", true, &[&provider]).await?;
    let client = cluster.start("client", false, &[&provider]).await?;
    let answer =
        events(client.api(), &question(&model, "What is the capital of France?", Generation::default())).await?;
    assert_eq!(text(&answer), "The capital of France is Paris.");
    let fetched = answer.iter().find_map(|event| match event {
        JobEvent::Fetched { bytes, .. } => Some(*bytes),
        _ => None,
    });
    assert!(fetched.is_some_and(|bytes| bytes > 80_000_000), "{fetched:?}");
    assert!(matches!(answer.last(), Some(JobEvent::Done { reason: FinishReason::EndOfText, .. })));

    // A second answer fetches nothing, and a short one comes inside the answer to the submission.
    let short = Generation { max_tokens: 3, ..Generation::default() };
    let again = events(client.api(), &question(&model, "What is the capital of France?", short)).await?;
    assert_eq!(text(&again), "The capital of");
    assert!(!again.iter().any(|event| matches!(event, JobEvent::Fetched { .. })));
    for node in [client, worker, provider] {
        node.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_the_same_when_its_worker_is_killed() -> anyhow::Result<()> {
    for (temperature, kill_at) in [(0.0, 40), (0.9, 100)] {
        let generation = Generation { temperature, seed: 11, ..Generation::default() };
        let mut swarm = Failover::start(model_file()?, generation).await?;
        let round = swarm.round(kill_at).await?;
        assert!(round.identical, "{round:?}");
        assert!(round.moved_at >= kill_at, "{round:?}");
        swarm.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_nobody_can_take_over_fails_with_a_reason() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    let worker = cluster.start("worker", true, &[]).await?;
    let model = import(&worker, model_file()?).await?;
    let client = cluster.start("client", false, &[&worker]).await?;
    let long = Generation { max_tokens: 2000, ignore_eos: true, ..Generation::default() };
    let mut stream = client.api().submit(&question(&model, "Count to a thousand.", long)).await?;
    let mut worker = Some(worker);
    let mut last = None;
    while let Some(record) = stream.next().await {
        let event = record?.event;
        if matches!(event, JobEvent::Token { index: 5, .. })
            && let Some(worker) = worker.take()
        {
            worker.kill().await?;
        }
        last = Some(event);
    }
    let failed = failure(last.as_slice());
    assert_eq!(failed.code, ErrorCode::WorkerLost, "{failed}");
    client.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_run_is_refused_by_name() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    let node = cluster.start("node", true, &[]).await?;
    let short = || Generation { max_tokens: 4, ..Generation::default() };

    let note = cluster.path("note.txt");
    std::fs::write(&note, "no model")?;
    let text_file = import(&node, note).await?;
    let failed = events(node.api(), &question(&text_file, "Hello", short())).await?;
    assert_eq!(failure(&failed).code, ErrorCode::ModelInvalid, "{}", failure(&failed));

    let nobody = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy".parse()?;
    let failed = events(node.api(), &question(&nobody, "Hello", short())).await?;
    assert_eq!(failure(&failed).code, ErrorCode::ModelNotFound, "{}", failure(&failed));

    let strange = cluster.path("strange");
    std::fs::create_dir(&strange)?;
    std::fs::write(strange.join("config.json"), r#"{"model_type":"strange","architectures":["StrangeForCausalLM"]}"#)?;
    std::fs::write(strange.join("model.safetensors"), [2, 0, 0, 0, 0, 0, 0, 0, b'{', b'}'])?;
    let strange = import(&node, strange).await?;
    let failed = events(node.api(), &question(&strange, "Hello", short())).await?;
    assert_eq!(failure(&failed).code, ErrorCode::Unsupported, "{}", failure(&failed));
    assert!(failure(&failed).message.contains("strange") && failure(&failed).message.contains("llama"));

    let whole = std::fs::read(model_file()?)?;
    let truncated = cluster.path("truncated.gguf");
    std::fs::write(&truncated, &whole[..whole.len() / 2])?;
    let request =
        accel_node::api::AddRequest { path: truncated, chunker: accel_node::api::Cut::Tensor, move_source: false };
    let refused = node.api().add(&request, |_| {}).await;
    assert!(matches!(&refused, Err(ApiError::Refused(error)) if error.code == ErrorCode::ModelInvalid), "{refused:?}");

    let model = import(&node, model_file()?).await?;
    let mut long = question(&model, "", short());
    long.input = Input::Text("word ".repeat(20_000));
    let failed = events(node.api(), &long).await?;
    assert_eq!(failure(&failed).code, ErrorCode::ContextLength, "{}", failure(&failed));

    // After all of this the node still answers.
    let answer = events(node.api(), &question(&model, "What is the capital of France?", Generation::default())).await?;
    assert_eq!(text(&answer), "The capital of France is Paris.");
    node.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_peers_ask_for_and_is_no_model_does_not_stay() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    let client = cluster.start("client", false, &[]).await?;
    let big = cluster.path("big.bin");
    std::fs::write(&big, vec![7; 40 << 20])?;
    let no_model = import(&client, big).await?;
    let broken = cluster.path("broken.gguf");
    // The header says that it is GGUF, so all of it is fetched before it proves to be none.
    std::fs::write(&broken, [&b"GGUF\x03\0\0\0"[..], &[0xff; 4096]].concat())?;
    let request =
        accel_node::api::AddRequest { path: broken, chunker: accel_node::api::Cut::Fixed, move_source: false };
    let broken: accel_protocol::ModelRef = client.api().add(&request, |_| {}).await?.cid.parse()?;
    let worker = cluster.start("worker", true, &[&client]).await?;
    for model in [no_model, broken] {
        let failed = events(client.api(), &question(&model, "Hello", Generation::default())).await?;
        assert_eq!(failure(&failed).code, ErrorCode::ModelInvalid, "{}", failure(&failed));
    }
    assert!(worker.api().models().await?.is_empty());
    eventually("the worker keeps nothing but headers", async || Ok(worker.api().node().await?.used_bytes <= 2 << 20))
        .await?;
    client.stop().await?;
    worker.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_ends_at_its_deadline_and_when_it_is_cancelled() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    let node = cluster.start("node", true, &[]).await?;
    let model = import(&node, model_file()?).await?;
    let endless = || Generation { max_tokens: 8000, ignore_eos: true, ..Generation::default() };
    let mut late = question(&model, "Count.", endless());
    late.deadline_ms = 3_000;
    assert_eq!(failure(&events(node.api(), &late).await?).code, ErrorCode::DeadlineExceeded);

    let id = accel_protocol::JobId([7; 16]);
    let mut cancelled = question(&model, "Count.", endless());
    cancelled.id = Some(id);
    let mut stream = node.api().submit(&cancelled).await?;
    let mut last = None;
    while let Some(record) = stream.next().await {
        let event = record?.event;
        if matches!(event, JobEvent::Token { index: 3, .. }) {
            node.api().cancel(id).await?;
        }
        last = Some(event);
    }
    assert_eq!(last, Some(JobEvent::Cancelled));

    // The events are kept: a reader that lost its stream reads on from where it was.
    let again: Vec<_> = node.api().events(id, 2).await?.collect().await;
    assert_eq!(again.first().and_then(|record| record.as_ref().ok()).map(|record| record.number), Some(2));
    node.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stops_hands_its_job_over() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    let first = cluster.start("first", true, &[]).await?;
    let model = import(&first, model_file()?).await?;
    let second = cluster.start("second", true, &[&first]).await?;
    // When the first is gone, nobody else could give it the model.
    second.api().pull(&model, |_| {}).await?;
    let client = cluster.start("client", false, &[&first, &second]).await?;
    let long = Generation { max_tokens: 3000, ignore_eos: true, ..Generation::default() };
    let mut body = question(&model, "Count to a thousand.", long);
    body.peer = Some(first.peer().to_owned());
    let mut stream = client.api().submit(&body).await?;
    let mut stopping = None;
    let mut first = Some(first);
    let mut expected = 0;
    let mut moved = false;
    while let Some(record) = stream.next().await {
        match record?.event {
            JobEvent::Token { index, .. } => {
                assert_eq!(index, expected);
                expected += 1;
                if index == 20
                    && let Some(first) = first.take()
                {
                    stopping = Some(tokio::spawn(first.stop()));
                }
                if moved {
                    break;
                }
            }
            JobEvent::Moved { exact, .. } => moved = exact,
            _ => {}
        }
    }
    assert!(moved, "the job went on elsewhere before it was done");
    drop(stream);
    stopping.expect("the worker was told to stop").await??;
    client.stop().await?;
    second.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_big_input_travels_by_cid_and_does_not_stay() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    let worker = cluster.start("worker", true, &[]).await?;
    let model = import(&worker, model_file()?).await?;
    let client = cluster.start("client", false, &[&worker]).await?;
    let used = async || anyhow::Ok((worker.api().node().await?.used_bytes, client.api().node().await?.used_bytes));
    let before = used().await?;
    let mut big = question(&model, "", Generation::default());
    big.input = Input::Text("word ".repeat(100_000));
    let ended = events(client.api(), &big).await?;
    // The worker has read all of it, and says how long it is.
    let failed = failure(&ended);
    assert!(failed.code == ErrorCode::ContextLength && failed.message.contains("10000"), "{failed}");
    eventually("nothing of it is kept", async || Ok(used().await? == before)).await?;
    assert!(client.api().models().await?.is_empty());
    client.stop().await?;
    worker.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_does_not_wait_for_providers_that_are_gone() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    let provider = cluster.start("provider", false, &[]).await?;
    let note = cluster.path("note.txt");
    std::fs::write(&note, "no model")?;
    let note = import(&provider, note).await?;
    let model = import(&provider, model_file()?).await?;
    let mut waited = Vec::new();
    for name in ["first", "second", "third", "fourth"] {
        let fetcher = cluster.start(name, false, &[&provider]).await?;
        // After a fetch a node is in the DHT, and so hears of those that were there before it.
        fetcher.api().pull(&note, |_| {}).await?;
        let started = Instant::now();
        let pulled = fetcher.api().pull(&model, |_| {}).await?;
        waited.push(started.elapsed().as_secs_f64() - pulled.seconds);
        fetcher.stop().await?;
    }
    // It takes three seconds to see that a peer no longer answers, and up to three are gone.
    assert!(waited.iter().all(|&seconds| seconds < 5.0), "seconds beside the transfer: {waited:?}");
    provider.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_was_here_before_the_start_is_told_of_in_the_dht() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    let alone = cluster.start("provider", false, &[]).await?;
    let note = cluster.path("note.txt");
    std::fs::write(&note, "no model")?;
    let model = import(&alone, note).await?;
    alone.stop().await?;

    let meeting = cluster.start("meeting", false, &[]).await?;
    let provider = cluster.start("provider", false, &[&meeting]).await?;
    let listen = vec!["/ip4/127.0.0.1/tcp/0".parse()?];
    let config = SwarmConfig { listen, mdns: false, ..SwarmConfig::default() };
    let seeker = Swarm::start(&libp2p::identity::Keypair::generate_ed25519(), &config, None, None).await?;
    seeker.connect_to(&meeting.addresses()[0].parse()?).await?;
    eventually("the provider is found", async || {
        let found: Vec<_> = seeker.ipfs().get_providers(model.cid).await?.collect().await;
        Ok(found.into_iter().flatten().flatten().any(|peer| peer.to_string() == provider.peer()))
    })
    .await?;
    provider.stop().await?;
    meeting.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_path_of_a_model_may_hold_any_character() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    let node = cluster.start("node", false, &[]).await?;
    let directory = cluster.directory("files")?;
    let name = "50% of #1 `or`? ü.safetensors";
    let header = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let file = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 4]].concat();
    std::fs::write(directory.join(name), file)?;
    let root = import(&node, directory).await?;
    let parts = node.api().model(&format!("{root}/{name}").parse()?, false).await?;
    assert_eq!(parts.tensors.iter().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>(), ["a"]);

    // A part of a model is not removed, and the whole not in its stead.
    let refused = node.api().remove(&format!("{root}/{name}").parse()?).await;
    assert!(
        matches!(&refused, Err(ApiError::Refused(error)) if error.code == ErrorCode::InvalidRequest),
        "{refused:?}"
    );
    assert_eq!(node.api().models().await?.len(), 1);
    node.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_the_same_data_is_refused() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    let node = cluster.start("node", false, &[]).await?;
    assert!(cluster.start("node", false, &[]).await.is_err());
    assert_eq!(node.api().node().await?.peer, node.peer());
    node.stop().await?;
    Ok(())
}
