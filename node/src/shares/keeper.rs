//! Sees to it that experts and layers whose peer was lost, or has become slow, get another.
//!
//! For experts the thread that works on the model never waits: meanwhile it asks replicas, or stands in for them itself.
//! Layers that have no place are waited for.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use accel_models::share::{Part, Share};
use accel_protocol::{ErrorCode, JobError, ModelRef};
use libp2p::PeerId;
use tokio::sync::Notify;

use super::coordinator::{Coordinator, Known, Post};
use super::experts::{Place, Spread};
use super::plan;
use super::stages::{Found, Relay, RemoteStage, WeakRelay};
use crate::scheduler::Models;

/// How often it looks without being told.
const LOOK: Duration = Duration::from_secs(5);
/// How often it looks whether layers are late.
const GLANCE: Duration = Duration::from_millis(250);
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
    let of_layers = known.costs().places().filter(|place| spread.covers(place.0));
    homeless.experts.extend(of_layers.filter(|place| !housed.contains(place)));
    for (remote, _) in &ill {
        tracing::warn!(peer = %remote.peer, open = remote.is_open(), "a peer no longer serves its experts as it should");
        // Who is gone is asked no more; who is only slow, until others have what it has.
        if !remote.is_open() {
            spread.remove(remote);
        }
    }
    if !homeless.experts.is_empty() {
        let avoided: HashSet<PeerId> = ill.iter().map(|(remote, _)| remote.peer).collect();
        let others = coordinator.helpers(model, known, &avoided).await;
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

/// The experts that others have of the layers of a relay.
type ExpertsElsewhere = Vec<(PeerId, Share)>;

/// Looks after the layers of one model that are elsewhere, for as long as it is loaded.
pub async fn keep_stages(
    coordinator: Coordinator,
    model: ModelRef,
    known: Arc<Known>,
    relays: Vec<(WeakRelay, ExpertsElsewhere)>,
    trouble: Arc<Notify>,
    loaded: Models,
) {
    let mut rest = Instant::now();
    loop {
        // Nobody tells of peers that are late.
        let _told = tokio::time::timeout(GLANCE, trouble.notified()).await;
        let alive: Vec<_> = relays.iter().filter_map(|(relay, others)| Some((relay.upgrade()?, others))).collect();
        if alive.is_empty() {
            return;
        }
        for (relay, others) in alive {
            let remote = relay.remote();
            if let Some(late) = remote.as_ref().filter(|remote| remote.is_late() || !remote.is_open()) {
                relay.lost(late, if late.is_open() { "it is late" } else { "its stream is closed" });
            }
            let slow = remote.filter(|remote| relay.has_place() && !remote.is_well());
            if relay.has_place() && slow.is_none() || rest > Instant::now() {
                continue;
            }
            match find(&coordinator, &model, &known, &relay, others, slow.as_deref(), &loaded).await {
                Ok(found) => relay.settle(found),
                Err(error) => {
                    tracing::warn!(%model, %error, layers = ?relay.range(), "layers found no other place");
                    relay.despair(&error.to_string());
                    rest = Instant::now() + LOOK;
                }
            }
        }
    }
}

/// Finds a place for the layers of a relay: another peer, or this node. Of one that is only slow, just another peer.
async fn find(
    coordinator: &Coordinator,
    model: &ModelRef,
    known: &Known,
    relay: &Relay,
    others: &ExpertsElsewhere,
    slow: Option<&RemoteStage>,
    loaded: &Models,
) -> Result<Found, JobError> {
    let avoided: HashSet<PeerId> = slow.map(|slow| slow.peer).or(relay.last_peer()).into_iter().collect();
    let mut share = Share::default();
    relay.range().for_each(|layer| share.insert(Part::Layer(layer)));
    let elsewhere: HashSet<Place> = others.iter().flat_map(|(_, share)| &share.experts).copied().collect();
    let own = known.costs().places().filter(|place| share.layers.contains(&place.0) && !elsewhere.contains(place));
    share.experts = own.collect();
    let bytes = known.costs().share_bytes(&share);
    let mut able = coordinator.helpers(model, known, &avoided).await;
    able.retain(|machine| machine.memory_bytes >= bytes);
    able.sort_by(|a, b| {
        let key = |machine: &plan::Machine| (machine.has(&share), machine.bytes_per_second);
        key(b).partial_cmp(&key(a)).unwrap_or(std::cmp::Ordering::Equal)
    });
    let mut reason = "nobody else has room for them".to_owned();
    for peer in able.into_iter().filter_map(|machine| machine.peer) {
        // Who lost its stream may have lost its experts too, or is the peer that is asked now.
        let elsewhere: Vec<_> = others.iter().filter(|(of, _)| *of != peer).cloned().collect();
        let mut experts = share.experts.clone();
        others.iter().filter(|(of, _)| *of == peer).for_each(|(_, share)| experts.extend(&share.experts));
        let post = Post { peer, range: relay.range(), experts, elsewhere };
        match coordinator.hold_stage(model, known, &post).await {
            Ok(remote) => return Ok(Found::There(remote)),
            Err(error) => reason = error.to_string(),
        }
    }
    if slow.is_some() {
        return Err(JobError::new(ErrorCode::OutOfResources, reason));
    }
    tracing::info!(%model, %reason, layers = ?relay.range(), "this node takes layers over");
    coordinator.shared.fetch.of(model).share(&share, |_| Ok(()), |_| {}).await?;
    Ok(Found::Here(coordinator.stage_here(model, &share, others, loaded).await?))
}
