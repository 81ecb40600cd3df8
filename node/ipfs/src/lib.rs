//! The IPFS node with its libp2p swarm, behind concrete types.
//!
//! The swarm is generic over every behaviour in it, and compiling it takes longer than the rest of the node together.
//! So it is instantiated here and nowhere else: no function of this crate is generic and the future comes boxed, so
//! whoever uses the node compiles none of it; and the crate knows nothing of ours, so that it is compiled seldom.
//!
//! rust-ipfs 0.16 only logs what mDNS finds and hands pings to nobody, so a callback on the swarm's events dials the
//! ones and passes the others on.

#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use connexa::behaviour::BehaviourEvent;
use connexa::prelude::swarm::SwarmEvent;
use connexa::prelude::transport::pnet::PreSharedKey;
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use libp2p::identity::Keypair;
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::{Multiaddr, PeerId, ping};
use rust_ipfs::builder::IpfsBuilder;
use rust_ipfs::p2p::{IdentifyConfiguration, PubsubConfig, PubsubValidation};
use rust_ipfs::{Ipfs, dummy};

pub use connexa::prelude::GossipsubEvent;
pub use rust_ipfs::RequestResponseConfig;

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
    /// The request-response protocol that it speaks beside those of IPFS.
    pub requests: RequestResponseConfig,
    /// Bytes of a gossiped message at most.
    pub gossip_bytes: usize,
}

/// Something that happened between this node and a peer.
#[derive(Clone, Copy, Debug)]
pub enum PeerEvent {
    /// A connection opened.
    Connected(PeerId),
    /// The last connection closed.
    Disconnected(PeerId),
    /// A ping came back.
    RoundTrip(PeerId, Duration),
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
        SwarmEvent::ConnectionEstablished { peer_id, .. } => on_event(PeerEvent::Connected(*peer_id)),
        SwarmEvent::ConnectionClosed { peer_id, num_established: 0, .. } => {
            on_event(PeerEvent::Disconnected(*peer_id));
        }
        _ => {}
    });
    async move { builder.start().await.map_err(|error| format!("{error:#}")) }.boxed_local()
}

fn builder(keypair: &Keypair, settings: Settings) -> std::io::Result<IpfsBuilder<dummy::Behaviour>> {
    let (connections, per_peer) = (settings.connections, settings.connections_per_peer);
    let mut builder = IpfsBuilder::with_keypair(keypair)?
        .enable_tcp()
        .with_identify(IdentifyConfiguration { agent_version: settings.agent.to_owned(), ..Default::default() })
        .with_ping(ping::Config::new().with_interval(PING_INTERVAL))
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
