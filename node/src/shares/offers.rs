//! What machines offer for a model that is spread over several: this one, and others as they say.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, Instant};

use accel_backends::files::ModelFiles;
use accel_backends::pace::{self, Pace};
use accel_backends::tensor::Engine;
use accel_backends::weights::Dtype;
use accel_models::share::{Part, Share};
use accel_protocol::limits::DTYPE_BYTES;
use accel_protocol::{ErrorCode, JobError, JobRequest, JobResponse, LayerExperts, ModelRef, Offer, OfferRequest};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use libp2p::PeerId;

use super::coordinator::{Coordinator, Known, lock};
use super::experts::Place;
use super::plan::{Machine, Wish};
use crate::peers::Peer;
use crate::store::BlockFiles;

/// What a peer gets to say what it offers; its first measurement is in there.
const OFFER: Duration = Duration::from_secs(5);
/// How long a measurement of this machine counts before it is measured again.
const PACE: Duration = Duration::from_secs(10);
/// Peers that are asked at most, the nearest first.
const PEERS: usize = 16;

impl Coordinator {
    /// What this node offers for a model; `idle_bytes` of memory may be had from models that nobody uses.
    ///
    /// # Errors
    /// When this node cannot compute with such weights.
    pub async fn offer(&self, request: &OfferRequest, idle_bytes: u64) -> Result<Offer, JobError> {
        let invalid = |words: String| JobError::new(ErrorCode::InvalidRequest, words);
        if request.dtype.len() > DTYPE_BYTES {
            return Err(invalid(format!(
                "the name of a type has {} bytes; {DTYPE_BYTES} at most",
                request.dtype.len()
            )));
        }
        let dtype = Dtype::named(&request.dtype);
        let dtype = dtype.ok_or_else(|| invalid(format!("weights of type {:?} are not known", request.dtype)))?;
        let machine = self.own(&request.model, dtype, idle_bytes).await?;
        Ok(Offer {
            serves: self.shared.serves,
            host: machine.host,
            cores: u32::try_from(machine.cores).unwrap_or(u32::MAX),
            threads: u32::try_from(machine.threads).unwrap_or(u32::MAX),
            memory_bytes: machine.memory_bytes,
            disk_bytes: machine.disk_bytes,
            arithmetic: accel_pipelines::arithmetic(),
            gbytes_per_second: machine.bytes_per_second / 1e9,
            gflops: machine.flops / 1e9,
            experts: of_layers(&machine.on_disk.experts),
            layers: machine.on_disk.layers.iter().map(|&layer| layer as u32).collect(),
            whole: machine.whole,
        })
    }

    /// This node as a plan sees it.
    pub(super) async fn own(&self, model: &ModelRef, dtype: Dtype, idle_bytes: u64) -> Result<Machine, JobError> {
        let shared = &self.shared;
        let store = &shared.fetch.store;
        let usage = store.usage();
        let root = store.pinned().await?.into_iter().find(|root| root.cid == model.cid);
        let whole = root.as_ref().is_some_and(|root| !root.part);
        let on_disk = match root.filter(|root| root.part) {
            Some(_) => store.open(&model.cid, None).await.ok(),
            None => None,
        };
        let coordinator = self.clone();
        let measure = tokio::task::spawn_blocking(move || {
            let on_disk = on_disk.map(|files| here(&files)).unwrap_or_default();
            coordinator.pace(dtype).map(|pace| (pace, on_disk))
        });
        let broke_off =
            |error| JobError::new(ErrorCode::Internal, format!("measuring this machine broke off: {error}"));
        let (pace, on_disk) = measure.await.map_err(broke_off)??;
        Ok(Machine {
            peer: None,
            host: host(),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            threads: shared.options.threads,
            memory_bytes: shared.memory.left_bytes().saturating_add(idle_bytes),
            disk_bytes: usage.quota_bytes.saturating_sub(usage.used_bytes),
            bytes_per_second: pace.gbytes_per_second * 1e9,
            flops: pace.gflops * 1e9,
            round_trip: 0.0,
            bandwidth: f64::INFINITY,
            on_disk,
            whole,
        })
    }

    /// How fast this machine is: measured again now and then, and the fastest counts.
    pub(super) fn pace(&self, dtype: Dtype) -> Result<Pace, JobError> {
        let mut paces = lock(&self.shared.paces);
        let known = paces.get(&dtype).copied();
        if let Some((when, pace)) = known
            && when.elapsed() < PACE
        {
            return Ok(pace);
        }
        let unsupported = |error| JobError::new(ErrorCode::Unsupported, error);
        let engine = Engine::cpu(self.shared.options.threads).map_err(unsupported)?;
        let pace = pace::measure(&engine, dtype).map_err(unsupported)?;
        let pace = known.map_or(pace, |(_, known)| pace.fastest(known));
        paces.insert(dtype, (Instant::now(), pace));
        Ok(pace)
    }

    /// The peers that offer to share a model, of those that are wished for.
    pub(super) async fn others(&self, model: &ModelRef, known: &Known, wish: &Wish) -> Vec<Machine> {
        let able = self.able(|id, _| wish.peers.is_empty() || wish.peers.contains(&id));
        let mut machines = Vec::new();
        // One after the other, so that none is measured while another is.
        for peer in able {
            machines.extend(self.other(peer, model, known).await);
        }
        machines
    }

    /// The peers that offer to help out where others fell away, as quickly as they can be asked: those that are connected.
    pub(super) async fn helpers(&self, model: &ModelRef, known: &Known, avoided: &HashSet<PeerId>) -> Vec<Machine> {
        let able = self.able(|id, peer| peer.is_connected() && !peer.is_only_relayed() && !avoided.contains(&id));
        let asked: FuturesUnordered<_> = able.into_iter().map(|peer| self.other(peer, model, known)).collect();
        asked.collect::<Vec<_>>().await.into_iter().flatten().collect()
    }

    /// Peers that may be asked, the nearest first.
    fn able(&self, wanted: impl Fn(PeerId, &Peer) -> bool) -> Vec<PeerId> {
        let own = accel_pipelines::arithmetic();
        let peers = self.shared.fetch.swarm.peers().all().into_iter();
        let mut able: Vec<_> = peers
            .filter(|(id, peer)| wanted(*id, peer))
            .filter(|(_, peer)| {
                peer.advert.as_ref().is_some_and(|advert| advert.serves_jobs && advert.arithmetic == own)
            })
            .map(|(id, peer)| (peer.round_trip.unwrap_or(Duration::MAX), id))
            .collect();
        able.sort();
        able.truncate(PEERS);
        able.into_iter().map(|(_, peer)| peer).collect()
    }

    /// What a peer offers, if it does.
    async fn other(&self, peer: PeerId, model: &ModelRef, known: &Known) -> Option<Machine> {
        let offered = self.offered(peer, model, known).await;
        offered.inspect_err(|reason| tracing::debug!(%peer, %reason, "a peer is left out of a plan")).ok()
    }

    async fn offered(&self, peer: PeerId, model: &ModelRef, known: &Known) -> Result<Machine, String> {
        let question = OfferRequest { model: model.clone(), dtype: known.dtype().name().to_owned() };
        let request = JobRequest::Offer(Box::new(question));
        let answer = self.shared.fetch.swarm.request(peer, &request, OFFER).await;
        let offer = match answer.map_err(|error| error.to_string())? {
            JobResponse::Offer(offer) => *offer,
            JobResponse::Rejected(rejection) => return Err(rejection.error.to_string()),
            _ => return Err("it answered something else".to_owned()),
        };
        if !offer.serves || offer.arithmetic != accel_pipelines::arithmetic() {
            return Err("it does not work for others, or not with this arithmetic".to_owned());
        }
        let usable = |rate: f64| rate.is_finite() && rate > 0.0;
        if !usable(offer.gbytes_per_second) || !usable(offer.gflops) {
            return Err("it offers no pace".to_owned());
        }
        let link = self.experts_link(peer).await?;
        let (round_trip, bandwidth) = link.way(known.costs().hidden).await?;
        Ok(Machine {
            peer: Some(peer),
            host: offer.host,
            cores: offer.cores as usize,
            threads: offer.threads as usize,
            memory_bytes: offer.memory_bytes,
            disk_bytes: offer.disk_bytes,
            bytes_per_second: offer.gbytes_per_second * 1e9,
            flops: offer.gflops * 1e9,
            round_trip,
            bandwidth,
            on_disk: Share {
                ends: false,
                layers: offer.layers.iter().map(|&layer| layer as usize).collect(),
                experts: places(&offer.experts).collect(),
            },
            whole: offer.whole,
        })
    }
}

/// Experts layer by layer, as they are told to peers.
pub(super) fn of_layers(places: &BTreeSet<Place>) -> Vec<LayerExperts> {
    let mut of_layer: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for &(layer, expert) in places {
        of_layer.entry(layer as u32).or_default().push(expert as u32);
    }
    of_layer.into_iter().map(|(layer, experts)| LayerExperts { layer, experts }).collect()
}

/// The same as a peer tells them.
pub(super) fn places(experts: &[LayerExperts]) -> impl Iterator<Item = Place> {
    let of_layer = |of: &LayerExperts| {
        let layer = of.layer as usize;
        of.experts.iter().map(move |&expert| (layer, expert as usize)).collect::<Vec<_>>()
    };
    experts.iter().flat_map(of_layer)
}

/// The parts of a model that are whole on this disk, of one that is here in part.
fn here(files: &BlockFiles) -> Share {
    let mut share = Share::default();
    let Ok(parts) = accel_pipelines::open(std::sync::Arc::new(files.clone()), 1) else { return share };
    let here = |part: Part| {
        parts.anatomy().extents(part).iter().all(|extent| {
            let number = files.files().iter().position(|file| file.name == extent.file);
            let range = extent.offset..extent.offset + extent.bytes;
            number.is_some_and(|number| files.here_bytes(number, range).is_ok_and(|here| here == extent.bytes))
        })
    };
    parts.anatomy().parts().filter(|&part| here(part)).for_each(|part| share.insert(part));
    share
}

/// A number that peers on one machine have in common.
fn host() -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    use std::sync::OnceLock;
    static HOST: OnceLock<u64> = OnceLock::new();
    *HOST.get_or_init(|| match std::fs::read("/proc/sys/kernel/random/boot_id") {
        Ok(boot) => {
            let mut hasher = DefaultHasher::new();
            boot.hash(&mut hasher);
            hasher.finish()
        }
        // Where a machine cannot be told, each peer counts as one.
        Err(_) => rand::random(),
    })
}
