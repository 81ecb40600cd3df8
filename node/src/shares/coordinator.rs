//! Has a model run on several machines: asks what they offer, plans, has each hold its share, and works with them.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use accel_backends::pace::Pace;
use accel_backends::weights::Dtype;
use accel_models::layers::moe::Experts;
use accel_models::share::{Part, Parts, Share, stacks};
use accel_models::stage::Stage;
use accel_pipelines::{Elsewhere, LoadOptions, Pipeline, PipelineError};
use accel_protocol::{ErrorCode, ExpertAsk, Floats, JobError, JobEvent, ModelRef, PeerExperts, ShareAnswer, StageAsk};
use futures::StreamExt;
use futures::stream::{FuturesOrdered, FuturesUnordered};
use libp2p::PeerId;
use tokio::sync::{Notify, watch};

use super::Fetcher;
use super::experts::{Place, Remote, Spread};
use super::keeper;
use super::link::{Ask, Link};
use super::offers::of_layers;
use super::plan::{self, Costs, Member, Plan, Split, Wish};
use super::stages::thread::StageThread;
use super::stages::{Found, Relay, RemoteStage, WeakRelay};
use crate::memory::Memory;
use crate::scheduler::Models;
use crate::store::{BlockFiles, FetchOptions, FetchProgress};
use crate::usage::Ledger;

/// What a peer gets to let itself be dialled and take a stream.
const DIAL: Duration = Duration::from_secs(5);
/// How often a peer is asked to hold its share when streams break.
const ATTEMPTS: u32 = 3;
/// How long a plan that was shown is kept for the job that is to be run so.
const SHOWN: Duration = Duration::from_secs(120);

/// The node's side of models that are spread over several. Clones share it.
#[derive(Clone, Debug)]
pub struct Coordinator {
    pub(super) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) fetch: Fetcher,
    pub(super) options: LoadOptions,
    pub(super) memory: Memory,
    pub(super) serves: bool,
    /// What the experts of models were chosen for here.
    usage: Ledger,
    /// How fast this machine is with weights of a type, and when that was measured.
    pub(super) paces: Mutex<HashMap<Dtype, (Instant, Pace)>>,
    expert_links: Mutex<HashMap<PeerId, Arc<Link<ExpertAsk>>>>,
    stage_links: Mutex<HashMap<PeerId, Arc<Link<StageAsk>>>>,
    holdings: AtomicU32,
    wishes: Mutex<HashMap<ModelRef, Wish>>,
    /// Plans that somebody was shown, and when.
    shown: Mutex<HashMap<ModelRef, (Instant, Plan)>>,
    /// The models at work, for as long as they are loaded.
    running: Mutex<HashMap<ModelRef, Outside>>,
}

/// What of a model is elsewhere.
#[derive(Debug)]
struct Outside {
    spread: Option<Weak<Spread>>,
    relays: Vec<WeakRelay>,
}

/// A model that is at work on several machines.
#[derive(Debug)]
pub struct Running {
    /// The model.
    pub model: ModelRef,
    /// The experts of the layers that are here, if others have any.
    pub spread: Option<Arc<Spread>>,
    /// The layers that others have.
    pub relays: Vec<Relay>,
}

/// Peers with the experts they hold, and why another does not.
type HeldExperts = (Vec<(Arc<Remote>, Vec<Place>)>, Option<JobError>);

/// A model as it is known before its weights are here.
#[derive(Debug)]
pub struct Known {
    costs: Costs,
    /// How most of its weights are stored, and how those behind the layers are.
    dtype: Dtype,
    head: Dtype,
    /// The layers of each stack.
    stacks: Vec<Range<usize>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Entries come and go whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Coordinator {
    /// Nothing is spread yet.
    pub fn new(fetch: Fetcher, options: LoadOptions, memory: Memory, serves: bool, usage: Ledger) -> Self {
        let shared = Shared {
            fetch,
            options,
            memory,
            serves,
            usage,
            paces: Mutex::default(),
            expert_links: Mutex::default(),
            stage_links: Mutex::default(),
            holdings: AtomicU32::new(1),
            wishes: Mutex::default(),
            shown: Mutex::default(),
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
    pub fn running(&self) -> Vec<Running> {
        let running = lock(&self.shared.running);
        let at_work = running.iter().filter_map(|(model, outside)| {
            let spread = outside.spread.as_ref().and_then(Weak::upgrade);
            let relays: Vec<Relay> = outside.relays.iter().filter_map(WeakRelay::upgrade).collect();
            let at_work = spread.is_some() || !relays.is_empty();
            at_work.then(|| Running { model: model.clone(), spread, relays })
        });
        at_work.collect()
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
        if wish.split != Split::Solo && known.can_be_spread() && model.path.is_empty() {
            machines.extend(self.others(model, known, wish).await);
        }
        let (ledger, of) = (self.shared.usage.clone(), model.clone());
        let usage = tokio::task::spawn_blocking(move || ledger.total(&of)).await.map_err(broke_off)?;
        let mut costs = known.costs.clone().with_usage(&usage.unwrap_or_default());
        if known.head != known.dtype {
            let (coordinator, head) = (self.clone(), known.head);
            let measure = tokio::task::spawn_blocking(move || coordinator.pace(head));
            let pace = measure.await.map_err(broke_off)??.gbytes_per_second * 1e9;
            costs.head = (costs.head as f64 * machines[0].bytes_per_second / pace) as u64;
        }
        Ok(plan::plan(&costs, &machines, wish))
    }

    /// Remembers a plan that somebody was shown and wants to have done.
    pub fn remember(&self, model: &ModelRef, plan: Plan) {
        lock(&self.shared.shown).insert(model.clone(), (Instant::now(), plan));
    }

    /// The plan that somebody was shown a short while ago, if all who take part are still there, or else a new one: what is
    /// measured differs a little each time, and so may who has what.
    ///
    /// # Errors
    /// As [`Coordinator::plan`].
    pub async fn plan_as_shown(&self, model: &ModelRef, known: &Known, idle_bytes: u64) -> Result<Plan, JobError> {
        let shown = lock(&self.shared.shown).remove(model);
        let peers = self.shared.fetch.swarm.peers();
        let is_there = |member: &Member| member.peer.is_none_or(|peer| peers.is_connected(&peer));
        if let Some((when, plan)) = shown
            && when.elapsed() < SHOWN
            && plan.way().is_some_and(|way| way.members.iter().all(is_there))
        {
            return Ok(plan);
        }
        self.plan(model, known, &self.wished(model), idle_bytes).await
    }

    /// The stream with a peer for experts; all models share it.
    pub(super) async fn experts_link(&self, peer: PeerId) -> Result<Arc<Link<ExpertAsk>>, String> {
        self.link(&self.shared.expert_links, peer).await
    }

    async fn link<A: Ask>(
        &self,
        links: &Mutex<HashMap<PeerId, Arc<Link<A>>>>,
        peer: PeerId,
    ) -> Result<Arc<Link<A>>, String> {
        if let Some(link) = lock(links).get(&peer).filter(|link| link.is_open()) {
            return Ok(link.clone());
        }
        let link = Link::open(&self.shared.fetch.swarm, peer, DIAL).await.map_err(|error| error.to_string())?;
        let link = Arc::new(link);
        lock(links).insert(peer, link.clone());
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
        loaded: &Models,
        progress: &watch::Sender<Option<JobEvent>>,
    ) -> Result<Box<dyn Pipeline>, JobError> {
        let shared = &self.shared;
        let nowhere = || JobError::new(ErrorCode::OutOfResources, plan.why.clone());
        let way = plan.way().ok_or_else(nowhere)?;
        let (own, others) = way.members.split_first().ok_or_else(nowhere)?;
        let known = Arc::new(known);
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
        // Each asks for the experts of its own layers.
        let experts = others.iter().filter_map(|member| Some((member.peer?, experts_of(&member.share, &own.share))));
        let experts: Vec<_> = experts.filter(|(_, share)| !share.experts.is_empty()).collect();
        let posts = posts(&known, &way.members, shared.fetch.swarm.id());
        let stages = async {
            let asked: FuturesOrdered<_> = posts.iter().map(|post| self.hold_stage(model, &known, post)).collect();
            asked.collect::<Vec<_>>().await
        };
        let (here, held, stages) = tokio::join!(here, self.hold_all(model, &known, &experts), stages);
        here?;
        let (trouble, mut relays) = (Arc::new(Notify::new()), Vec::new());
        let files = shared.fetch.store.open(&model.cid, None).await?;
        let parts = self.open(files).await?;
        let mut lost = None;
        for (post, found) in posts.iter().zip(stages) {
            let (engine, hidden) = (parts.engine().clone(), known.costs.hidden);
            let relay = Relay::new(post.range.clone(), engine, hidden, trouble.clone());
            match found {
                Ok(remote) => relay.settle(Found::There(remote)),
                Err(error) => {
                    tracing::warn!(%model, %error, "a peer does not hold its layers; others are to");
                    lost = Some(error);
                }
            }
            relays.push((relay, post.elsewhere.clone()));
        }
        // Where nobody does as was planned, the plan is worth nothing.
        let (nobody, lost) =
            (held.0.is_empty() && relays.iter().all(|(relay, _)| !relay.has_place()), lost.or(held.1.clone()));
        if let Some(error) = lost.filter(|_| nobody) {
            return Err(error);
        }
        let spread = match experts.is_empty() {
            true => None,
            false => Some(self.spread(model, &known, &parts, &own.share, held).await?),
        };
        // Experts of layers that others have, this node has for them.
        let share = match &spread {
            Some(_) => Share { experts: Default::default(), ..own.share.clone() },
            None => Share { experts: experts_of(&own.share, &own.share).experts, ..own.share.clone() },
        };
        let elsewhere = Elsewhere {
            share,
            experts: spread.clone().map(|spread| spread as Arc<dyn Experts>),
            stages: relays
                .iter()
                .map(|(relay, _)| (relay.range(), Arc::new(relay.clone()) as Arc<dyn Stage>))
                .collect(),
        };
        let options = shared.options;
        let load = tokio::task::spawn_blocking(move || accel_pipelines::load_parts(&parts, Some(&elsewhere), &options));
        let pipeline = load.await.map_err(broke_off)??;
        let mut all = lock(&shared.running);
        let gone = |outside: &Outside| {
            let spread = outside.spread.as_ref().is_none_or(|spread| spread.strong_count() == 0);
            spread && outside.relays.iter().all(|relay| relay.upgrade().is_none())
        };
        all.retain(|_, outside| !gone(outside));
        let weak: Vec<_> = relays.iter().map(|(relay, others)| (relay.downgrade(), others.clone())).collect();
        let outside = Outside {
            spread: spread.as_ref().map(Arc::downgrade),
            relays: weak.iter().map(|(relay, _)| relay.clone()).collect(),
        };
        all.insert(model.clone(), outside);
        drop(all);
        if !weak.is_empty() {
            let keep = keeper::keep_stages(self.clone(), model.clone(), known, weak, trouble, loaded.clone());
            shared.fetch.runtime.spawn(keep);
        }
        Ok(pipeline)
    }

    async fn open(&self, files: BlockFiles) -> Result<Arc<Parts>, JobError> {
        let threads = self.shared.options.threads;
        let open = tokio::task::spawn_blocking(move || accel_pipelines::open(Arc::new(files), threads));
        Ok(Arc::new(open.await.map_err(broke_off)??))
    }

    /// Has peers hold experts, all at once.
    async fn hold_all(&self, model: &ModelRef, known: &Known, asked: &[(PeerId, Share)]) -> HeldExperts {
        let asked: FuturesUnordered<_> =
            asked.iter().map(|(peer, share)| self.hold(model, known, *peer, share)).collect();
        let (mut remotes, mut lost) = (Vec::new(), None);
        for held in asked.collect::<Vec<_>>().await {
            match held {
                Ok(held) => remotes.push(held),
                Err(error) => {
                    tracing::warn!(%model, %error, "a peer does not hold its experts; others are to");
                    lost = Some(error);
                }
            }
        }
        (remotes, lost)
    }

    /// The experts of layers that are here: those of a share, whose blocks are here, and those that peers hold.
    async fn spread(
        &self,
        model: &ModelRef,
        known: &Arc<Known>,
        parts: &Arc<Parts>,
        own: &Share,
        (remotes, lost): HeldExperts,
    ) -> Result<Arc<Spread>, JobError> {
        let (trouble, fetch, memory) =
            (Arc::new(Notify::new()), self.shared.fetch.of(model), self.shared.memory.clone());
        let (parts, layers, notify) = (parts.clone(), own.layers.clone(), trouble.clone());
        let spread = Arc::new(Spread::new(parts, fetch, memory, layers, notify));
        let (filled, places) = (spread.clone(), experts_of(own, own).experts);
        let load = tokio::task::spawn_blocking(move || filled.load(places));
        load.await.map_err(broke_off)?.map_err(PipelineError::Model)?;
        remotes.iter().for_each(|(remote, places)| spread.add(remote, places.iter().copied()));
        if lost.is_some() {
            trouble.notify_one();
        }
        let keep = keeper::keep(self.clone(), model.clone(), known.clone(), Arc::downgrade(&spread), trouble);
        self.shared.fetch.runtime.spawn(keep);
        Ok(spread)
    }

    /// Layers of a share, whose blocks are here, on a thread of this node; peers are asked for the experts they are to
    /// have of them.
    ///
    /// # Errors
    /// When they cannot be read, or do not fit the memory.
    pub(super) async fn stage_here(
        &self,
        model: &ModelRef,
        share: &Share,
        elsewhere: &[(PeerId, Share)],
        loaded: &Models,
    ) -> Result<Arc<StageThread>, JobError> {
        let files = self.shared.fetch.store.open(&model.cid, None).await?;
        let parts = self.open(files).await?;
        let memory = loaded.make_room(parts.anatomy().share_bytes(share))?;
        let spread = match elsewhere.is_empty() {
            true => None,
            false => {
                let known = Arc::new(self.look(model).await?);
                let held = self.hold_all(model, &known, elsewhere).await;
                Some(self.spread(model, &known, &parts, share, held).await?)
            }
        };
        let (share, loaded) = (share.clone(), loaded.clone());
        let start = move || StageThread::start(&parts, &share, spread, memory, loaded);
        Ok(Arc::new(tokio::task::spawn_blocking(start).await.map_err(broke_off)??))
    }

    /// Has a peer hold experts.
    pub(super) async fn hold(
        &self,
        model: &ModelRef,
        known: &Known,
        peer: PeerId,
        share: &Share,
    ) -> Result<(Arc<Remote>, Vec<Place>), JobError> {
        let mut attempt = 1;
        loop {
            match self.try_hold(model, known, peer, share).await {
                Err(error) if is_worth_another(&error, &mut attempt) => {}
                held => return Ok((Arc::new(held?), share.experts.iter().copied().collect())),
            }
        }
    }

    async fn try_hold(&self, model: &ModelRef, known: &Known, peer: PeerId, share: &Share) -> Result<Remote, JobError> {
        let link = self.experts_link(peer).await.map_err(|reason| lost(peer, &reason))?;
        let holding = self.shared.holdings.fetch_add(1, Ordering::Relaxed);
        let ask = ExpertAsk::Hold { holding, model: model.clone(), experts: of_layers(&share.experts) };
        held(peer, link.answer(ask).await)?;
        let (round_trip, _) = link.way(known.costs.hidden).await.map_err(|reason| lost(peer, &reason))?;
        let row = match share.experts.first() {
            Some(&place) => one_row(&link, holding, place, known.costs.hidden).await,
            None => Ok(0.0),
        };
        Ok(Remote::new(peer, link, holding, round_trip, row.map_err(|reason| lost(peer, &reason))?))
    }

    /// Has a peer hold layers.
    pub(super) async fn hold_stage(
        &self,
        model: &ModelRef,
        known: &Known,
        post: &Post,
    ) -> Result<Arc<RemoteStage>, JobError> {
        let mut attempt = 1;
        loop {
            match self.try_hold_stage(model, known, post).await {
                Err(error) if is_worth_another(&error, &mut attempt) => {}
                held => return held,
            }
        }
    }

    async fn try_hold_stage(&self, model: &ModelRef, known: &Known, post: &Post) -> Result<Arc<RemoteStage>, JobError> {
        let peer = post.peer;
        let link = self.link(&self.shared.stage_links, peer).await.map_err(|reason| lost(peer, &reason))?;
        let holding = self.shared.holdings.fetch_add(1, Ordering::Relaxed);
        let elsewhere = post.elsewhere.iter();
        let elsewhere = elsewhere
            .map(|(peer, share)| PeerExperts { peer: peer.to_string(), experts: of_layers(&share.experts) })
            .collect();
        let ask = StageAsk::Hold {
            holding,
            model: model.clone(),
            first: post.range.start as u32,
            count: post.range.len() as u32,
            experts: of_layers(&post.experts),
            elsewhere,
        };
        held(peer, link.answer(ask).await)?;
        let way = link.way(known.costs.hidden).await.map_err(|reason| lost(peer, &reason))?;
        Ok(Arc::new(RemoteStage::new(peer, link, holding, way)))
    }
}

/// Layers that a peer is to work out, and who is to have which of their experts.
#[derive(Debug)]
pub(super) struct Post {
    pub(super) peer: PeerId,
    /// Layers of one stack, counted through all stacks.
    pub(super) range: Range<usize>,
    /// Experts of them that are there too.
    pub(super) experts: BTreeSet<Place>,
    /// Who has the others.
    pub(super) elsewhere: Vec<(PeerId, Share)>,
}

/// The layers that others than this node are to have.
fn posts(known: &Known, members: &[Member], own: PeerId) -> Vec<Post> {
    let mut posts = Vec::new();
    for member in members {
        let Some(peer) = member.peer else { continue };
        for stack in &known.stacks {
            let mut layers = member.share.layers.range(stack.clone()).copied();
            let Some(first) = layers.next() else { continue };
            let range = first..first + 1 + layers.count();
            let of_range = Share { layers: range.clone().collect(), ..Share::default() };
            let others = members.iter().filter(|other| other.peer != member.peer);
            let others = others.map(|other| (other.peer.unwrap_or(own), experts_of(&other.share, &of_range)));
            let elsewhere = others.filter(|(_, share)| !share.experts.is_empty()).collect();
            let experts = experts_of(&member.share, &of_range).experts;
            posts.push(Post { peer, range, experts, elsewhere });
        }
    }
    posts
}

/// The experts of a share that are of layers of another.
fn experts_of(share: &Share, layers: &Share) -> Share {
    let of_layers = |place: &&Place| layers.layers.contains(&place.0);
    Share { experts: share.experts.iter().filter(of_layers).copied().collect(), ..Share::default() }
}

fn broke_off(error: tokio::task::JoinError) -> JobError {
    JobError::new(ErrorCode::Internal, format!("loading the model broke off: {error}"))
}

fn lost(peer: PeerId, reason: &str) -> JobError {
    JobError::new(ErrorCode::WorkerLost, format!("peer {peer}: {reason}"))
}

/// Goes by the answer of a peer that was to hold something.
fn held(peer: PeerId, answer: Result<ShareAnswer, String>) -> Result<(), JobError> {
    match answer {
        Ok(ShareAnswer::Held { memory_bytes, fetched_bytes, here_bytes }) => {
            tracing::info!(%peer, memory_bytes, fetched_bytes, here_bytes, "a peer holds its share");
            Ok(())
        }
        Ok(ShareAnswer::Failed(error)) => Err(error),
        Ok(_) => Err(lost(peer, "it answered something else")),
        Err(reason) => Err(lost(peer, &reason)),
    }
}

/// Whether a peer whose stream broke is asked again to hold its share: what has come stays there.
fn is_worth_another(error: &JobError, attempt: &mut u32) -> bool {
    let again = error.code == ErrorCode::WorkerLost && *attempt < ATTEMPTS;
    if again {
        tracing::debug!(%error, attempt, "a peer is asked again to hold its share");
        *attempt += 1;
    }
    again
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
        let ends = parts.anatomy().extents(Part::Ends);
        let of_ends = parts.index().iter().filter(|tensor| {
            ends.iter().any(|extent| {
                extent.file == tensor.file && (extent.offset..extent.offset + extent.bytes).contains(&tensor.offset)
            })
        });
        let head = of_ends.max_by_key(|tensor| tensor.bytes).map_or(dtype, |tensor| tensor.dtype);
        let (elements, bytes) = dtype.block();
        let spec = &parts.description().spec;
        let costs = Costs::of(spec, parts.anatomy(), bytes as f64 / elements as f64);
        let costs = Costs { sequences: accel_pipelines::sequences(&parts)?, ..costs };
        let mut first = 0;
        let stacks = stacks(spec).into_iter().map(|(_, stack)| {
            let begins = first;
            first += stack.layers.len();
            begins..first
        });
        Ok(Self { costs, dtype, head, stacks: stacks.collect() })
    }

    /// What it costs.
    pub fn costs(&self) -> &Costs {
        &self.costs
    }

    /// How most of its weights are stored.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Bytes of a share in memory, without the experts that it has for layers of others: they are held when those ask.
    pub fn own_bytes(&self, share: &Share) -> u64 {
        self.costs.share_bytes(&Share { experts: experts_of(share, share).experts, ..share.clone() })
    }

    /// Whether it has parts that others could work out.
    pub fn can_be_spread(&self) -> bool {
        self.costs.layers.len() > 1
    }

    /// Whether it is a mixture of experts: it may be faster on several machines even where it fits one.
    pub fn has_experts(&self) -> bool {
        self.costs.has_experts()
    }
}

/// Seconds that a peer computes a row of an expert that it holds: its first, so no less than others will take.
async fn one_row(link: &Link<ExpertAsk>, holding: u32, (layer, expert): Place, hidden: usize) -> Result<f64, String> {
    let rows = Floats(vec![1.0; hidden]);
    let ask = ExpertAsk::Forward { holding, layer: layer as u32, places: vec![(0, expert as u32)], rows };
    match link.answer(ask).await? {
        ShareAnswer::Rows { micros, .. } => Ok(Duration::from_micros(micros).as_secs_f64()),
        ShareAnswer::Failed(error) => Err(error.to_string()),
        _ => Err("it answered something else".to_owned()),
    }
}
