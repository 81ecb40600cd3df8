//! Has a model run on several machines: asks what they offer, plans, has each hold its share, and works with them.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use accel_backends::files::ModelFiles;
use accel_backends::pace::{self, Pace};
use accel_backends::tensor::Engine;
use accel_backends::weights::Dtype;
use accel_models::share::{Part, Share};
use accel_pipelines::{Elsewhere, LoadOptions, Pipeline};
use accel_protocol::limits::DTYPE_BYTES;
use accel_protocol::{
    ErrorCode, ExpertAsk, Floats, JobError, JobEvent, JobRequest, JobResponse, LayerExperts, ModelRef, Offer,
    OfferRequest, ShareAnswer,
};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use libp2p::PeerId;
use tokio::sync::{Notify, oneshot, watch};

use super::Fetcher;
use super::experts::{Place, Remote, Spread};
use super::keeper;
use super::link::Link;
use super::plan::{self, Costs, Machine, Plan, Split, Wish};
use crate::memory::Memory;
use crate::store::{BlockFiles, FetchOptions, FetchProgress};

/// What a peer gets to say what it offers; its first measurement is in there.
const OFFER: Duration = Duration::from_secs(5);
/// What a peer gets to let itself be dialled and take a stream.
const DIAL: Duration = Duration::from_secs(5);
/// What a peer gets to send rows back.
const ECHO: Duration = Duration::from_secs(2);
/// Echoes of a row that the way to a peer is the median of.
const ECHOES: usize = 9;
/// Numbers of an echo that tells how many bytes go through in a second.
const LONG_ECHO: usize = 32 << 10;
/// How often a peer is asked to hold its share when streams break.
const ATTEMPTS: u32 = 3;
/// Peers that are asked at most, the nearest first.
const PEERS: usize = 16;

/// The node's side of models that are spread over several. Clones share it.
#[derive(Clone, Debug)]
pub struct Coordinator {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    fetch: Fetcher,
    options: LoadOptions,
    memory: Memory,
    serves: bool,
    paces: Mutex<HashMap<Dtype, Pace>>,
    links: Mutex<HashMap<PeerId, Arc<Link>>>,
    holdings: AtomicU32,
    wishes: Mutex<HashMap<ModelRef, Wish>>,
    /// The experts of models at work, for as long as they are loaded.
    running: Mutex<HashMap<ModelRef, Weak<Spread>>>,
}

/// A model as it is known before its weights are here.
#[derive(Debug)]
pub struct Known {
    costs: Costs,
    dtype: Dtype,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Entries come and go whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Coordinator {
    /// Nothing is spread yet.
    pub fn new(fetch: Fetcher, options: LoadOptions, memory: Memory, serves: bool) -> Self {
        let shared = Shared {
            fetch,
            options,
            memory,
            serves,
            paces: Mutex::default(),
            links: Mutex::default(),
            holdings: AtomicU32::new(1),
            wishes: Mutex::default(),
            running: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Says how a model is to be run from now on.
    pub fn wish(&self, model: &ModelRef, wish: Wish) {
        lock(&self.shared.wishes).insert(model.clone(), wish);
    }

    /// Whether that was said of a model.
    pub fn has_wish(&self, model: &ModelRef) -> bool {
        lock(&self.shared.wishes).contains_key(model)
    }

    /// What was said of that.
    pub fn wished(&self, model: &ModelRef) -> Wish {
        lock(&self.shared.wishes).get(model).cloned().unwrap_or_default()
    }

    /// The models that are at work on several machines.
    pub fn running(&self) -> Vec<(ModelRef, Arc<Spread>)> {
        let running = lock(&self.shared.running);
        running.iter().filter_map(|(model, spread)| Some((model.clone(), spread.upgrade()?))).collect()
    }

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
        let mut of_layer: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for &(layer, expert) in &machine.on_disk {
            of_layer.entry(layer as u32).or_default().push(expert as u32);
        }
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
            experts: of_layer.into_iter().map(|(layer, experts)| LayerExperts { layer, experts }).collect(),
            whole: machine.whole,
        })
    }

    /// This node as a plan sees it.
    async fn own(&self, model: &ModelRef, dtype: Dtype, idle_bytes: u64) -> Result<Machine, JobError> {
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
            let on_disk = on_disk.map(|files| experts_here(&files)).unwrap_or_default();
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

    fn pace(&self, dtype: Dtype) -> Result<Pace, JobError> {
        let mut paces = lock(&self.shared.paces);
        if let Some(pace) = paces.get(&dtype) {
            return Ok(*pace);
        }
        let unsupported = |error| JobError::new(ErrorCode::Unsupported, error);
        let engine = Engine::cpu(self.shared.options.threads).map_err(unsupported)?;
        let pace = pace::measure(&engine, dtype).map_err(unsupported)?;
        paces.insert(dtype, pace);
        Ok(pace)
    }

    /// Looks at the headers of a model, which are fetched where they are not here.
    ///
    /// # Errors
    /// When nobody has them, or they are no model that is supported.
    pub async fn look(&self, model: &ModelRef) -> Result<Known, JobError> {
        let fetch = &self.shared.fetch;
        let files = match fetch.store.pinned().await?.iter().any(|root| root.cid == model.cid) {
            true => fetch.store.open(&model.cid, Some(&model.path)).await?,
            false => {
                let providers = fetch.swarm.providers(model).await;
                let options = FetchOptions { providers, pin: false, ..fetch.options.clone() };
                let root = fetch.store.fetch_headers(&model.cid, options).await?;
                if model.path.is_empty() { root } else { fetch.store.open(&model.cid, Some(&model.path)).await? }
            }
        };
        let open = tokio::task::spawn_blocking(move || Known::of(files));
        open.await.map_err(|error| JobError::new(ErrorCode::Internal, format!("reading headers broke off: {error}")))?
    }

    /// Plans a model, with what this node may use of its memory beside what is free.
    ///
    /// # Errors
    /// When this node cannot compute with its weights.
    pub async fn plan(&self, model: &ModelRef, known: &Known, wish: &Wish, idle_bytes: u64) -> Result<Plan, JobError> {
        let mut machines = vec![self.own(model, known.dtype, idle_bytes).await?];
        if wish.split != Split::Solo && known.costs.has_experts() && model.path.is_empty() {
            machines.extend(self.others(model, known, wish).await);
        }
        Ok(plan::plan(&known.costs, &machines, wish))
    }

    /// The peers that offer to share a model.
    pub(super) async fn others(&self, model: &ModelRef, known: &Known, wish: &Wish) -> Vec<Machine> {
        let peers = self.shared.fetch.swarm.peers().all().into_iter();
        let own = accel_pipelines::arithmetic();
        let mut able: Vec<_> = peers
            .filter(|(id, _)| wish.peers.is_empty() || wish.peers.contains(id))
            .filter(|(_, peer)| {
                peer.advert.as_ref().is_some_and(|advert| advert.serves_jobs && advert.arithmetic == own)
            })
            .map(|(id, peer)| (peer.round_trip.unwrap_or(Duration::MAX), id))
            .collect();
        able.sort();
        able.truncate(PEERS);
        let mut machines = Vec::new();
        // One after the other, so that none is measured while another is.
        for (_, peer) in able {
            match self.other(peer, model, known).await {
                Ok(machine) => machines.push(machine),
                Err(reason) => tracing::debug!(%peer, %reason, "a peer is left out of a plan"),
            }
        }
        machines
    }

    async fn other(&self, peer: PeerId, model: &ModelRef, known: &Known) -> Result<Machine, String> {
        let question = OfferRequest { model: model.clone(), dtype: known.dtype.name().to_owned() };
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
        let link = self.link(peer).await?;
        let (round_trip, bandwidth) = way(&link, known.costs.hidden).await?;
        let places = |of: &LayerExperts| {
            let layer = of.layer as usize;
            of.experts.iter().map(move |&expert| (layer, expert as usize)).collect::<Vec<_>>()
        };
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
            on_disk: offer.experts.iter().flat_map(places).collect(),
            whole: offer.whole,
        })
    }

    /// The stream with a peer; all models share it.
    async fn link(&self, peer: PeerId) -> Result<Arc<Link>, String> {
        if let Some(link) = lock(&self.shared.links).get(&peer).filter(|link| link.is_open()) {
            return Ok(link.clone());
        }
        let link = Link::open(&self.shared.fetch.swarm, peer, DIAL).await.map_err(|error| error.to_string())?;
        let link = Arc::new(link);
        lock(&self.shared.links).insert(peer, link.clone());
        Ok(link)
    }

    /// Loads a model as its plan says.
    ///
    /// # Errors
    /// When a share cannot be had, or the model cannot be run.
    pub async fn load(
        &self,
        model: &ModelRef,
        known: Known,
        plan: &Plan,
        progress: &watch::Sender<Option<JobEvent>>,
    ) -> Result<Box<dyn Pipeline>, JobError> {
        let shared = &self.shared;
        let nowhere = || JobError::new(ErrorCode::OutOfResources, plan.why.clone());
        let way = plan.way().ok_or_else(nowhere)?;
        let (own, others) = way.members.split_first().ok_or_else(nowhere)?;
        let fetch = shared.fetch.of(model);
        let here = fetch.share(
            &own.share,
            |_| Ok(()),
            |now: &FetchProgress| {
                progress.send_replace(Some(JobEvent::Fetching {
                    done_bytes: now.fetched_bytes,
                    total_bytes: now.fetched_bytes + now.missing_bytes,
                    peers: u32::try_from(now.peers).unwrap_or(u32::MAX),
                }));
            },
        );
        let elsewhere = async {
            let asked = others.iter().filter_map(|member| Some((member.peer?, &member.share)));
            let asked = asked.filter(|(_, share)| !share.experts.is_empty());
            let asked: FuturesUnordered<_> = asked.map(|(peer, share)| self.hold(model, &known, peer, share)).collect();
            asked.collect::<Vec<_>>().await
        };
        let (here, held) = tokio::join!(here, elsewhere);
        here?;
        let trouble = Arc::new(Notify::new());
        let (mut remotes, mut lost) = (Vec::new(), None);
        for held in held {
            match held {
                Ok(held) => remotes.push(held),
                Err(error) => {
                    tracing::warn!(%model, %error, "a peer does not hold its experts; others are to");
                    trouble.notify_one();
                    lost = Some(error);
                }
            }
        }
        // Where nobody does as was planned, the plan is worth nothing.
        if let (true, Some(error)) = (remotes.is_empty(), lost) {
            return Err(error);
        }
        let files = shared.fetch.store.open(&model.cid, None).await?;
        let (options, memory, share, notify) =
            (shared.options, shared.memory.clone(), own.share.clone(), trouble.clone());
        let load = tokio::task::spawn_blocking(move || -> Result<_, JobError> {
            let parts = Arc::new(accel_pipelines::open(Arc::new(files), options.threads)?);
            let spread = Arc::new(Spread::new(parts.clone(), fetch, memory, notify));
            spread.load(share.experts.iter().copied()).map_err(accel_pipelines::PipelineError::Model)?;
            remotes.iter().for_each(|(remote, places)| spread.add(remote, places.iter().copied()));
            let dense = Share { experts: Default::default(), ..share };
            let elsewhere = Elsewhere { share: dense, experts: spread.clone() };
            let pipeline = accel_pipelines::load_parts(&parts, Some(&elsewhere), &options)?;
            Ok((pipeline, spread))
        });
        let broke_off = |error| JobError::new(ErrorCode::Internal, format!("loading the model broke off: {error}"));
        let (pipeline, spread) = load.await.map_err(broke_off)??;
        let mut all = lock(&shared.running);
        all.retain(|_, spread| spread.strong_count() > 0);
        all.insert(model.clone(), Arc::downgrade(&spread));
        drop(all);
        let keep = keeper::keep(self.clone(), model.clone(), Arc::new(known), Arc::downgrade(&spread), trouble);
        shared.fetch.runtime.spawn(keep);
        Ok(pipeline)
    }

    /// Has a peer hold its share. A stream that breaks meanwhile is opened again: what has come stays there.
    pub(super) async fn hold(
        &self,
        model: &ModelRef,
        known: &Known,
        peer: PeerId,
        share: &Share,
    ) -> Result<(Arc<Remote>, Vec<Place>), JobError> {
        let mut attempt = 1;
        loop {
            match self.try_hold(model, known.costs.hidden, peer, share).await {
                Err(error) if error.code == ErrorCode::WorkerLost && attempt < ATTEMPTS => {
                    tracing::debug!(%peer, %error, attempt, "a peer is asked again to hold its experts");
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    async fn try_hold(
        &self,
        model: &ModelRef,
        hidden: usize,
        peer: PeerId,
        share: &Share,
    ) -> Result<(Arc<Remote>, Vec<Place>), JobError> {
        let lost = |reason: String| JobError::new(ErrorCode::WorkerLost, format!("peer {peer}: {reason}"));
        let link = self.link(peer).await.map_err(lost)?;
        let holding = self.shared.holdings.fetch_add(1, Ordering::Relaxed);
        let mut of_layer: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for &(layer, expert) in &share.experts {
            of_layer.entry(layer as u32).or_default().push(expert as u32);
        }
        let experts = of_layer.into_iter().map(|(layer, experts)| LayerExperts { layer, experts }).collect();
        let ask = ExpertAsk::Hold { holding, model: model.clone(), experts };
        match ask_for(&link, ask).await {
            Ok(ShareAnswer::Held { memory_bytes, fetched_bytes, here_bytes }) => {
                tracing::info!(%peer, memory_bytes, fetched_bytes, here_bytes, "a peer holds experts");
            }
            Ok(ShareAnswer::Failed(error)) => return Err(error),
            Ok(_) => return Err(lost("it answered something else".to_owned())),
            Err(reason) => return Err(lost(reason)),
        }
        let (round_trip, _) = way(&link, hidden).await.map_err(lost)?;
        let row = match share.experts.first() {
            Some(&place) => one_row(&link, holding, place, hidden).await.map_err(lost)?,
            None => 0.0,
        };
        let remote = Remote::new(peer, link, holding, round_trip, row);
        Ok((Arc::new(remote), share.experts.iter().copied().collect()))
    }
}

impl Known {
    /// What files are whose headers are here.
    ///
    /// # Errors
    /// When they are no model that is supported.
    pub fn of(files: BlockFiles) -> Result<Self, JobError> {
        let parts = accel_pipelines::open(Arc::new(files), 1)?;
        let mut of_type: HashMap<Dtype, u64> = HashMap::new();
        parts.index().iter().for_each(|tensor| *of_type.entry(tensor.dtype).or_default() += tensor.bytes);
        let dtype = of_type.into_iter().max_by_key(|(_, bytes)| *bytes).map_or(Dtype::F32, |(dtype, _)| dtype);
        let (elements, bytes) = dtype.block();
        let costs = Costs::of(&parts.description().spec, parts.anatomy(), bytes as f64 / elements as f64);
        Ok(Self { costs, dtype })
    }

    /// What it costs.
    pub fn costs(&self) -> &Costs {
        &self.costs
    }

    /// Whether it has parts that others could work out.
    pub fn can_be_spread(&self) -> bool {
        self.costs.has_experts()
    }
}

/// Asks, and waits for the last answer.
async fn ask_for(link: &Link, ask: ExpertAsk) -> Result<ShareAnswer, String> {
    let (send, answer) = oneshot::channel();
    let mut send = Some(send);
    link.ask(
        ask,
        Box::new(move |answer| {
            if !matches!(answer, Ok(ShareAnswer::Holding { .. }))
                && let Some(send) = send.take()
            {
                // Who gave up waiting does not want it.
                let _gone = send.send(answer);
            }
        }),
    );
    answer.await.map_err(|_| "no answer".to_owned())?.map_err(|closed| closed.to_string())
}

/// The way to a peer: seconds that a row takes there and back, and bytes in a second beyond that.
async fn way(link: &Link, hidden: usize) -> Result<(f64, f64), String> {
    let echo = async |numbers: usize| {
        let sent = Instant::now();
        let answer = tokio::time::timeout(ECHO, ask_for(link, ExpertAsk::Echo(Floats(vec![1.0; numbers])))).await;
        match answer.map_err(|_| "it does not answer".to_owned())?? {
            ShareAnswer::Rows { rows, .. } if rows.0.len() == numbers => Ok(sent.elapsed().as_secs_f64()),
            _ => Err("it sent something else back".to_owned()),
        }
    };
    let median = async |numbers: usize, times: usize| {
        let mut seconds = Vec::with_capacity(times);
        for _ in 0..times {
            seconds.push(echo(numbers).await?);
        }
        seconds.sort_by(f64::total_cmp);
        Ok::<f64, String>(seconds[times / 2])
    };
    let short = median(hidden.clamp(1, LONG_ECHO / 2), ECHOES).await?;
    let long = median(LONG_ECHO, 3).await?;
    // There and back.
    Ok((short, 8.0 * LONG_ECHO as f64 / (long - short).max(1e-6)))
}

/// Seconds that a peer computes a row of an expert that it holds: its first, so no less than others will take.
async fn one_row(link: &Link, holding: u32, (layer, expert): Place, hidden: usize) -> Result<f64, String> {
    let rows = Floats(vec![1.0; hidden]);
    let ask = ExpertAsk::Forward { holding, layer: layer as u32, places: vec![(0, expert as u32)], rows };
    match ask_for(link, ask).await? {
        ShareAnswer::Rows { micros, .. } => Ok(Duration::from_micros(micros).as_secs_f64()),
        ShareAnswer::Failed(error) => Err(error.to_string()),
        _ => Err("it answered something else".to_owned()),
    }
}

/// The experts of a model that is here in part.
fn experts_here(files: &BlockFiles) -> std::collections::BTreeSet<Place> {
    let Ok(parts) = accel_pipelines::open(Arc::new(files.clone()), 1) else { return Default::default() };
    let here = |part: Part| {
        let extents = parts.anatomy().extents(part).iter();
        extents.into_iter().all(|extent| {
            let number = files.files().iter().position(|file| file.name == extent.file);
            let range = extent.offset..extent.offset + extent.bytes;
            number.is_some_and(|number| files.here_bytes(number, range).is_ok_and(|here| here == extent.bytes))
        })
    };
    let experts = parts.anatomy().parts().filter_map(|part| match part {
        Part::Expert(layer, expert) if here(part) => Some((layer, expert)),
        _ => None,
    });
    experts.collect()
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
