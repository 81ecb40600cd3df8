//! The one swarm of a node: the libp2p swarm that rust-ipfs owns carries blocks, adverts and jobs.

mod handshake;
mod listeners;

pub use handshake::misfit;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use accel_ipfs::{GossipsubEvent, PeerEvent, Reachability, RelayConfig, RequestResponseConfig, Settings};
use accel_protocol::frame::{self, FrameError};
use accel_protocol::limits::{ADVERT_BYTES, FRAME_BYTES, REQUESTS_PER_PEER, STREAMS_PER_PEER};
use accel_protocol::message::{ADVERTS_TOPIC, JOBS_PROTOCOL, OUTPUT_PROTOCOL};
use accel_protocol::{JobRequest, JobResponse, ModelRef, OutputRequest};
use futures::future::join_all;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{Stream, StreamExt};
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::DialError;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::{Multiaddr, PeerId, StreamProtocol};
use rust_ipfs::Ipfs;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::SwarmConfig;
use crate::frames::FrameStream;
use crate::membership::{Membership, SwarmName};
use crate::peers::{Peer, Peers};

pub use handshake::Misfit;

/// A request that is not answered within this time counts as lost.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// A dial by TCP with Noise and Yamux takes about five round trips, a request one or two.
const PATIENT_ROUND_TRIPS: u32 = 15;
/// For a peer that has not been measured.
const UNKNOWN_ROUND_TRIP: Duration = Duration::from_millis(200);
/// A busy machine may take so long to do anything.
const LEAST_PATIENCE: Duration = Duration::from_millis(500);
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);
/// Time that more providers get once there is one.
const MORE_PROVIDERS: Duration = Duration::from_millis(300);
/// Peers whose places for requests are remembered while none is in use.
const ASKED: usize = 1024;
/// How long two peers that a relay has connected get to find a way to each other.
const TRAVERSAL: Duration = Duration::from_secs(5);
/// What a relay passes on in one connection: what is said about jobs, and small jobs with their answers; no weights.
const RELAYED_BYTES: u64 = 4 << 20;
const RELAYED_FOR: Duration = Duration::from_secs(30 * 60);
/// Peers that a relay is there for at once.
const RESERVATIONS: usize = 128;
/// Connections that a relay passes on at once, and of one peer.
const RELAYED: usize = 64;
const RELAYED_PER_PEER: usize = 8;
/// Providers of one model that are asked.
const PROVIDERS: usize = 16;

/// Something went wrong between this node and a peer, or in the swarm itself.
#[derive(Debug, thiserror::Error)]
pub enum SwarmError {
    /// rust-ipfs reports a failure.
    #[error("{doing}: {message}")]
    Ipfs {
        /// What was being done.
        doing: &'static str,
        /// What rust-ipfs says.
        message: String,
    },
    /// No address of ours came up.
    #[error("cannot listen on {address}: is the port in use?")]
    Listen {
        /// The address asked for.
        address: Multiaddr,
    },
    /// A peer cannot be reached.
    #[error("peer {peer} cannot be reached: {message}")]
    Unreachable {
        /// The peer.
        peer: PeerId,
        /// Why.
        message: String,
    },
    /// A peer is reached by TCP, but no connection comes about, which fits with keys that do not.
    #[error("peer {peer} is there, but the handshake fails: {misfit}")]
    Misfit {
        /// The peer.
        peer: PeerId,
        /// Whose key is missing or another, probably.
        misfit: Misfit,
    },
    /// A private swarm is to be joined with no address of TCP to listen on.
    #[error(
        "swarm.listen has addresses of QUIC only, and a private swarm runs over TCP: add one such as /ip4/0.0.0.0/tcp/4601"
    )]
    OnlyQuic,
    /// A peer did not answer in time.
    #[error("peer {peer} did not answer within {:.1} s", within.as_secs_f64())]
    Silent {
        /// The peer.
        peer: PeerId,
        /// The time it had.
        within: Duration,
    },
    /// A peer sent something that is not of the protocol.
    #[error("peer {peer}: {source}")]
    Frame {
        /// The peer.
        peer: PeerId,
        /// What is wrong.
        #[source]
        source: FrameError,
    },
    /// A peer is reached by a relay, and nothing large goes that way.
    #[error("peer {peer} is reached by a relay only, and models and their numbers travel by no relay")]
    OnlyRelayed {
        /// The peer.
        peer: PeerId,
    },
    /// A stream broke.
    #[error("the stream with peer {peer} broke: {source}")]
    Stream {
        /// The peer.
        peer: PeerId,
        /// How.
        #[source]
        source: std::io::Error,
    },
    /// An address names no peer.
    #[error("{address} names no peer; it must end in /p2p/PEER_ID")]
    NoPeerId {
        /// The address.
        address: Multiaddr,
    },
}

fn ipfs(doing: &'static str) -> impl FnOnce(rust_ipfs::Error) -> SwarmError {
    move |error| SwarmError::Ipfs { doing, message: format!("{error:#}") }
}

/// A handle on the swarm; clones share it.
#[derive(Clone, Debug)]
pub struct Swarm {
    ipfs: Ipfs,
    peers: Peers,
    /// Requests that each peer may still be asked at the same time.
    asking: Arc<Mutex<HashMap<PeerId, Arc<Semaphore>>>>,
    /// The private swarm's name; none in the public one.
    name: Option<SwarmName>,
    /// Whether others can open connections to this node.
    reachability: watch::Sender<Reachability>,
}

impl Swarm {
    /// Starts a swarm that keeps its blocks under `repository`, or in memory when there is none. With a `membership` it
    /// is a private one, and `config` is what [`private`] makes of it.
    ///
    /// # Errors
    /// When the repository cannot be opened or no listener comes up.
    pub async fn start(
        keypair: &Keypair,
        config: &SwarmConfig,
        membership: Option<&Membership>,
        repository: Option<&Path>,
    ) -> Result<Self, SwarmError> {
        let peers = Peers::default();
        let settings = Settings {
            agent: crate::AGENT,
            repository: repository.map(Path::to_owned),
            listen: config.listen.clone(),
            bootstrap: config.bootstrap.clone(),
            key: membership.map(|membership| membership.key.clone()),
            mdns: config.mdns,
            connections: config.connections,
            connections_per_peer: config.connections_per_peer,
            requests: RequestResponseConfig::new(JOBS_PROTOCOL)
                .set_timeout(REQUEST_TIMEOUT)
                .set_max_request_size(FRAME_BYTES)
                .set_max_response_size(FRAME_BYTES)
                .set_concurrent_streams(STREAMS_PER_PEER),
            relay: relayed(config.relay),
            // An advert with what gossip adds to it: sender, number, signature, topic.
            gossip_bytes: 2 * ADVERT_BYTES,
        };
        let (table, reachability) = (peers.clone(), watch::Sender::default());
        let told = reachability.clone();
        let on_event = Box::new(move |event| match event {
            PeerEvent::Connected(peer, way) => table.add_connection(peer, way),
            PeerEvent::Disconnected(peer, way) => table.remove_connection(peer, way),
            PeerEvent::RoundTrip(peer, time) => table.set_round_trip(peer, time),
            PeerEvent::Reachability(found) => told.send_modify(|known| *known = found),
        });
        let node = accel_ipfs::start(keypair.clone(), settings, on_event)
            .await
            .map_err(|message| SwarmError::Ipfs { doing: "start the swarm", message })?;
        let name = membership.map(|membership| membership.name.clone());
        let swarm = Self { ipfs: node, peers, asking: Arc::default(), name, reachability };
        listeners::wait(&swarm.ipfs, &config.listen).await?;
        // A small swarm has no strangers to measure reachability; a node that listens serves the DHT.
        swarm.ipfs.dht_mode(rust_ipfs::DhtMode::Server).await.map_err(ipfs("serve the DHT"))?;
        for address in &config.external {
            swarm.ipfs.add_external_address(address.clone()).await.map_err(ipfs("add an external address"))?;
        }
        // Provider records carry external addresses only: without one, nobody who looks up a provider finds this node.
        for address in swarm.listen_addresses().await? {
            swarm.ipfs.add_external_address(address).await.map_err(ipfs("add an external address"))?;
        }
        Ok(swarm)
    }

    /// This node's id.
    pub fn id(&self) -> PeerId {
        self.ipfs.keypair().public().to_peer_id()
    }

    /// The name of the private swarm; none in the public one.
    pub fn name(&self) -> Option<&SwarmName> {
        self.name.as_ref()
    }

    /// Whether others can open connections to this node, as far as they have said.
    pub fn reachability(&self) -> Reachability {
        *self.reachability.borrow()
    }

    /// Has others pass connections on to this node as long as it cannot be reached, until `stop`.
    ///
    /// # Errors
    /// When the swarm has stopped.
    pub async fn stay_reachable(self, stop: CancellationToken) -> Result<(), SwarmError> {
        let mut reachability = self.reachability.subscribe();
        loop {
            let found = *reachability.borrow_and_update();
            match found {
                Reachability::Unknown => {}
                Reachability::Public => self.ipfs.disable_autorelay().await.map_err(ipfs("need no relay"))?,
                Reachability::Private => self.ipfs.enable_autorelay().await.map_err(ipfs("ask for a relay"))?,
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Ok(()) = reachability.changed() => tracing::info!(reachability = ?*reachability.borrow(), "peers have tried"),
            }
        }
    }

    /// Who is there.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// The IPFS node, for the store.
    pub fn ipfs(&self) -> &Ipfs {
        &self.ipfs
    }

    /// Addresses this node listens on, without its id.
    ///
    /// # Errors
    /// When the swarm has stopped.
    pub async fn listen_addresses(&self) -> Result<Vec<Multiaddr>, SwarmError> {
        let mut addresses = self.ipfs.listening_addresses().await.map_err(ipfs("list listeners"))?;
        for address in &mut addresses {
            if matches!(address.iter().last(), Some(Protocol::P2p(_))) {
                address.pop();
            }
        }
        // Where there is a relay, nothing else may lead here: it comes first, should not all addresses be told.
        addresses.sort_by_key(|address| (!is_relayed(address), address.clone()));
        addresses.dedup();
        Ok(addresses)
    }

    /// Connects to the peer that `address` ends in.
    ///
    /// # Errors
    /// When the address names no peer or the peer cannot be reached.
    pub async fn connect_to(&self, address: &Multiaddr) -> Result<PeerId, SwarmError> {
        let peer = peer_of(address).ok_or_else(|| SwarmError::NoPeerId { address: address.clone() })?;
        self.connect_by(peer, vec![address.clone()]).await?;
        Ok(peer)
    }

    /// Connects to `peer` by any of `addresses`.
    ///
    /// # Errors
    /// When the peer cannot be reached, with what that has to do with private swarms, as far as it can be told.
    pub async fn connect_by(&self, peer: PeerId, addresses: Vec<Multiaddr>) -> Result<(), SwarmError> {
        let Err(failed) = self.dial(peer, addresses.clone()).await else { return Ok(()) };
        if !failed.in_transport {
            return Err(failed.error);
        }
        let misfits = join_all(addresses.iter().map(|address| handshake::misfit(address, self.name()))).await;
        let misfit = misfits.into_iter().flatten().next();
        Err(misfit.map_or(failed.error, |misfit| SwarmError::Misfit { peer, misfit }))
    }

    /// Makes sure that a connection to `peer` is open, by the addresses of its advert and those that the swarm knows.
    ///
    /// # Errors
    /// When the peer cannot be reached.
    pub async fn connect(&self, peer: PeerId) -> Result<(), SwarmError> {
        let known = self.peers.get(&peer);
        if known.as_ref().is_some_and(Peer::is_connected) {
            return Ok(());
        }
        let advertised = known.and_then(|known| known.advert).map(|advert| advert.addresses).unwrap_or_default();
        let addresses = advertised.iter().filter_map(|text| text.parse().ok()).collect();
        self.dial(peer, addresses).await.map_err(|failed| failed.error)
    }

    /// Makes sure that a connection to `peer` is open that goes by no relay, for what is too large to be passed on.
    ///
    /// # Errors
    /// When the peer cannot be reached, or by a relay only.
    pub async fn connect_directly(&self, peer: PeerId) -> Result<(), SwarmError> {
        self.connect(peer).await?;
        let is_direct = || self.peers.get(&peer).is_some_and(|known| known.is_connected() && !known.is_only_relayed());
        let mut changes = self.peers.changes();
        let found = async {
            // The two ends look for a way to each other as soon as they are connected.
            while !is_direct() {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(TRAVERSAL, found).await.map_err(|_| SwarmError::OnlyRelayed { peer })
    }

    async fn dial(&self, peer: PeerId, addresses: Vec<Multiaddr>) -> Result<(), FailedDial> {
        // A dial that is already under way, from our side or by mDNS, must not make this one fail.
        let dial = DialOpts::peer_id(peer)
            .condition(PeerCondition::Always)
            .addresses(addresses)
            .extend_addresses_through_behaviour()
            .build();
        let failed = |in_transport: bool, message: String| FailedDial {
            in_transport,
            error: SwarmError::Unreachable { peer, message },
        };
        match tokio::time::timeout(DIAL_TIMEOUT, self.ipfs.connect(dial)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => {
                let dial = match error.downcast_ref::<connexa::error::Error>() {
                    Some(connexa::error::Error::Dial(dial)) => Some(&**dial),
                    _ => None,
                };
                Err(failed(matches!(dial, Some(DialError::Transport(_))), format!("{error:#}")))
            }
            Err(_) => Err(failed(true, format!("no connection within {} s", DIAL_TIMEOUT.as_secs()))),
        }
    }

    /// How long `peer` gets for what a living one does at once, such as to let itself be dialled: some of its round
    /// trips.
    pub fn patience(&self, peer: PeerId) -> Duration {
        let round_trip = self.peers.get(&peer).and_then(|known| known.round_trip).unwrap_or(UNKNOWN_ROUND_TRIP);
        (round_trip * PATIENT_ROUND_TRIPS).clamp(LEAST_PATIENCE, DIAL_TIMEOUT)
    }

    /// Asks `peer` something by `/accel/jobs/1`, and waits `within` for the answer.
    ///
    /// # Errors
    /// When the peer cannot be reached, does not answer in time, or answers something else.
    pub async fn request(
        &self,
        peer: PeerId,
        request: &JobRequest,
        within: Duration,
    ) -> Result<JobResponse, SwarmError> {
        let bytes = frame::encode(request).map_err(|source| SwarmError::Frame { peer, source })?;
        let places = self.asking(peer);
        let ask = async {
            // More than a peer takes would be refused there; they wait here instead.
            let _place = places.acquire().await;
            self.connect(peer).await?;
            let send = self.ipfs.send_request(peer, (StreamProtocol::new(JOBS_PROTOCOL), bytes));
            send.await.map_err(|error| SwarmError::Unreachable { peer, message: format!("{error:#}") })
        };
        let answer = tokio::time::timeout(within, ask).await.map_err(|_| SwarmError::Silent { peer, within })??;
        frame::decode(&answer).map_err(|source| SwarmError::Frame { peer, source })
    }

    fn asking(&self, peer: PeerId) -> Arc<Semaphore> {
        // Entries are whole at any time.
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        if asking.len() >= ASKED {
            asking.retain(|_, places| Arc::strong_count(places) > 1);
        }
        asking.entry(peer).or_insert_with(|| Arc::new(Semaphore::new(REQUESTS_PER_PEER))).clone()
    }

    /// Opens the stream of a job's events `within` that time.
    ///
    /// # Errors
    /// When the peer cannot be reached in time or the stream breaks.
    pub async fn open_output(
        &self,
        peer: PeerId,
        request: OutputRequest,
        within: Duration,
    ) -> Result<FrameStream, SwarmError> {
        let mut frames = self.open_stream(peer, OUTPUT_PROTOCOL, within).await?;
        frames.send(&request).await?;
        Ok(frames)
    }

    /// Opens a stream of a protocol `within` that time.
    ///
    /// # Errors
    /// When the peer cannot be reached in time or does not speak the protocol.
    pub async fn open_stream(
        &self,
        peer: PeerId,
        protocol: &'static str,
        within: Duration,
    ) -> Result<FrameStream, SwarmError> {
        let open = async {
            self.connect(peer).await?;
            let stream = self.ipfs.open_stream(peer, protocol).await;
            stream.map_err(|error| SwarmError::Unreachable { peer, message: format!("{error:#}") })
        };
        let stream = tokio::time::timeout(within, open).await.map_err(|_| SwarmError::Silent { peer, within })??;
        Ok(FrameStream::new(peer, stream))
    }

    /// Hears the adverts of others.
    ///
    /// # Errors
    /// When the swarm has stopped.
    pub async fn adverts(&self) -> Result<BoxStream<'static, GossipsubEvent>, SwarmError> {
        self.ipfs.pubsub_subscribe(ADVERTS_TOPIC.to_owned()).await.map_err(ipfs("subscribe to adverts"))?;
        self.ipfs.pubsub_listener(ADVERTS_TOPIC.to_owned()).await.map_err(ipfs("listen for adverts"))
    }

    /// Peers that have `model` and can be reached: by their adverts, and by the provider records of its root.
    ///
    /// Records outlive the peers that they name, so one that does not answer holds up nobody else.
    pub async fn providers(&self, model: &ModelRef) -> Vec<PeerId> {
        let own = self.id();
        let mut providers = self.peers.holders(model);
        let limit = if providers.is_empty() { LOOKUP_TIMEOUT } else { MORE_PROVIDERS };
        match self.ipfs.get_providers(model.cid).await {
            Ok(found) => {
                let others = found.flat_map(|found| futures::stream::iter(found.unwrap_or_default()));
                let others = others.filter(|peer| futures::future::ready(*peer != own));
                providers.extend(gather(others, limit).await);
            }
            Err(error) => tracing::debug!(%model, %error, "providers could not be looked up"),
        }
        // Those that say so themselves come first: anybody may store records in the DHT.
        let mut seen = HashSet::new();
        providers.retain(|peer| *peer != own && seen.insert(*peer));
        providers.truncate(PROVIDERS);
        let dials: FuturesUnordered<_> = providers.into_iter().map(|peer| self.reach(peer)).collect();
        gather(dials.filter_map(futures::future::ready), DIAL_TIMEOUT).await
    }

    /// The peer, if a connection to it is open or can be opened.
    async fn reach(&self, peer: PeerId) -> Option<PeerId> {
        match self.connect_directly(peer).await {
            Ok(()) => Some(peer),
            Err(error) => {
                tracing::debug!(%error, "a provider is left out");
                None
            }
        }
    }

    /// Stops the swarm.
    pub async fn stop(self) {
        self.ipfs.exit_daemon().await;
    }
}

/// The peer that `address` ends in.
pub fn peer_of(address: &Multiaddr) -> Option<PeerId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}

/// A dial that did not end in a connection.
#[derive(Debug)]
struct FailedDial {
    /// Whether nobody was met, as against somebody else.
    in_transport: bool,
    error: SwarmError,
}

/// What `config` becomes in a private swarm, whose key wraps TCP and not QUIC: the addresses of TCP, and the members to join
/// by beside the peers of the configuration.
///
/// # Errors
/// When nothing is left to listen on.
pub fn private(config: &SwarmConfig, membership: &Membership, own: PeerId) -> Result<SwarmConfig, SwarmError> {
    let mut private = config.clone();
    for addresses in [&mut private.listen, &mut private.external, &mut private.bootstrap] {
        addresses.retain(|address| !address.iter().any(|part| matches!(part, Protocol::Udp(_))));
    }
    if private.listen.is_empty() && !config.listen.is_empty() {
        return Err(SwarmError::OnlyQuic);
    }
    if private.listen.len() < config.listen.len() {
        tracing::info!(swarm = %membership.name, "QUIC is off in a private swarm, whose key does not wrap it");
    }
    let members = membership.bootstrap.iter().filter(|member| member.peer != own);
    private.bootstrap.extend(members.map(|member| member.to_multiaddr()));
    Ok(private)
}

/// How much this node passes on between others; nothing where it is no relay.
fn relayed(is_relay: bool) -> RelayConfig {
    let (reservations, circuits) = if is_relay { (RESERVATIONS, RELAYED) } else { (0, 0) };
    RelayConfig {
        max_reservations: reservations,
        max_circuits: circuits,
        max_circuits_per_peer: RELAYED_PER_PEER,
        max_circuit_duration: RELAYED_FOR,
        max_circuit_bytes: RELAYED_BYTES,
        ..RelayConfig::default()
    }
}

fn is_relayed(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}

/// What `stream` gives within `limit`; once it has given something, only what comes soon after.
async fn gather<T>(stream: impl Stream<Item = T>, limit: Duration) -> Vec<T> {
    let mut stream = std::pin::pin!(stream);
    let mut end = Instant::now() + limit;
    let mut gathered = Vec::new();
    while let Ok(Some(item)) = tokio::time::timeout_at(end, stream.next()).await {
        if gathered.is_empty() {
            end = end.min(Instant::now() + MORE_PROVIDERS);
        }
        gathered.push(item);
    }
    gathered
}
