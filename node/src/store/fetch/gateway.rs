//! The lane of a trustless gateway: blocks by HTTP, from whoever has IPFS behind a web server.
//!
//! Each block is asked for by its CID and compared with it, so a gateway can be slow or lack what is wanted, and nothing
//! else (<https://specs.ipfs.tech/http-gateways/trustless-gateway/>). It learns what this node looks for, so it is asked
//! only where the configuration names one, and only for what peers do not send. What it does not have it is not asked for
//! again soon: its search takes a minute and costs others work.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use cid::Cid;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use reqwest::{Client, StatusCode, header};
use tokio::sync::mpsc::Receiver;

use super::lane::{Event, Order, Reports, store};
use crate::store::blocks::{Blocks, MAX_BLOCK_BYTES};

/// Blocks asked for at once.
const WINDOW: usize = 8;
/// Time before a block that was not there is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// The same after an answer that makes no sense.
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// What a gateway gets for one block, with the pauses that it asks for: others may have it.
const ANSWERS_WITHIN: Duration = Duration::from_secs(8);
/// A gateway that wants to be asked again at once is given this all the same.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
/// What it is given where it says no time.
const USUAL_PAUSE: Duration = Duration::from_secs(2);
/// Answers in a row that make no sense, after which it is left alone.
const MAX_FAILURES: u32 = 8;
/// Blocks with wrong bytes after which it is left alone.
const MAX_WRONG: u32 = 3;

/// What became of a question.
enum Answer {
    Block(Order, Vec<u8>),
    Absent(Cid),
    Wrong(Cid),
    Failed(Cid, String),
}

/// Asks a gateway, which begins with `http`, until the wants end or it is of no use.
pub(super) async fn run(address: String, blocks: Blocks, wants: Receiver<Order>, reports: Reports) {
    let secure = address.starts_with("https:");
    // The certificates that this machine trusts are read from its disk.
    let client = tokio::task::spawn_blocking(move || crate::tls::network(crate::AGENT, secure)).await;
    let client = client.unwrap_or_else(|_| Err("cancelled".to_owned()));
    let reason = match client {
        Ok(client) => exchange(&client, &address, &blocks, wants, &reports).await,
        Err(reason) => reason,
    };
    reports.send(Event::Closed { unsupported: false, reason }).await;
}

/// Why it ended.
async fn exchange(
    client: &Client,
    address: &str,
    blocks: &Blocks,
    mut wants: Receiver<Order>,
    reports: &Reports,
) -> String {
    let mut asked: FuturesUnordered<BoxFuture<'_, Answer>> = FuturesUnordered::new();
    // What it is not to be asked for until then.
    let mut absent: HashMap<Cid, Instant> = HashMap::new();
    let (mut failures, mut wrong) = (0, 0);
    reports.send(Event::Ready).await;
    loop {
        tokio::select! {
            want = wants.recv(), if asked.len() < WINDOW => {
                let Some(want) = want else { return "done".to_owned() };
                let cid = want.block.cid;
                if absent.get(&cid).is_some_and(|until| Instant::now() < *until) {
                    reports.send(Event::Absent { cid }).await;
                    continue;
                }
                asked.push(Box::pin(async move {
                    let answer = tokio::time::timeout(ANSWERS_WITHIN, ask(client, address, want)).await;
                    answer.unwrap_or(Answer::Absent(cid))
                }));
            }
            Some(answer) = asked.next() => {
                let event = match answer {
                    Answer::Block(want, block) => {
                        failures = 0;
                        store(blocks, want, block).await
                    }
                    Answer::Absent(cid) => {
                        failures = 0;
                        absent.insert(cid, Instant::now() + ASK_AGAIN);
                        Event::Absent { cid }
                    }
                    Answer::Wrong(cid) => Event::Wrong { cid },
                    Answer::Failed(cid, reason) => {
                        failures += 1;
                        if failures >= MAX_FAILURES {
                            return reason;
                        }
                        tracing::debug!(address, %cid, reason, "a gateway sent no block");
                        absent.insert(cid, Instant::now() + TRY_AGAIN);
                        Event::Absent { cid }
                    }
                };
                if let Event::Wrong { cid } = &event {
                    absent.insert(*cid, Instant::now() + ASK_AGAIN);
                    wrong += 1;
                }
                reports.send(event).await;
                if wrong >= MAX_WRONG {
                    return "sent other bytes than the CIDs'".to_owned();
                }
            }
        }
    }
}

async fn ask(client: &Client, address: &str, want: Order) -> Answer {
    let cid = want.block.cid;
    let url = format!("{}/ipfs/{cid}?format=raw", address.trim_end_matches('/'));
    let failed = |error: reqwest::Error| Answer::Failed(cid, error.without_url().to_string());
    let mut response = loop {
        let request = client.get(&url).header(header::ACCEPT, "application/vnd.ipld.raw");
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return failed(error),
        };
        match response.status() {
            StatusCode::OK => break response,
            StatusCode::NOT_FOUND | StatusCode::GONE | StatusCode::GATEWAY_TIMEOUT => return Answer::Absent(cid),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                let after =
                    response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
                tokio::time::sleep(
                    after.map_or(USUAL_PAUSE, Duration::from_secs).clamp(SHORTEST_PAUSE, ANSWERS_WITHIN),
                )
                .await;
            }
            status => return Answer::Failed(cid, format!("answered {status}")),
        }
    };
    let mut block = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(piece)) if (block.len() + piece.len()) as u64 > MAX_BLOCK_BYTES => return Answer::Wrong(cid),
            Ok(Some(piece)) => block.extend_from_slice(&piece),
            Ok(None) => return Answer::Block(want, block),
            Err(error) => return failed(error),
        }
    }
}
