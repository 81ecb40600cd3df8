//! The search for a place for a job: who may run it, as far as this node knows, and who of those is best.

use std::time::Duration;

use accel_protocol::limits::INLINE_INPUT_BYTES;
use accel_protocol::{Advert, Arithmetic, ErrorCode, HeldModel, JobError, JobSpec};
use libp2p::PeerId;

use super::Scheduler;
use crate::placement::{self, Candidate, Held};

/// Where a job may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this node.
    Here,
    /// On a peer.
    Peer(PeerId),
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
    let is_model = |held: &&HeldModel| held.model.cid == spec.model.cid;
    let (mut places, mut candidates) = (Vec::new(), Vec::new());
    let roots = scheduler.shared.store.pinned().await.unwrap_or_default();
    let root = roots.iter().find(|root| root.cid == spec.model.cid);
    if may_run_here(scheduler, tried) {
        let held = match root {
            _ if scheduler.shared.models.loaded().contains(&spec.model) => Held::InMemory,
            Some(root) if !root.part => Held::OnDisk,
            _ => Held::Nothing,
        };
        let (memory_bytes, gbytes_per_second) = placement::offered(&scheduler.shared.devices);
        places.push(Place::Here);
        candidates.push(Candidate {
            is_exact: arithmetic.is_none_or(|wanted| *wanted == accel_pipelines::arithmetic()),
            held,
            memory_bytes,
            gbytes_per_second,
            // Or a job would be one more reason not to run it where it was asked for.
            load: scheduler.load_beside(Some(spec.id)),
            away: Some(Duration::ZERO),
        });
    }
    // A large input travels by CID, and that by no relay.
    let by_relay = spec.input.bytes() <= INLINE_INPUT_BYTES as u64;
    for (id, away, advert) in peers_that_run(scheduler, tried) {
        if !by_relay && scheduler.shared.swarm.peers().is_only_relayed(&id) {
            continue;
        }
        let held = advert.models.iter().find(is_model);
        let (memory_bytes, gbytes_per_second) = placement::offered(&advert.devices);
        places.push(Place::Peer(id));
        candidates.push(Candidate {
            is_exact: arithmetic.is_none_or(|wanted| *wanted == advert.arithmetic),
            held: match held {
                Some(held) if held.loaded => Held::InMemory,
                Some(_) => Held::OnDisk,
                None => Held::Nothing,
            },
            memory_bytes,
            gbytes_per_second,
            load: advert.load,
            away,
        });
    }
    // Also who runs nothing may say how large the model is.
    let adverts = || scheduler.shared.swarm.peers().all().into_iter().filter_map(|(_, peer)| peer.advert);
    let own = root.map(|root| root.bytes);
    let model_bytes = own.or_else(|| adverts().find_map(|advert| Some(advert.models.iter().find(is_model)?.bytes)));
    placement::best(&candidates, model_bytes).map(|best| places[best])
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
