//! The bitswap lane: everybody who has no stream of ours.
//!
//! The IPFS library asks all connected peers, and the first that has a block sends it, so these bytes have no known
//! sender. Kubo answers every message on a stream of its own, and the library reads only the newest stream of a peer: two
//! answers at once, and one is lost without a word. So the lane finds out how many blocks it can ask for at once: it
//! begins with one, halves the number when an answer is lost and does not go back above that, and otherwise grows. A
//! block counts as lost after a multiple of the usual time, not after a fixed one, since a lost answer is the rule here.

use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use rust_ipfs::{Ipfs, PeerId};
use tokio::sync::mpsc::Receiver;

use super::lane::{Event, Order, Reports, check_length};
use crate::store::blocks::{Blocks, Put};

const FIRST_WINDOW: usize = 1;
/// Bounds of the time after which a block counts as lost; the first block is waited for until the upper one.
const SHORTEST_WAIT: Duration = Duration::from_millis(300);
const LONGEST_WAIT: Duration = Duration::from_secs(8);
/// A block is waited for this many times the usual time.
const WAIT_FACTOR: u32 = 8;

/// How much to ask for at once, and how long to wait.
struct Pace {
    window: usize,
    highest: usize,
    since_growth: usize,
    usual: Option<Duration>,
}

impl Pace {
    fn wait(&self) -> Duration {
        self.usual.map_or(LONGEST_WAIT, |usual| (usual * WAIT_FACTOR).clamp(SHORTEST_WAIT, LONGEST_WAIT))
    }

    fn came(&mut self, after: Duration) {
        self.usual = Some(self.usual.map_or(after, |usual| (usual * 7 + after) / 8));
        self.since_growth += 1;
        if self.since_growth >= self.window {
            self.since_growth = 0;
            self.window = (self.window + 1).min(self.highest);
        }
    }

    fn lost(&mut self) {
        self.window = (self.window / 2).max(1);
        self.highest = self.window;
        self.since_growth = 0;
    }
}

/// Asks by bitswap, `providers` dialled first, until the wants end.
pub(super) async fn run(
    ipfs: Ipfs,
    providers: Vec<PeerId>,
    blocks: Blocks,
    mut wants: Receiver<Order>,
    reports: Reports,
) {
    let highest = wants.max_capacity().max(1);
    let mut pace = Pace { window: FIRST_WINDOW.min(highest), highest, since_growth: 0, usual: None };
    let mut asked: FuturesUnordered<BoxFuture<'static, (Event, Duration)>> = FuturesUnordered::new();
    reports.send(Event::Ready).await;
    loop {
        tokio::select! {
            want = wants.recv(), if asked.len() < pace.window => match want {
                Some(want) => {
                    let (ipfs, providers, blocks, wait) = (ipfs.clone(), providers.clone(), blocks.clone(), pace.wait());
                    asked.push(Box::pin(async move {
                        let started = Instant::now();
                        (get(ipfs, providers, blocks, want, wait).await, started.elapsed())
                    }));
                }
                None => break,
            },
            Some((event, after)) = asked.next() => {
                match &event {
                    Event::Stored { .. } => pace.came(after),
                    // A peer that says it has nothing is waited for in vain as well, which does no harm but to speed.
                    Event::Absent { .. } => pace.lost(),
                    _ => {}
                }
                reports.send(event).await;
            }
        }
    }
    reports.send(Event::Closed { unsupported: false, reason: "done".into() }).await;
}

async fn get(ipfs: Ipfs, providers: Vec<PeerId>, blocks: Blocks, want: Order, wait: Duration) -> Event {
    let cid = want.block.cid;
    let Ok(block) = ipfs.get_block(cid).providers(providers).timeout(wait).await else {
        return Event::Absent { cid };
    };
    // The repository has verified and written it; the quota and the declared length are still ours to keep.
    let bytes = block.data().len() as u64;
    let counted = match want.block.bytes {
        Some(_) => check_length(&want.block, bytes).map(|()| want.reserved.keep(bytes)),
        None => blocks.reserve(bytes).map(|reserved| reserved.keep(bytes)),
    };
    match counted {
        Ok(()) => Event::Stored { cid, bytes, put: Put::New },
        Err(error) => {
            // Its bytes were never counted, and the error matters more than a failed removal.
            let _ = tokio::task::spawn_blocking(move || blocks.discard_uncounted(&cid)).await;
            Event::Failed(error)
        }
    }
}
