//! What this node tells the swarm about itself, and how it hears others.
//!
//! Adverts go out by gossip, signed by the transport, every few seconds and at once when something changes. A peer that
//! has just connected is asked directly, and whoever is new in gossip is greeted, so that nobody waits. The question
//! tells what the asker can do: of two peers the one that is still starting cannot be asked, but it asks as soon as it
//! has started.

use std::collections::HashMap;
use std::time::Duration;

use accel_ipfs::GossipsubEvent;
use accel_protocol::limits::{ADVERT_ADDRESSES, ADVERT_BYTES, ADVERT_LIFE_MS, ADVERT_MODELS};
use accel_protocol::message::ADVERTS_TOPIC;
use accel_protocol::{Advert, Device, HeldModel, JobRequest, JobResponse, ModelRef, frame};
use futures::StreamExt;
use libp2p::PeerId;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::peers::unix_ms;
use crate::scheduler::Scheduler;
use crate::store::{RootKind, Store, StoreError};
use crate::swarm::{REQUEST_TIMEOUT, Swarm, SwarmError};

const INTERVAL: Duration = Duration::from_secs(10);
/// How soon somebody new hears this node, who may be connected to others only. Newcomers of that time hear it at once.
const GREETING: Duration = Duration::from_millis(200);
/// Peers asked at once what they can do.
const QUESTIONS: usize = 16;
/// How often a peer that does not answer is asked, once in each interval; it may be a plain IPFS peer.
const ATTEMPTS: u32 = 3;
/// The pauses after a question that fails: of two connections that peers open to each other at once, one is closed, and
/// with it what was asked there. Somebody may wait for the answer, so this is well within an interval.
const PAUSES: [Duration; 3] = [Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(1)];

/// An advert that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AdvertError {
    /// The swarm has stopped.
    #[error(transparent)]
    Swarm(#[from] SwarmError),
    /// The store has stopped.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What an advert is made of.
#[derive(Clone, Debug)]
pub struct Advertiser {
    /// The swarm that carries it.
    pub swarm: Swarm,
    /// Where the models are.
    pub store: Store,
    /// How busy the node is.
    pub scheduler: Scheduler,
    /// The devices that were proven.
    pub devices: Vec<Device>,
}

impl Advertiser {
    /// This node's advert as of now, small enough to travel.
    ///
    /// # Errors
    /// When the swarm or the store has stopped.
    pub async fn advert(&self) -> Result<Advert, AdvertError> {
        let loaded = self.scheduler.models().loaded();
        let usage = self.store.usage();
        let pinned = self.store.pinned().await?;
        // Where not all fit, those in memory and the newest ones matter most.
        let mut models: Vec<HeldModel> = pinned
            .iter()
            .rev()
            // Of what is here in part, only what runs with the parts of others.
            .filter(|root| !root.part || loaded.iter().any(|loaded| loaded.cid == root.cid))
            .filter(|root| matches!(root.kind, RootKind::Gguf | RootKind::HuggingFace))
            .map(|root| {
                let model = ModelRef::from(root.cid);
                HeldModel { loaded: loaded.iter().any(|loaded| loaded.cid == model.cid), model, bytes: root.bytes }
            })
            .collect();
        models.sort_by_key(|held| !held.loaded);
        models.truncate(ADVERT_MODELS);
        let mut addresses: Vec<String> = self.swarm.listen_addresses().await?.iter().map(ToString::to_string).collect();
        addresses.truncate(ADVERT_ADDRESSES);
        let now = unix_ms();
        let mut advert = Advert {
            number: now,
            expires_unix_ms: now + ADVERT_LIFE_MS,
            agent: crate::AGENT.to_owned(),
            addresses,
            serves_jobs: self.scheduler.serves(),
            arithmetic: accel_pipelines::arithmetic(),
            devices: self.devices.iter().filter(|device| device.proof.is_ok()).cloned().collect(),
            models,
            free_bytes: usage.quota_bytes.saturating_sub(usage.used_bytes),
            load: self.scheduler.load(),
        };
        while frame::encode(&advert).map_or(true, |bytes| bytes.len() > ADVERT_BYTES) && advert.models.pop().is_some() {
        }
        Ok(advert)
    }

    /// Publishes this node's adverts and hears those of others, until `stop`.
    ///
    /// # Errors
    /// When the swarm or the store has stopped.
    pub async fn run(self, stop: CancellationToken) -> Result<(), AdvertError> {
        let mut heard = self.swarm.adverts().await?;
        let mut changes = self.swarm.peers().changes();
        let (mut work, mut models) = (self.scheduler.changes(), self.store.changes());
        let mut asked: HashMap<PeerId, u32> = HashMap::new();
        let mut questions: JoinSet<()> = JoinSet::new();
        let mut timer = tokio::time::interval(INTERVAL);
        let mut greeting: Option<Instant> = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return self.publish().await,
                _ = timer.tick() => {
                    self.publish().await?;
                    self.ask_the_silent(ATTEMPTS, &mut asked, &mut questions);
                }
                Ok(()) = work.changed() => self.publish().await?,
                Ok(()) = models.changed() => self.publish().await?,
                () = tokio::time::sleep_until(greeting.unwrap_or_else(Instant::now)), if greeting.is_some() => {
                    greeting = None;
                    self.publish().await?;
                }
                Some(event) = heard.next() => {
                    if self.hear(event) {
                        greeting.get_or_insert_with(|| Instant::now() + GREETING);
                    }
                }
                Some(_) = questions.join_next() => {}
                Ok(()) = changes.changed() => self.ask_the_silent(1, &mut asked, &mut questions),
            }
        }
    }

    /// Asks those that were asked fewer than `attempts` times.
    fn ask_the_silent(&self, attempts: u32, asked: &mut HashMap<PeerId, u32>, questions: &mut JoinSet<()>) {
        let peers = self.swarm.peers();
        asked.retain(|id, _| peers.is_connected(id));
        for id in peers.silent() {
            let times = asked.entry(id).or_default();
            if *times < attempts && questions.len() < QUESTIONS {
                *times += 1;
                questions.spawn(self.clone().ask(id));
            }
        }
    }

    /// Takes in what was gossiped. Whether it came from somebody new, who does not know this node either.
    fn hear(&self, event: GossipsubEvent) -> bool {
        let message = match event {
            GossipsubEvent::Message { message } => message,
            GossipsubEvent::Subscribed { .. } => return true,
            GossipsubEvent::Unsubscribed { .. } => return false,
        };
        let Some(source) = message.source else { return false };
        let is_known = || self.swarm.peers().get(&source).is_some_and(|peer| peer.advert.is_some());
        let was_known = is_known();
        match frame::decode::<Advert>(&message.data) {
            Ok(advert) if message.data.len() <= ADVERT_BYTES => self.swarm.peers().hear(source, advert),
            Ok(_) => tracing::debug!(peer = %source, bytes = message.data.len(), "an advert over its size was dropped"),
            Err(error) => tracing::debug!(peer = %source, %error, "an advert that cannot be read was dropped"),
        }
        !was_known && is_known()
    }

    async fn publish(&self) -> Result<(), AdvertError> {
        let advert = self.advert().await?;
        match frame::encode(&advert) {
            Ok(bytes) => {
                if let Err(error) = self.swarm.ipfs().pubsub_publish(ADVERTS_TOPIC.to_owned(), bytes).await {
                    // With nobody to hear it, gossip refuses to publish; the next connection asks by itself.
                    tracing::trace!(%error, "an advert was not published");
                }
            }
            Err(error) => tracing::error!(%error, "this node's advert cannot be encoded"),
        }
        Ok(())
    }

    async fn ask(self, peer: PeerId) {
        let own = match self.advert().await {
            Ok(own) => Box::new(own),
            Err(error) => return tracing::debug!(%error, "this node's advert could not be made"),
        };
        let question = JobRequest::Capabilities(own);
        for pause in PAUSES {
            match self.swarm.request(peer, &question, REQUEST_TIMEOUT).await {
                Ok(JobResponse::Capabilities(advert)) => return self.swarm.peers().hear(peer, *advert),
                Ok(_) => return tracing::debug!(%peer, "answered a question for its capabilities with something else"),
                Err(error) => tracing::debug!(%peer, %error, "does not tell its capabilities; it may be plain IPFS"),
            }
            tokio::time::sleep(pause).await;
            if !self.swarm.peers().is_connected(&peer) {
                return;
            }
        }
    }
}
