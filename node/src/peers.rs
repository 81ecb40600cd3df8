//! Who is there: each peer's last advert, how far away it is, and whether it is connected.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use accel_ipfs::Way;
use accel_protocol::limits::{ADVERT_ADDRESSES, ADVERT_BYTES, ADVERT_LIFE_MS, ADVERT_MODELS};
use accel_protocol::{Advert, ModelRef, frame};
use libp2p::PeerId;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Peers that are remembered at most; the ones whose adverts expire first are forgotten first.
const PEERS: usize = 4096;

/// What is known of one peer.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// What it last told about itself.
    pub advert: Option<Advert>,
    /// The number of that advert; kept when the advert is forgotten, so that gossip does not bring it back.
    number: u64,
    /// Its last round trip.
    pub round_trip: Option<Duration>,
    /// Milliseconds that its clock is ahead of this machine's.
    clock_ahead_ms: Option<i64>,
    /// Direct connections that are open.
    direct: usize,
    /// Connections that are open by a relay.
    relayed: usize,
}

impl Peer {
    /// Whether a connection is open.
    pub fn is_connected(&self) -> bool {
        self.direct + self.relayed > 0
    }

    /// Whether connections are open, and all go by a relay.
    pub fn is_only_relayed(&self) -> bool {
        self.direct == 0 && self.relayed > 0
    }

    fn connections(&mut self, way: Way) -> &mut usize {
        match way {
            Way::Direct => &mut self.direct,
            Way::Relayed => &mut self.relayed,
        }
    }
}

/// A peer as `peers` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerView {
    /// Its id.
    pub peer: String,
    /// Whether a connection is open.
    pub connected: bool,
    /// Whether it is reached by a relay only, so that nothing large travels between it and this node.
    pub relayed: bool,
    /// Its last round trip in milliseconds.
    pub round_trip_ms: Option<f64>,
    /// Milliseconds that its clock is ahead of this machine's, by its last advert.
    pub clock_ahead_ms: Option<i64>,
    /// What it last told about itself.
    pub advert: Option<Advert>,
}

/// The peers that a node knows. Clones share one table.
#[derive(Clone, Debug)]
pub struct Peers {
    table: Arc<Mutex<HashMap<PeerId, Peer>>>,
    changed: watch::Sender<u64>,
}

impl Default for Peers {
    fn default() -> Self {
        Self { table: Arc::default(), changed: watch::Sender::new(0) }
    }
}

impl Peers {
    fn table(&self) -> MutexGuard<'_, HashMap<PeerId, Peer>> {
        // Every write to the table is a whole one, so a panic elsewhere leaves nothing half-done in it.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, peer: PeerId, change: impl FnOnce(&mut Peer)) {
        let mut table = self.table();
        if table.len() >= PEERS && !table.contains_key(&peer) {
            forget_one(&mut table);
        }
        change(table.entry(peer).or_default());
    }

    fn tell(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    /// A connection to `peer` opened.
    pub fn add_connection(&self, peer: PeerId, way: Way) {
        self.update(peer, |known| *known.connections(way) += 1);
        self.tell();
    }

    /// A connection to `peer` closed.
    pub fn remove_connection(&self, peer: PeerId, way: Way) {
        self.update(peer, |known| *known.connections(way) = known.connections(way).saturating_sub(1));
        self.tell();
    }

    /// A ping to `peer` came back: so often that nobody is told.
    pub fn set_round_trip(&self, peer: PeerId, round_trip: Duration) {
        self.update(peer, |known| known.round_trip = Some(round_trip));
    }

    /// `peer` told about itself. An advert that is older than what is known, expired, or lives too long is dropped.
    pub fn hear(&self, peer: PeerId, advert: Advert) {
        let now = unix_ms();
        // Its number is its time. By one that has expired before it was sent it can be told that a clock is wrong.
        let ahead = i64::try_from(advert.number).unwrap_or(i64::MAX).saturating_sub_unsigned(now);
        self.update(peer, |known| {
            if known.number < advert.number {
                known.clock_ahead_ms = Some(ahead);
            }
        });
        let live = advert.expires_unix_ms > now && advert.expires_unix_ms <= now.saturating_add(2 * ADVERT_LIFE_MS);
        // An answer to a question may be as large as a frame; what is kept of each peer may not.
        let small = frame::encode(&advert).is_ok_and(|bytes| bytes.len() <= ADVERT_BYTES);
        if !live || !small || advert.models.len() > ADVERT_MODELS || advert.addresses.len() > ADVERT_ADDRESSES {
            tracing::debug!(%peer, "an advert that is expired or over its bounds was dropped");
            return;
        }
        self.update(peer, |known| {
            if known.number < advert.number {
                known.number = advert.number;
                known.advert = Some(advert);
            }
        });
        self.tell();
    }

    /// `peer` did not do what its advert promised: nothing is expected of it until its next advert.
    pub fn doubt(&self, peer: PeerId) {
        self.update(peer, |known| known.advert = None);
        self.tell();
    }

    /// What is known of `peer`, without an advert that has expired.
    pub fn get(&self, peer: &PeerId) -> Option<Peer> {
        self.table().get(peer).cloned().map(without_expired)
    }

    /// All that is known.
    pub fn all(&self) -> Vec<(PeerId, Peer)> {
        self.table().iter().map(|(id, peer)| (*id, without_expired(peer.clone()))).collect()
    }

    /// Peers that are connected and have not told about themselves.
    pub fn silent(&self) -> Vec<PeerId> {
        let table = self.table();
        table.iter().filter(|(_, peer)| peer.is_connected() && peer.advert.is_none()).map(|(id, _)| *id).collect()
    }

    /// Whether a connection to `peer` is open.
    pub fn is_connected(&self, peer: &PeerId) -> bool {
        self.table().get(peer).is_some_and(Peer::is_connected)
    }

    /// Whether connections to `peer` are open, and all go by a relay.
    pub fn is_only_relayed(&self, peer: &PeerId) -> bool {
        self.table().get(peer).is_some_and(Peer::is_only_relayed)
    }

    /// Whether anybody is connected by a relay only.
    pub fn any_only_relayed(&self) -> bool {
        self.table().values().any(Peer::is_only_relayed)
    }

    /// Whether a connection to anybody is open.
    pub fn any_connected(&self) -> bool {
        self.table().values().any(Peer::is_connected)
    }

    /// Peers whose adverts name `model`, or its root.
    pub fn holders(&self, model: &ModelRef) -> Vec<PeerId> {
        self.all()
            .into_iter()
            .filter(|(_, peer)| {
                peer.advert.as_ref().is_some_and(|advert| advert.models.iter().any(|held| held.model.cid == model.cid))
            })
            .map(|(id, _)| id)
            .collect()
    }

    /// The peers as people see them: those that are connected or have a live advert.
    pub fn view(&self) -> Vec<PeerView> {
        let mut view: Vec<PeerView> = self
            .all()
            .into_iter()
            .filter(|(_, peer)| peer.is_connected() || peer.advert.is_some())
            .map(|(id, peer)| PeerView {
                peer: id.to_string(),
                connected: peer.is_connected(),
                relayed: peer.is_only_relayed(),
                round_trip_ms: peer.round_trip.map(|time| time.as_secs_f64() * 1e3),
                clock_ahead_ms: peer.clock_ahead_ms,
                advert: peer.advert,
            })
            .collect();
        view.sort_by(|a, b| a.peer.cmp(&b.peer));
        view
    }

    /// Wakes when a peer comes, goes, or tells about itself.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

fn without_expired(mut peer: Peer) -> Peer {
    if peer.advert.as_ref().is_some_and(|advert| advert.expires_unix_ms <= unix_ms()) {
        peer.advert = None;
    }
    peer
}

fn forget_one(table: &mut HashMap<PeerId, Peer>) {
    let expiry = |peer: &Peer| peer.advert.as_ref().map_or(0, |advert| advert.expires_unix_ms);
    let oldest = table.iter().filter(|(_, peer)| !peer.is_connected()).min_by_key(|(_, peer)| expiry(peer));
    if let Some(id) = oldest.map(|(id, _)| *id) {
        table.remove(&id);
    }
}

/// Milliseconds since the Unix epoch.
pub fn unix_ms() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}
