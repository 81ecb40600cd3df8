//! The IPFS node with its libp2p swarm, behind concrete types.
//!
//! The swarm is generic over every behaviour in it, and compiling it takes longer than the rest of the node together.
//! So it is instantiated here and nowhere else: no function of this crate is generic and the future comes boxed, so
//! whoever uses the node compiles none of it; and the crate knows nothing of ours, so that it is compiled seldom.
//!
//! rust-ipfs 0.16 only logs what mDNS finds and hands pings to nobody, so a callback on the swarm's events dials the
//! ones and passes the others on, with what becomes known of how nodes reach each other.

#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use connexa::behaviour::BehaviourEvent;
use connexa::prelude::swarm::SwarmEvent;
use connexa::prelude::transport::pnet::PreSharedKey;
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use libp2p::core::ConnectedPoint;
use libp2p::identity::Keypair;
use libp2p::swarm::ConnectionId;
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::{Multiaddr, PeerId, autonat, ping};
use rust_ipfs::builder::IpfsBuilder;
use rust_ipfs::p2p::{IdentifyConfiguration, PubsubConfig, PubsubValidation};
use rust_ipfs::{Ipfs, dummy};

pub use connexa::prelude::GossipsubEvent;
pub use rust_ipfs::RequestResponseConfig;
pub use rust_ipfs::p2p::RelayConfig;

const IDLE_CONNECTION_SECONDS: u64 = 120;
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// The key of a private swarm. It shows itself to nobody who prints it.
#[derive(Clone, PartialEq, Eq)]
pub struct SwarmKey(pub [u8; 32]);

impl std::fmt::Debug for SwarmKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SwarmKey(..)")
    }
}

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What it calls itself to peers.
    pub agent: &'static str,
    /// Where its blocks are; in memory when there is no directory.
    pub repository: Option<PathBuf>,
    /// Addresses to listen on.
    pub listen: Vec<Multiaddr>,
    /// Peers to join by.
    pub bootstrap: Vec<Multiaddr>,
    /// The key of the private swarm that it is in. The key wraps TCP and not QUIC, so QUIC is off with it.
    pub key: Option<SwarmKey>,
    /// Whether to find peers on the local network.
    pub mdns: bool,
    /// Connections held at most.
    pub connections: u32,
    /// Connections held at most with one peer.
    pub connections_per_peer: u32,
    /// How much this node passes on between others.
    pub relay: RelayConfig,
    /// The request-response protocol that it speaks beside those of IPFS.
    pub requests: RequestResponseConfig,
    /// Bytes of a gossiped message at most.
    pub gossip_bytes: usize,
}

/// Something that happened between this node and a peer.
#[derive(Clone, Copy, Debug)]
pub enum PeerEvent {
    /// A connection opened.
    Connected(PeerId, Way),
    /// A connection closed.
    Disconnected(PeerId, Way),
    /// A ping came back.
    RoundTrip(PeerId, Duration),
    /// Others have tried to reach this node.
    Reachability(Reachability),
}

/// How a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From one machine to the other.
    Direct,
    /// By a third that passes on what it cannot read.
    Relayed,
}

/// Whether others can open connections to this node, as far as they have said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reachability {
    /// Nobody has tried.
    #[default]
    Unknown,
    /// They can.
    Public,
    /// They cannot: something between them and the node lets nothing in.
    Private,
}

/// Starts a node. The future stays on its thread until the node runs. `on_event` is called on the swarm's own task, so it must be quick.
///
/// # Errors
/// Resolves to what rust-ipfs says when the identity or the repository cannot be used.
pub fn start(
    keypair: Keypair,
    settings: Settings,
    on_event: Box<dyn Fn(PeerEvent) + Send + Sync>,
) -> LocalBoxFuture<'static, Result<Ipfs, String>> {
    let builder = match builder(&keypair, settings) {
        Ok(builder) => builder,
        Err(error) => return futures::future::ready(Err(error.to_string())).boxed_local(),
    };
    let open = Mutex::new(HashMap::<PeerId, Open>::new());
    let builder = builder.swarm_events(move |swarm, event| match event {
        SwarmEvent::Behaviour(BehaviourEvent::Mdns(libp2p::mdns::Event::Discovered(found))) => {
            // One dial for all addresses of a peer: any of them may lead nowhere, and a second dial is refused while
            // the first goes on.
            let peers: HashSet<PeerId> = found.iter().map(|(peer, _)| *peer).collect();
            for peer in peers {
                let addresses = found.iter().filter(|(of, _)| *of == peer).map(|(_, address)| address.clone());
                // Both peers find each other in the same moment. If each dialled from the port that it listens on, TCP
                // would make one connection of both dials (RFC 9293, section 3.5), in which nobody answers.
                let dial = DialOpts::peer_id(peer).addresses(addresses.collect()).allocate_new_port().build();
                if let Err(error) = swarm.dial(dial) {
                    tracing::debug!(%peer, %error, "a peer on the local network was not dialled");
                }
            }
        }
        SwarmEvent::Behaviour(BehaviourEvent::Ping(ping::Event { peer, result: Ok(time), .. })) => {
            on_event(PeerEvent::RoundTrip(*peer, *time));
        }
        SwarmEvent::Behaviour(BehaviourEvent::AutonatV1(autonat::v1::Event::StatusChanged { new, .. })) => {
            on_event(PeerEvent::Reachability(match new {
                autonat::v1::NatStatus::Public(_) => Reachability::Public,
                autonat::v1::NatStatus::Private => Reachability::Private,
                autonat::v1::NatStatus::Unknown => Reachability::Unknown,
            }));
        }
        SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
            let way = way(endpoint);
            on_event(PeerEvent::Connected(*peer_id, way));
            let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
            let of_peer = open.entry(*peer_id).or_default();
            of_peer.add(*connection_id, way);
            for connection in of_peer.of_no_use() {
                swarm.close_connection(connection);
            }
        }
        SwarmEvent::ConnectionClosed { peer_id, connection_id, endpoint, num_established, .. } => {
            let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
            if *num_established == 0 {
                open.remove(peer_id);
            } else if let Some(of_peer) = open.get_mut(peer_id) {
                of_peer.remove(*connection_id, way(endpoint));
            }
            on_event(PeerEvent::Disconnected(*peer_id, way(endpoint)));
        }
        _ => {}
    });
    async move { builder.start().await.map_err(|error| format!("{error:#}")) }.boxed_local()
}

/// The connections with one peer.
#[derive(Debug, Default)]
struct Open {
    direct: usize,
    relayed: HashSet<ConnectionId>,
}

impl Open {
    fn add(&mut self, connection: ConnectionId, way: Way) {
        match way {
            Way::Direct => self.direct += 1,
            Way::Relayed => {
                self.relayed.insert(connection);
            }
        }
    }

    fn remove(&mut self, connection: ConnectionId, way: Way) {
        match way {
            Way::Direct => self.direct = self.direct.saturating_sub(1),
            Way::Relayed => {
                self.relayed.remove(&connection);
            }
        }
    }

    /// Those by a relay, once there is a direct one: what is sent might still go by them.
    fn of_no_use(&self) -> impl Iterator<Item = ConnectionId> {
        self.relayed.iter().copied().filter(|_| self.direct > 0)
    }
}

fn way(endpoint: &ConnectedPoint) -> Way {
    if endpoint.is_relayed() { Way::Relayed } else { Way::Direct }
}

fn builder(keypair: &Keypair, settings: Settings) -> std::io::Result<IpfsBuilder<dummy::Behaviour>> {
    let (connections, per_peer) = (settings.connections, settings.connections_per_peer);
    let mut builder = IpfsBuilder::with_keypair(keypair)?
        .enable_tcp()
        .with_identify(IdentifyConfiguration { agent_version: settings.agent.to_owned(), ..Default::default() })
        .with_ping(ping::Config::new().with_interval(PING_INTERVAL))
        // Others are asked whether they can reach this node; where they cannot, peers that can be reached pass connections
        // on, until the two ends have found a way to each other.
        .with_autonat()
        .with_relay(true)
        .with_autorelay()
        .with_relay_server(settings.relay)
        .with_kademlia()
        .with_bitswap()
        .with_streams()
        .with_pubsub(PubsubConfig {
            max_transmit_size: settings.gossip_bytes,
            validate: PubsubValidation::Strict,
            ..Default::default()
        })
        .with_request_response(vec![settings.requests])
        .set_connection_limits(move |limits| {
            limits
                .with_max_established(Some(connections))
                .with_max_pending_incoming(Some(connections))
                .with_max_pending_outgoing(Some(connections))
                .with_max_established_per_peer(Some(per_peer))
        })
        .set_idle_connection_timeout(IDLE_CONNECTION_SECONDS)
        .set_listening_addrs(settings.listen);
    builder = match settings.key {
        Some(SwarmKey(key)) => builder.enable_pnet(PreSharedKey::new(key)),
        None => builder.enable_quic(),
    };
    if settings.mdns {
        builder = builder.with_mdns();
    }
    if let Some(path) = settings.repository {
        builder = builder.set_path(path);
    }
    Ok(settings.bootstrap.into_iter().fold(builder, IpfsBuilder::add_bootstrap))
}
