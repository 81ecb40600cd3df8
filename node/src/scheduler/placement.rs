//! Where a job runs best: where the model is in memory, then where its blocks are, then where there is room; the less
//! busy and the nearer peer first.

use std::time::Duration;

use accel_protocol::limits::INLINE_INPUT_BYTES;
use accel_protocol::{Advert, Arithmetic, ErrorCode, JobError, JobSpec, Load};
use libp2p::PeerId;

use super::Scheduler;

/// Where a job may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this node.
    Here,
    /// On a peer.
    Peer(PeerId),
}

/// What speaks for a place; smaller is better, compared from the first field on.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
struct Cost {
    inexact: bool,
    not_loaded: bool,
    not_held: bool,
    load: f64,
    away_ms: f64,
}

/// How long to wait for somebody who runs jobs to turn up.
const PATIENCE: Duration = Duration::from_secs(5);

/// The best place that was not tried yet; where there is none, the first that turns up within a few seconds. An answer
/// that was begun with `arithmetic` goes on with the same if any place has it.
pub async fn choose(
    scheduler: &Scheduler,
    spec: &JobSpec,
    tried: &[Place],
    arithmetic: Option<&Arithmetic>,
) -> Option<Place> {
    let mut changes = scheduler.shared.swarm.peers().changes();
    let search = async {
        loop {
            if let Some(place) = best(scheduler, spec, tried, arithmetic).await {
                return Some(place);
            }
            changes.changed().await.ok()?;
        }
    };
    tokio::time::timeout(PATIENCE, search).await.ok().flatten()
}

/// Whether a place that was not tried yet can go on with an answer that was begun with `arithmetic`, exactly.
pub fn elsewhere(scheduler: &Scheduler, tried: &[Place], arithmetic: Option<&Arithmetic>) -> bool {
    let here = may_run_here(scheduler, tried).then(accel_pipelines::arithmetic);
    let at_peers = peers_that_run(scheduler, tried).map(|(_, _, advert)| advert.arithmetic);
    here.into_iter().chain(at_peers).any(|found| arithmetic.is_none_or(|wanted| *wanted == found))
}

/// The best place that was not tried yet.
pub async fn best(
    scheduler: &Scheduler,
    spec: &JobSpec,
    tried: &[Place],
    arithmetic: Option<&Arithmetic>,
) -> Option<Place> {
    let mut places: Vec<(Cost, Place)> = Vec::new();
    if may_run_here(scheduler, tried) {
        let held = scheduler
            .shared
            .store
            .pinned()
            .await
            .is_ok_and(|roots| roots.iter().any(|root| root.cid == spec.model.cid && !root.part));
        let cost = Cost {
            inexact: arithmetic.is_some_and(|wanted| *wanted != accel_pipelines::arithmetic()),
            not_loaded: !scheduler.shared.models.loaded().contains(&spec.model),
            not_held: !held,
            // Or a job would be one more reason not to run it where it was asked for.
            load: share(scheduler.load_beside(Some(spec.id))),
            away_ms: 0.0,
        };
        places.push((cost, Place::Here));
    }
    // A large input travels by CID, and that by no relay.
    let by_relay = spec.input.bytes() <= INLINE_INPUT_BYTES as u64;
    for (id, round_trip, advert) in peers_that_run(scheduler, tried) {
        if !by_relay && scheduler.shared.swarm.peers().is_only_relayed(&id) {
            continue;
        }
        let held = advert.models.iter().find(|held| held.model.cid == spec.model.cid);
        let cost = Cost {
            inexact: arithmetic.is_some_and(|wanted| *wanted != advert.arithmetic),
            not_loaded: !held.is_some_and(|held| held.loaded),
            not_held: held.is_none(),
            load: share(advert.load),
            away_ms: round_trip.map_or(f64::MAX, |time| time.as_secs_f64() * 1e3),
        };
        places.push((cost, Place::Peer(id)));
    }
    places.into_iter().min_by(|(a, _), (b, _)| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal)).map(|best| best.1)
}

fn may_run_here(scheduler: &Scheduler, tried: &[Place]) -> bool {
    scheduler.shared.config.serve && !tried.contains(&Place::Here)
}

/// The peers that run jobs and were not tried yet, each with its round trip and its advert.
fn peers_that_run(scheduler: &Scheduler, tried: &[Place]) -> impl Iterator<Item = (PeerId, Option<Duration>, Advert)> {
    let peers = scheduler.shared.swarm.peers().all().into_iter();
    peers.filter(|(id, _)| !tried.contains(&Place::Peer(*id))).filter_map(|(id, peer)| {
        let advert = peer.advert.filter(|advert| advert.serves_jobs)?;
        Some((id, peer.round_trip, advert))
    })
}

/// The error of a job that nobody can run.
pub fn nobody(spec: &JobSpec) -> JobError {
    JobError::new(
        ErrorCode::NoWorker,
        format!(
            "no reachable peer runs jobs, so nobody can run {}; start a node with jobs.serve = true, or join a swarm \
             that has one",
            spec.model
        ),
    )
}

fn share(load: Load) -> f64 {
    f64::from(load.running + load.queued) / f64::from(load.capacity.max(1))
}
