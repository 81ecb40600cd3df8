//! Peers to join by are asked again while nobody else is there: they may start later, or come back.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use futures::future::join_all;
use libp2p::{Multiaddr, PeerId};
use tokio_util::sync::CancellationToken;

use crate::swarm::{Swarm, peer_of};

/// The swarm dials them once by itself when it starts, and this is how long that gets.
const FIRST: Duration = Duration::from_secs(1);
/// The pause doubles up to this.
const LONGEST: Duration = Duration::from_secs(60);

/// Dials `bootstrap` now and then while no connection is open, until `stop`.
///
/// # Errors
/// None.
pub async fn run(swarm: Swarm, bootstrap: Vec<Multiaddr>, stop: CancellationToken) -> Result<(), Infallible> {
    let mut peers: HashMap<PeerId, Vec<Multiaddr>> = HashMap::new();
    for address in bootstrap {
        if let Some(peer) = peer_of(&address) {
            peers.entry(peer).or_default().push(address);
        }
    }
    let _stopped = stop.run_until_cancelled(rejoin(&swarm, &peers)).await;
    Ok(())
}

async fn rejoin(swarm: &Swarm, peers: &HashMap<PeerId, Vec<Multiaddr>>) -> Infallible {
    let mut changes = swarm.peers().changes();
    let mut pause = FIRST;
    let mut told = false;
    loop {
        tokio::time::sleep(pause).await;
        if peers.is_empty() || swarm.peers().any_connected() {
            (pause, told) = (FIRST, false);
            // The handle on the peers lives as long as the swarm that this was given.
            let _closed = changes.changed().await;
            continue;
        }
        let dials = peers.iter().map(|(peer, addresses)| swarm.connect_by(*peer, addresses.clone()));
        for dialled in join_all(dials).await {
            match dialled {
                Ok(()) => {}
                Err(error) if told => tracing::debug!(%error, "a peer to join by is not reached"),
                Err(error) => tracing::warn!(%error, "a peer to join by is not reached; it is tried again"),
            }
        }
        told = true;
        pause = (pause * 2).min(LONGEST);
    }
}
