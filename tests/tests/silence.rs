//! Peers that take a job and then say nothing: another goes on, or the job ends in time.

use std::time::Duration;

use accel_node::config::SwarmConfig;
use accel_node::frames::FrameStream;
use accel_node::peers::unix_ms;
use accel_node::swarm::Swarm;
use accel_protocol::limits::ADVERT_LIFE_MS;
use accel_protocol::message::{JOBS_PROTOCOL, OUTPUT_PROTOCOL};
use accel_protocol::{
    Advert, ErrorCode, EventRecord, Generation, HeldModel, JobError, JobEvent, JobId, JobRequest, JobResponse,
    JobState, JobStatus, Load, ModelRef, OutputRequest, frame,
};
use accel_tests::cluster::{Cluster, events, eventually, import, model_file, question, text, tokens};
use anyhow::Context;
use bytes::Bytes;
use futures::StreamExt;
use libp2p::{PeerId, StreamProtocol};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::mpsc;

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_freezes_loses_its_job_and_drops_it_when_it_thaws() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    let provider = cluster.start("provider", false, &[]).await?;
    let model = import(&provider, model_file()?).await?;
    let client = cluster.start("client", false, &[&provider]).await?;
    let frozen = cluster.start("frozen", true, &[&provider, &client]).await?;
    let other = cluster.start("other", true, &[&provider, &client]).await?;
    let long = Generation { max_tokens: 64, ignore_eos: true, ..Generation::default() };
    let mut body = question(&model, "Write a story about a lighthouse.", long);
    body.peer = Some(other.peer().to_owned());
    let undisturbed = tokens(&events(client.api(), &body).await?);

    let id = JobId(rand::random());
    body.id = Some(id);
    body.peer = Some(frozen.peer().to_owned());
    let process = Pid::from_raw(frozen.process_id().context("it runs")?.try_into()?).context("it has an id")?;
    let (mut found, mut moved_to) = (Vec::new(), None);
    let mut stream = client.api().submit(&body).await?;
    while let Some(record) = stream.next().await {
        match record?.event {
            JobEvent::Token { index, id, .. } => {
                found.push(id);
                if index == 10 {
                    kill_process(process, Signal::STOP)?;
                }
            }
            JobEvent::Moved { peer, .. } => moved_to = Some(peer),
            JobEvent::Failed { error } => anyhow::bail!("{error}"),
            _ => {}
        }
    }
    assert_eq!(moved_to.as_deref(), Some(other.peer()));
    assert_eq!(found, undisturbed);

    kill_process(process, Signal::CONT)?;
    eventually("the thawed worker has dropped the job", async || {
        Ok(frozen.api().job(id).await?.state == JobState::Cancelled)
    })
    .await?;
    for node in [client, frozen, other, provider] {
        node.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_takes_jobs_and_does_nothing_loses_them() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    let worker = cluster.start("worker", true, &[]).await?;
    let model = import(&worker, model_file()?).await?;
    let client = cluster.directory("client")?;
    std::fs::create_dir_all(client.join("accel"))?;
    std::fs::write(client.join("accel/node.toml"), "[jobs]\nstuck_seconds = 3\n")?;
    let client = cluster.start("client", false, &[&worker]).await?;
    let mut idle = Idle::start(model.clone(), Vec::new()).await?;
    client.api().connect(&idle.address).await?;

    let mut body = question(&model, "What is the capital of France?", Generation::default());
    body.peer = Some(idle.peer.to_string());
    assert_eq!(text(&events(client.api(), &body).await?), "The capital of France is Paris.");
    let (submitted, cancelled) = (idle.heard().await?, idle.heard().await?);
    assert!(matches!((submitted, cancelled), (Heard::Submitted(a), Heard::Cancelled(b)) if a == b));

    // With nobody else to go on, it has until the deadline.
    worker.stop().await?;
    body.deadline_ms = 5_000;
    let events = events(client.api(), &body).await?;
    let code = events.iter().find_map(|event| match event {
        JobEvent::Failed { error } => Some(error.code),
        _ => None,
    });
    assert_eq!(code, Some(ErrorCode::DeadlineExceeded), "{events:?}");
    client.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_says_what_it_must_not_loses_the_job() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    let worker = cluster.start("worker", true, &[]).await?;
    let model = import(&worker, model_file()?).await?;
    let client = cluster.start("client", false, &[&worker]).await?;
    let begun = JobEvent::Started { prompt_tokens: 1, arithmetic: accel_pipelines::arithmetic() };
    let token = |index| JobEvent::Token { index, id: 1, text: "wrong".to_owned(), logprob: None };
    let moved = JobEvent::Moved { peer: "x".repeat(1000), prior_tokens: 0, exact: true };
    let cases = [
        vec![token(0)],
        vec![begun.clone(), token(1)],
        vec![begun.clone(), moved],
        vec![begun.clone(), JobEvent::Cancelled],
    ];
    for says in cases {
        let liar = Idle::start(model.clone(), says.clone()).await?;
        client.api().connect(&liar.address).await?;
        let mut body = question(&model, "What is the capital of France?", Generation::default());
        body.peer = Some(liar.peer.to_string());
        assert_eq!(text(&events(client.api(), &body).await?), "The capital of France is Paris.", "{says:?}");
    }
    // Nobody else to go on, and a token too many.
    worker.stop().await?;
    let talker = Idle::start(model.clone(), vec![begun, token(0), token(1)]).await?;
    client.api().connect(&talker.address).await?;
    let mut body = question(&model, "Hello", Generation { max_tokens: 1, ..Generation::default() });
    body.peer = Some(talker.peer.to_string());
    let ended = events(client.api(), &body).await?;
    assert_eq!(tokens(&ended), [1]);
    assert!(
        matches!(ended.last(), Some(JobEvent::Failed { error }) if error.code == ErrorCode::WorkerLost),
        "{ended:?}"
    );
    client.stop().await?;
    Ok(())
}

#[derive(Clone, Copy, Debug)]
enum Heard {
    Submitted(JobId),
    Cancelled(JobId),
}

/// A peer that advertises a model, takes its jobs, says that they run, tells what it was made to tell, and does nothing.
struct Idle {
    peer: PeerId,
    address: String,
    heard: mpsc::UnboundedReceiver<Heard>,
    _swarm: Swarm,
}

impl Idle {
    async fn start(model: ModelRef, says: Vec<JobEvent>) -> anyhow::Result<Self> {
        let listen = vec!["/ip4/127.0.0.1/tcp/0".parse()?];
        let config = SwarmConfig { listen, mdns: false, ..SwarmConfig::default() };
        let swarm = Swarm::start(&libp2p::identity::Keypair::generate_ed25519(), &config, None, None).await?;
        let address = swarm.listen_addresses().await?.first().context("it listens")?.clone();
        let peer = swarm.id();
        let ipfs = swarm.ipfs().clone();
        let mut requests = ipfs.requests_subscribe(StreamProtocol::new(JOBS_PROTOCOL)).await?;
        let mut streams = ipfs.new_stream(OUTPUT_PROTOCOL).await?;
        let (say, heard) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut open = Vec::new();
            loop {
                tokio::select! {
                    Some((peer, stream)) = streams.next() => {
                        let mut stream = FrameStream::new(peer, stream);
                        let _asked: Option<OutputRequest> = stream.receive().await?;
                        for (number, event) in says.iter().cloned().enumerate() {
                            stream.send(&EventRecord { number: number as u64, event }).await?;
                        }
                        open.push(stream);
                    }
                    Some((from, id, bytes)) = requests.next() => {
                        let answer = match frame::decode::<JobRequest>(&bytes)? {
                            JobRequest::Submit(spec) => {
                                say.send(Heard::Submitted(spec.id))?;
                                JobResponse::Accepted { job: spec.id, events: Vec::new() }
                            }
                            JobRequest::Cancel(job) => {
                                say.send(Heard::Cancelled(job))?;
                                JobResponse::Cancelled(true)
                            }
                            JobRequest::Status(id) => JobResponse::Status(Some(running(id, &model))),
                            JobRequest::Offer(_) => JobResponse::Rejected(
                                JobError::new(ErrorCode::NoWorker, "it shares no model").into(),
                            ),
                            JobRequest::Capabilities(_) => JobResponse::Capabilities(Box::new(advert(&model))),
                            JobRequest::Name(_) => JobResponse::Name(None),
                        };
                        let answer = Bytes::from(frame::encode(&answer)?);
                        ipfs.send_response(from, id, (StreamProtocol::new(JOBS_PROTOCOL), answer)).await?;
                    }
                    else => return anyhow::Ok(()),
                }
            }
        });
        Ok(Self { peer, address: format!("{address}/p2p/{peer}"), heard, _swarm: swarm })
    }

    async fn heard(&mut self) -> anyhow::Result<Heard> {
        tokio::time::timeout(Duration::from_secs(60), self.heard.recv()).await?.context("it listens no more")
    }
}

fn running(id: JobId, model: &ModelRef) -> JobStatus {
    JobStatus { id, model: model.clone(), state: JobState::Running, tokens: 0, peer: None, age_ms: 1 }
}

fn advert(model: &ModelRef) -> Advert {
    Advert {
        number: unix_ms(),
        expires_unix_ms: unix_ms() + ADVERT_LIFE_MS,
        agent: "idle".to_owned(),
        addresses: Vec::new(),
        serves_jobs: true,
        arithmetic: accel_pipelines::arithmetic(),
        devices: Vec::new(),
        models: vec![HeldModel { model: model.clone(), bytes: 1, loaded: true }],
        free_bytes: 0,
        load: Load { running: 0, queued: 0, capacity: 1 },
    }
}
