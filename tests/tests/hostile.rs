//! Peers that break the rules, on every protocol of a running node: each is refused by what the protocol has for it or
//! dropped, and others never notice.

use std::fmt::Debug;
use std::time::Duration;

use accel_node::peers::unix_ms;
use accel_node::process::NodeProcess;
use accel_protocol::limits::{ADVERT_BYTES, ADVERT_LIFE_MS, FRAME_BYTES, SHARE_EXPERTS, STREAMS_PER_PEER};
use accel_protocol::message::{ADVERTS_TOPIC, JOBS_PROTOCOL, OUTPUT_PROTOCOL};
use accel_protocol::share::EXPERTS_PROTOCOL;
use accel_protocol::stage::STAGES_PROTOCOL;
use accel_protocol::{
    Advert, Arithmetic, ErrorCode, EventRecord, ExpertAsk, ExpertRequest, Floats, Generation, Input, JobEvent, JobId,
    JobRequest, JobResponse, JobSpec, LayerExperts, Load, ModelRef, OutputRequest, PeerExperts, ShareAnswer,
    ShareReply, ShareRequest, StageAsk, StageForward, StageRow, Task, TaskOptions, frame,
};
use accel_tests::cluster::{Cluster, events, import, model_file, question, text};
use anyhow::{Context, Result, bail, ensure};
use futures::future::join_all;
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId, Stream};
use rust_ipfs::Ipfs;
use serde::Serialize;
use serde::de::DeserializeOwned;

const BLOCKS_PROTOCOL: &str = "/accel/blocks/1";
const GOSSIP_PROTOCOL: &str = "/meshsub/1.1.0";
const CAPITAL: &str = "What is the capital of France?";
const PARIS: &str = "The capital of France is Paris.";
/// Longer than any time that the node gives a peer to finish what it began.
const PATIENCE: Duration = Duration::from_secs(25);

/// A peer that says whatever it likes.
struct Stranger {
    keypair: Keypair,
    ipfs: Ipfs,
    victim: PeerId,
}

/// What follows the bytes that a stranger sends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    Close,
    Silence,
}

impl Stranger {
    async fn meet(victim: &NodeProcess) -> Result<Self> {
        let keypair = Keypair::generate_ed25519();
        let settings = accel_ipfs::Settings {
            agent: "stranger",
            repository: None,
            listen: Vec::new(),
            bootstrap: Vec::new(),
            key: None,
            relay: accel_ipfs::RelayConfig::default(),
            mdns: false,
            connections: 8,
            connections_per_peer: 4,
            requests: accel_ipfs::RequestResponseConfig::new("/stranger/1"),
            gossip_bytes: 1 << 10,
        };
        let start = accel_ipfs::start(keypair.clone(), settings, Box::new(|_| {}));
        let ipfs = start.await.map_err(anyhow::Error::msg)?;
        let address: Multiaddr = victim.addresses().first().context("no address")?.parse()?;
        ipfs.connect(address).await?;
        Ok(Self { keypair, ipfs, victim: victim.peer().parse()? })
    }

    fn id(&self) -> PeerId {
        self.keypair.public().to_peer_id()
    }

    async fn open(&self, protocol: &'static str) -> Result<Stream> {
        self.ipfs.open_stream(self.victim, protocol).await
    }

    /// Sends `bytes` and gives all that comes back until the node ends the stream.
    async fn say(&self, protocol: &'static str, bytes: &[u8], then: Then) -> Result<Vec<u8>> {
        let mut stream = self.open(protocol).await?;
        // A node that has seen enough need not read the rest.
        let _refused = stream.write_all(bytes).await;
        let _refused = stream.flush().await;
        if then == Then::Close {
            let _refused = stream.close().await;
        }
        let mut answer = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        // A stream that is reset has ended too.
        let _ended = read.with_context(|| format!("{protocol} stays open after {} bytes", bytes.len()))?;
        Ok(answer)
    }

    /// Asks for a share of a model, and is told that this cannot be.
    async fn is_refused<A: Serialize + Debug>(&self, protocol: &'static str, ask: A) -> Result<()> {
        let asked = format!("{ask:?}");
        let mut stream = self.open(protocol).await?;
        let reply = self.first(&mut stream, &ShareRequest { id: 5, ask }).await?;
        let ShareReply { id: 5, answer: ShareAnswer::Failed(error) } = reply.context("no answer")? else {
            bail!("{asked:.60}: answered otherwise");
        };
        ensure!(error.code == ErrorCode::InvalidRequest, "{asked:.60}: {error}");
        Ok(())
    }

    async fn ask(&self, request: &JobRequest) -> Result<JobResponse> {
        Ok(frame::decode(&self.say(JOBS_PROTOCOL, &frame::encode(request)?, Then::Close).await?)?)
    }

    /// The first message that a stream brings upon a request; none when the node ends it without one.
    async fn first<T: DeserializeOwned>(&self, stream: &mut Stream, request: &impl Serialize) -> Result<Option<T>> {
        let _refused = stream.write_all(&frame::frame(request)?).await;
        let _refused = stream.flush().await;
        let mut prefix = [0; frame::PREFIX_BYTES];
        if tokio::time::timeout(PATIENCE, stream.read_exact(&mut prefix)).await?.is_err() {
            return Ok(None);
        }
        let mut body = vec![0; frame::body_length(prefix)?];
        stream.read_exact(&mut body).await?;
        Ok(Some(frame::decode(&body)?))
    }
}

/// The most memory that a process has used so far, in bytes.
fn peak_memory(node: &NodeProcess) -> Result<u64> {
    let process = node.process_id().context("the node has ended")?;
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(peak.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

fn job(model: &ModelRef, max_tokens: u32) -> JobSpec {
    JobSpec {
        id: JobId(rand::random()),
        model: model.clone(),
        task: Task::TextGeneration,
        input: Input::Text("Once upon a time".to_owned()),
        generation: Generation { max_tokens, ignore_eos: true, ..Generation::default() },
        options: TaskOptions::default(),
        prior: Vec::new(),
        arithmetic: None,
        deadline_ms: 120_000,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_break_the_rules_cost_one_stream_and_nobody_else_notices() -> Result<()> {
    let cluster = Cluster::new()?;
    let node = cluster.start("node", true, &[]).await?;
    let model = import(&node, model_file()?).await?;
    let client = cluster.start("client", false, &[&node]).await?;
    let honest = || async { events(client.api(), &question(&model, CAPITAL, Generation::default())).await };
    assert_eq!(text(&honest().await?), PARIS);
    let before = peak_memory(&node)?;

    let stranger = Stranger::meet(&node).await?;
    let submission = frame::encode(&JobRequest::Submit(Box::new(job(&model, 4))))?;
    let half = &submission[..submission.len() / 2];
    let leftover = [frame::encode(&JobRequest::Cancel(JobId([7; 16])))?, vec![0]].concat();
    let huge = vec![0xff; FRAME_BYTES + 1];
    let output = frame::frame(&OutputRequest { job: JobId([7; 16]), from: 0 })?;
    let announced = |bytes: u32, body: &[u8]| [&bytes.to_be_bytes()[..], body].concat();
    let nearly = announced(FRAME_BYTES as u32, &huge[..FRAME_BYTES - 1]);
    let cid = model.cid.to_bytes();
    let want = [&[cid.len() as u8][..], &cid].concat();
    let closed = |protocol, bytes| stranger.say(protocol, bytes, Then::Close);
    let (silence, close) = (Then::Silence, Then::Close);

    // A request that can be read to its end is answered with what is wrong with it.
    for (bytes, word) in [(&huge[..100], "malformed"), (half, "malformed"), (&leftover, "left over")] {
        let JobResponse::Rejected(rejection) = frame::decode(&closed(JOBS_PROTOCOL, bytes).await?)? else {
            bail!("{word}: not rejected");
        };
        assert_eq!(rejection.error.code, ErrorCode::InvalidRequest);
        ensure!(rejection.error.message.contains(word), "{rejection:?}");
    }
    // So is a reader of a job that is not there, and an asker of a block that is not there.
    let known = closed(OUTPUT_PROTOCOL, &output).await?;
    let record: EventRecord = frame::decode(known.get(frame::PREFIX_BYTES..).context("no answer")?)?;
    let unknown = matches!(&record.event, JobEvent::Failed { error } if error.code == ErrorCode::UnknownJob);
    ensure!(unknown, "{record:?}");
    let absent = [&[cid.len() as u8][..], &cid[..cid.len() - 1], &[!cid[cid.len() - 1]]].concat();
    assert_eq!(closed(BLOCKS_PROTOCOL, &absent).await?, u32::MAX.to_be_bytes());
    let block = closed(BLOCKS_PROTOCOL, &want).await?;
    ensure!(block.len() > 4 && block[..4] == ((block.len() - 4) as u32).to_be_bytes(), "{} bytes", block.len());

    // So is who asks for experts that are not held, or asks for what cannot be.
    let cannot = [
        ExpertAsk::Forward { holding: 3, layer: 0, places: vec![(0, 0)], rows: Floats(vec![1.0]) },
        ExpertAsk::Hold { holding: 3, model: model.clone(), experts: Vec::new() },
        ExpertAsk::Hold { holding: 3, model: model.clone(), experts: layers(1, SHARE_EXPERTS as u32 + 1) },
        ExpertAsk::Hold { holding: 3, model: model.clone(), experts: layers(2, 1) },
    ];
    for ask in cannot {
        stranger.is_refused(EXPERTS_PROTOCOL, ask).await?;
    }

    // And who asks for layers.
    let row = StageRow { len: 1, past: 0, slot: 0, horizon: 1 };
    let pass = StageForward {
        holding: 3,
        state: Some(0),
        rows: vec![row],
        wanted: vec![0],
        absent: Vec::new(),
        source: None,
        routed: false,
        floats: Floats(vec![1.0]),
    };
    let hold = |first, count, experts| StageAsk::Hold {
        holding: 3,
        model: model.clone(),
        first,
        count,
        experts,
        elsewhere: Vec::new(),
    };
    let nobody = vec![PeerExperts { peer: "nobody".into(), experts: layers(1, 1) }];
    let cannot = [
        StageAsk::Forward(Box::new(pass)),
        hold(0, 0, Vec::new()),
        hold(u32::MAX, 2, Vec::new()),
        hold(0, u32::MAX, Vec::new()),
        hold(1, 1, layers(1, 1)),
        StageAsk::Hold { holding: 3, model: model.clone(), first: 0, count: 1, experts: Vec::new(), elsewhere: nobody },
    ];
    for ask in cannot {
        stranger.is_refused(STAGES_PROTOCOL, ask).await?;
    }

    // All else ends the stream without a word: at once where the bytes say enough, and where they stop in the middle
    // after a while. In that while, others are served.
    let echo = frame::frame(&ExpertRequest { id: 1, ask: ExpertAsk::Echo(Floats(vec![1.0; 64])) })?;
    let cases: [(&'static str, Vec<u8>, Then); 22] = [
        (EXPERTS_PROTOCOL, echo[..echo.len() / 2].to_vec(), close),
        (EXPERTS_PROTOCOL, echo[..echo.len() / 2].to_vec(), silence),
        (EXPERTS_PROTOCOL, Vec::new(), silence),
        (STAGES_PROTOCOL, echo[..echo.len() / 2].to_vec(), close),
        (STAGES_PROTOCOL, Vec::new(), silence),
        (STAGES_PROTOCOL, announced(u32::MAX, &[]), silence),
        (EXPERTS_PROTOCOL, announced(u32::MAX, &[]), silence),
        (EXPERTS_PROTOCOL, announced(4, &huge[..4]), silence),
        (JOBS_PROTOCOL, Vec::new(), close),
        (JOBS_PROTOCOL, huge.clone(), close),
        (JOBS_PROTOCOL, half.to_vec(), silence),
        (OUTPUT_PROTOCOL, output[..output.len() / 2].to_vec(), close),
        (OUTPUT_PROTOCOL, huge[..100].to_vec(), close),
        (OUTPUT_PROTOCOL, announced(u32::MAX, &[]), silence),
        (OUTPUT_PROTOCOL, announced(4, &huge[..4]), silence),
        (OUTPUT_PROTOCOL, output[..2].to_vec(), silence),
        (OUTPUT_PROTOCOL, output[..output.len() / 2].to_vec(), silence),
        (BLOCKS_PROTOCOL, want[..want.len() / 2].to_vec(), close),
        (BLOCKS_PROTOCOL, vec![255], silence),
        (BLOCKS_PROTOCOL, vec![0], silence),
        (BLOCKS_PROTOCOL, [&[36][..], &huge[..36]].concat(), silence),
        (BLOCKS_PROTOCOL, want[..want.len() / 2].to_vec(), silence),
    ];
    let say = |case: &(&'static str, Vec<u8>, Then)| {
        let (protocol, bytes, then) = case.clone();
        let stranger = &stranger;
        async move { stranger.say(protocol, &bytes, then).await }
    };
    let dropped = join_all(cases.iter().map(say));
    let flooded = join_all((0..32).map(|_| stranger.say(OUTPUT_PROTOCOL, &nearly, silence)));
    let (dropped, flooded, answer) = tokio::join!(dropped, flooded, honest());
    for (case, answer) in dropped.into_iter().chain(flooded).enumerate() {
        ensure!(answer.with_context(|| format!("case {case}"))?.is_empty(), "case {case} was answered");
    }
    assert_eq!(text(&answer?), PARIS);

    assert_eq!(text(&honest().await?), PARIS);
    let grown = peak_memory(&node)?.saturating_sub(before);
    // 32 frames of 1 MiB that never became whole, and what the transport keeps of each stream.
    ensure!(grown < 96 << 20, "the node has grown by {grown} bytes");
    client.stop().await?;
    node.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_can_neither_reach_anothers_job_nor_take_its_places() -> Result<()> {
    let cluster = Cluster::new()?;
    let node = cluster.start("node", true, &[]).await?;
    let model = import(&node, model_file()?).await?;
    let client = cluster.start("client", false, &[&node]).await?;
    let stranger = Stranger::meet(&node).await?;

    // A job of the client's, by the id that only the client and the node know.
    let mut body =
        question(&model, "Count.", Generation { max_tokens: 300, ignore_eos: true, ..Generation::default() });
    let id = JobId(rand::random());
    body.id = Some(id);
    let mut stream = client.api().submit(&body).await?;
    while let Some(record) = stream.next().await {
        if matches!(record?.event, JobEvent::Token { .. }) {
            break;
        }
    }
    assert_eq!(stranger.ask(&JobRequest::Status(id)).await?, JobResponse::Status(None));
    assert_eq!(stranger.ask(&JobRequest::Cancel(id)).await?, JobResponse::Cancelled(false));
    let taken = stranger.ask(&JobRequest::Submit(Box::new(JobSpec { id, ..job(&model, 4) }))).await?;
    let refused = matches!(&taken, JobResponse::Rejected(why) if why.error.code == ErrorCode::InvalidRequest);
    ensure!(refused, "{taken:?}");
    let mut output = stranger.open(OUTPUT_PROTOCOL).await?;
    let record = stranger.first::<EventRecord>(&mut output, &OutputRequest { job: id, from: 0 }).await?;
    let event = record.context("no answer")?.event;
    ensure!(matches!(&event, JobEvent::Failed { error } if error.code == ErrorCode::UnknownJob), "{event:?}");

    // More streams than a peer may hold: those within the limit are served, the others dropped.
    let own = job(&model, 4_000);
    let request = OutputRequest { job: own.id, from: 0 };
    let accepted = stranger.ask(&JobRequest::Submit(Box::new(own))).await?;
    ensure!(matches!(accepted, JobResponse::Accepted { .. }), "{accepted:?}");
    let (mut held, mut refused) = (Vec::new(), 0);
    for _ in 0..STREAMS_PER_PEER + 8 {
        let mut stream = stranger.open(OUTPUT_PROTOCOL).await?;
        match stranger.first::<EventRecord>(&mut stream, &request).await? {
            Some(_) => held.push(stream),
            None => refused += 1,
        }
    }
    assert_eq!((held.len(), refused), (STREAMS_PER_PEER, 8));
    // The blocks are nobody's alone either.
    let mut idle = Vec::new();
    for _ in 0..STREAMS_PER_PEER + 8 {
        idle.push(stranger.open(BLOCKS_PROTOCOL).await?);
    }
    // The client still reads its events, and a third node fetches by the same protocol, not by way of bitswap alone.
    let fetcher = cluster.start("fetcher", false, &[&node]).await?;
    let pulled = fetcher.api().pull(&model, |_| {}).await?;
    ensure!(pulled.peers.iter().any(|(peer, _)| peer.as_deref() == Some(node.peer())), "{:?}", pulled.peers);
    let mut last = None;
    while let Some(record) = stream.next().await {
        last = Some(record?.event);
    }
    ensure!(matches!(last, Some(JobEvent::Done { .. })), "{last:?}");
    // Places that are given back are there again.
    drop(held);
    drop(idle);
    assert_eq!(stranger.ask(&JobRequest::Cancel(request.job)).await?, JobResponse::Cancelled(true));
    let mut stream = stranger.open(OUTPUT_PROTOCOL).await?;
    ensure!(stranger.first::<EventRecord>(&mut stream, &request).await?.is_some(), "the stranger is locked out");
    for node in [fetcher, client, node] {
        node.stop().await?;
    }
    Ok(())
}

/// So many layers, with so many experts each.
fn layers(layers: u32, experts: u32) -> Vec<LayerExperts> {
    (0..layers).map(|layer| LayerExperts { layer, experts: (0..experts).collect() }).collect()
}

/// A protobuf field of bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2][..], &varint(bytes.len()), bytes].concat()
}

fn varint(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A gossip message as it stands on the wire, from `source`, signed by `signer`.
fn gossip(source: PeerId, signer: &Keypair, data: &[u8]) -> Result<Vec<u8>> {
    let number = rand::random::<u64>().to_be_bytes();
    let message =
        [field(1, &source.to_bytes()), field(2, data), field(3, &number), field(4, ADVERTS_TOPIC.as_bytes())].concat();
    let signature = signer.sign(&[b"libp2p-pubsub:", &message[..]].concat())?;
    let signed = [message, field(5, &signature)].concat();
    let rpc = field(2, &signed);
    Ok([varint(rpc.len()), rpc].concat())
}

fn advert(number: u64, agent: &str) -> Advert {
    Advert {
        number,
        expires_unix_ms: unix_ms() + ADVERT_LIFE_MS,
        agent: agent.to_owned(),
        addresses: Vec::new(),
        serves_jobs: false,
        arithmetic: Arithmetic("none".to_owned()),
        devices: Vec::new(),
        models: Vec::new(),
        free_bytes: 0,
        load: Load::default(),
    }
}

/// What `node` believes that `peer` calls itself.
async fn agent(node: &NodeProcess, peer: &str) -> Result<Option<String>> {
    let peers = node.api().peers().await?;
    Ok(peers.into_iter().find(|view| view.peer == peer).and_then(|view| view.advert).map(|advert| advert.agent))
}

/// Looks until `node` believes that `peer` calls itself `name`.
async fn until_called(node: &NodeProcess, peer: &str, name: &str) -> Result<()> {
    let look = async {
        let mut again = tokio::time::interval(Duration::from_millis(20));
        while agent(node, peer).await?.as_deref() != Some(name) {
            again.tick().await;
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, look).await.with_context(|| format!("{peer} is not known as {name}"))?
}

/// A stream of gossip from a stranger to a node. The node reads the newest stream of a connection and closes the one
/// before; the stranger's own gossip opens one too, at a time of its own.
struct Rumour<'a> {
    node: &'a NodeProcess,
    stranger: &'a Stranger,
    stream: Stream,
}

impl<'a> Rumour<'a> {
    async fn begin(node: &'a NodeProcess, stranger: &'a Stranger) -> Result<Self> {
        Ok(Self { node, stranger, stream: stranger.open(GOSSIP_PROTOCOL).await? })
    }

    /// Sends `bytes`, by which the node comes to believe that `peer` calls itself `name`; once more by a new stream
    /// when the node closes this one.
    async fn tell(&mut self, bytes: &[u8], peer: &str, name: &str) -> Result<()> {
        let told = async {
            loop {
                // A stream that the node has closed shows it below.
                let _closed = self.stream.write_all(bytes).await;
                let _closed = self.stream.flush().await;
                let mut nothing = [0];
                tokio::select! {
                    known = until_called(self.node, peer, name) => return known,
                    _closed = self.stream.read(&mut nothing) => {
                        self.stream = self.stranger.open(GOSSIP_PROTOCOL).await?;
                    }
                }
            }
        };
        tokio::time::timeout(PATIENCE, told).await.with_context(|| format!("{name} is not heard"))?
    }

    /// Sends `bytes`, upon which the node closes the stream, and begins a new one.
    async fn break_off(&mut self, bytes: &[u8]) -> Result<()> {
        let _closed = self.stream.write_all(bytes).await;
        let _closed = self.stream.flush().await;
        let closed = tokio::time::timeout(PATIENCE, self.stream.read(&mut [0])).await;
        let _ended = closed.context("the stream stays open")?;
        self.stream = self.stranger.open(GOSSIP_PROTOCOL).await?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn adverts_that_are_forged_stale_or_too_large_change_nothing() -> Result<()> {
    let cluster = Cluster::new()?;
    let node = cluster.start("node", true, &[]).await?;
    let honest = cluster.start("honest", false, &[&node]).await?;
    until_called(&node, honest.peer(), accel_node::AGENT).await?;
    let stranger = Stranger::meet(&node).await?;
    let (own, own_name) = (stranger.id(), stranger.id().to_string());
    let start = unix_ms();

    let encoded = |advert: &Advert| frame::encode(advert);
    let mut wide = advert(start + 50, "wide");
    wide.addresses = vec!["/ip4/127.0.0.1/tcp/1".to_owned(); 9];
    let mut large = advert(start + 60, "large");
    large.arithmetic = Arithmetic("x".repeat(ADVERT_BYTES));
    let replayed = gossip(own, &stranger.keypair, &encoded(&advert(start, "first"))?)?;
    let far = Advert { expires_unix_ms: start + 100 * ADVERT_LIFE_MS, ..advert(start + 30, "for ever") };
    let expired = Advert { expires_unix_ms: start - 1, ..advert(start + 40, "expired") };
    let victim: PeerId = honest.peer().parse()?;
    let bad = [
        ("forged", gossip(victim, &stranger.keypair, &encoded(&advert(u64::MAX - 1, "forged"))?)?),
        ("garbage", gossip(own, &stranger.keypair, &[0xff; 64])?),
        ("empty", gossip(own, &stranger.keypair, &[])?),
        ("older", gossip(own, &stranger.keypair, &encoded(&advert(start - 1, "older"))?)?),
        ("for ever", gossip(own, &stranger.keypair, &encoded(&far)?)?),
        ("expired", gossip(own, &stranger.keypair, &encoded(&expired)?)?),
        ("wide", gossip(own, &stranger.keypair, &encoded(&wide)?)?),
        ("large", gossip(own, &stranger.keypair, &encoded(&large)?)?),
        ("replayed", replayed.clone()),
    ];

    // What follows on the same stream is heard later; an advert of somebody who is not even connected says when.
    let echo = Keypair::generate_ed25519();
    let echo_name = echo.public().to_peer_id().to_string();
    let mut number = 0;
    let mut probe = |case: &str| {
        number += 1;
        gossip(echo.public().to_peer_id(), &echo, &encoded(&advert(number, case))?)
    };
    let mut rumour = Rumour::begin(&node, &stranger).await?;
    rumour.tell(&replayed, &own_name, "first").await?;
    for (case, bytes) in &bad {
        rumour.tell(&[&bytes[..], &probe(case)?].concat(), &echo_name, case).await?;
        assert_eq!(agent(&node, &own_name).await?.as_deref(), Some("first"), "{case}");
        assert_eq!(agent(&node, honest.peer()).await?.as_deref(), Some(accel_node::AGENT), "{case}");
    }
    // A stream that cannot be read on is dropped; the next one is heard. The node refuses the fifth stream of a
    // connection, so each case has its own.
    for (case, bytes) in [("endless", varint(1 << 30)), ("no protobuf", [varint(64), vec![0xff; 64]].concat())] {
        let stranger = Stranger::meet(&node).await?;
        let mut rumour = Rumour::begin(&node, &stranger).await?;
        let before = format!("before {case}");
        rumour.tell(&probe(&before)?, &echo_name, &before).await?;
        rumour.break_off(&bytes).await?;
        rumour.tell(&probe(case)?, &echo_name, case).await?;
    }
    assert_eq!(agent(&node, honest.peer()).await?.as_deref(), Some(accel_node::AGENT));
    node.stop().await?;
    honest.stop().await?;
    Ok(())
}
