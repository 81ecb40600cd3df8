//! Sees to it that experts whose peer was lost, or has become slow, get another.
//!
//! The thread that works on the model never waits for this: meanwhile it asks replicas, or stands in for the experts
//! itself.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use accel_models::share::Share;
use accel_protocol::ModelRef;
use libp2p::PeerId;
use tokio::sync::Notify;

use super::coordinator::{Coordinator, Known};
use super::experts::{Place, Spread};
use super::plan::{self, Wish};

/// How often it looks without being told.
const LOOK: Duration = Duration::from_secs(5);
/// How long it lets troubles gather.
const GATHER: Duration = Duration::from_millis(50);

/// Looks after the experts of one model for as long as it is loaded.
pub async fn keep(
    coordinator: Coordinator,
    model: ModelRef,
    known: Arc<Known>,
    spread: Weak<Spread>,
    trouble: Arc<Notify>,
) {
    loop {
        // Nobody tells of trouble on a model that is at rest.
        let _told = tokio::time::timeout(LOOK, trouble.notified()).await;
        tokio::time::sleep(GATHER).await;
        let Some(spread) = spread.upgrade() else { return };
        mend(&coordinator, &model, &known, &spread).await;
    }
}

async fn mend(coordinator: &Coordinator, model: &ModelRef, known: &Known, spread: &Arc<Spread>) {
    let (well, ill): (Vec<_>, Vec<_>) = spread.remotes().into_iter().partition(|(remote, _)| remote.is_well());
    let housed: HashSet<Place> = well.iter().flat_map(|(_, places)| places).copied().chain(spread.here()).collect();
    let mut homeless = Share::default();
    homeless.experts.extend(known.costs().places().filter(|place| !housed.contains(place)));
    for (remote, _) in &ill {
        tracing::warn!(peer = %remote.peer, open = remote.is_open(), "a peer no longer serves its experts as it should");
        // Who is gone is asked no more; who is only slow, until others have what it has.
        if !remote.is_open() {
            spread.remove(remote);
        }
    }
    if !homeless.experts.is_empty() {
        let avoided: HashSet<PeerId> = ill.iter().map(|(remote, _)| remote.peer).collect();
        let mut others = coordinator.others(model, known, &Wish::default()).await;
        others.retain(|machine| machine.peer.is_some_and(|peer| !avoided.contains(&peer)));
        let (dealt, mut left) = plan::deal_again(known.costs(), &others, &homeless);
        for (peer, share) in dealt {
            match coordinator.hold(model, known, peer, &share).await {
                Ok((remote, places)) => spread.add(&remote, places),
                Err(error) => {
                    tracing::warn!(%peer, %error, "a peer does not take experts over");
                    left.experts.extend(share.experts);
                }
            }
        }
        if !left.experts.is_empty()
            && let Err(error) = spread.settle(&left).await
        {
            // They are stood in for one by one, or stay with the peer that is slow.
            tracing::warn!(%error, experts = left.experts.len(), "experts found no other place");
            return;
        }
    }
    ill.iter().for_each(|(remote, _)| spread.remove(remote));
}
