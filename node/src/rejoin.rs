//! Peers to join by are asked again while nobody else is there: they may start later, or come back.

use std::convert::Infallible;
use std::time::Duration;

use futures::future::join_all;
use libp2p::Multiaddr;
use tokio_util::sync::CancellationToken;

use crate::swarm::Swarm;

/// The swarm dials them once by itself when it starts, and this is how long that gets.
const FIRST: Duration = Duration::from_secs(1);
/// The pause doubles up to this.
const LONGEST: Duration = Duration::from_secs(60);

/// Dials `bootstrap` now and then while no connection is open, until `stop`.
///
/// # Errors
/// None.
pub async fn run(swarm: Swarm, bootstrap: Vec<Multiaddr>, stop: CancellationToken) -> Result<(), Infallible> {
    let _stopped = stop.run_until_cancelled(rejoin(&swarm, &bootstrap)).await;
    Ok(())
}

async fn rejoin(swarm: &Swarm, bootstrap: &[Multiaddr]) -> Infallible {
    let mut changes = swarm.peers().changes();
    let mut pause = FIRST;
    let mut told = false;
    loop {
        tokio::time::sleep(pause).await;
        if bootstrap.is_empty() || swarm.peers().any_connected() {
            (pause, told) = (FIRST, false);
            // The handle on the peers lives as long as the swarm that this was given.
            let _closed = changes.changed().await;
            continue;
        }
        for failed in join_all(bootstrap.iter().map(|address| swarm.connect_to(address))).await {
            match failed {
                Ok(peer) => tracing::debug!(%peer, "joined by a peer"),
                Err(error) if told => tracing::debug!(%error, "a peer to join by is not reached"),
                Err(error) => tracing::warn!(%error, "a peer to join by is not reached; it is tried again"),
            }
        }
        told = true;
        pause = (pause * 2).min(LONGEST);
    }
}
