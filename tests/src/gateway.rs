//! A trustless gateway on loopback: blocks by their CIDs out of a node's block files, and what gateways do besides.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use axum::Router;
use axum::extract::{Path as At, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// How the gateway behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// It sends what is asked for.
    #[default]
    Good,
    /// It changes the last byte of every block.
    Forging,
    /// It refuses the next so many requests for want of time.
    Busy(u32),
    /// It sends without end.
    Endless,
}

#[derive(Debug)]
struct World {
    blockstore: PathBuf,
    mood: Mutex<Mood>,
    asked: Mutex<Vec<String>>,
}

/// The gateway; it ends when it is dropped.
#[derive(Debug)]
pub struct Gateway {
    address: SocketAddr,
    world: Arc<World>,
    _server: JoinSet<()>,
}

impl Gateway {
    /// A gateway to the blocks of the node whose data directory that is.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start(data_dir: &Path, mood: Mood) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let blockstore = data_dir.join("ipfs/blockstore");
        let world = Arc::new(World { blockstore, mood: Mutex::new(mood), asked: Mutex::default() });
        let router = Router::new().route("/ipfs/{cid}", get(block)).with_state(world.clone());
        let mut server = JoinSet::new();
        server.spawn(async move {
            // Whoever waits for it sees that it is gone.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { address, world, _server: server })
    }

    /// Its address, as a configuration names it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The CIDs that it was asked for, in order.
    pub fn asked(&self) -> Vec<String> {
        self.world.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[derive(Deserialize)]
struct Format {
    format: String,
}

async fn block(
    State(world): State<Arc<World>>,
    At(cid): At<String>,
    Query(Format { format }): Query<Format>,
    headers: HeaderMap,
) -> Response {
    let raw = headers.get(header::ACCEPT).is_some_and(|accept| accept == "application/vnd.ipld.raw");
    if !raw || format != "raw" || cid.len() < 8 || !cid.chars().all(|of| of.is_ascii_alphanumeric()) {
        return StatusCode::BAD_REQUEST.into_response();
    }
    world.asked.lock().unwrap_or_else(PoisonError::into_inner).push(cid.clone());
    let mood = {
        let mut mood = world.mood.lock().unwrap_or_else(PoisonError::into_inner);
        let now = *mood;
        if let Mood::Busy(times) = now {
            *mood = times.checked_sub(1).map_or(Mood::Good, Mood::Busy);
        }
        now
    };
    let file = world.blockstore.join(&cid[cid.len() - 3..cid.len() - 1]).join(format!("{cid}.data"));
    let Ok(mut block) = tokio::fs::read(file).await else {
        return StatusCode::NOT_FOUND.into_response();
    };
    match mood {
        Mood::Good | Mood::Busy(0) => {}
        Mood::Busy(_) => return (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "0")]).into_response(),
        Mood::Forging => {
            if let Some(last) = block.last_mut() {
                *last ^= 1;
            }
        }
        Mood::Endless => {
            let pieces = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![0; 1 << 16]));
            return axum::body::Body::from_stream(pieces).into_response();
        }
    }
    ([(header::CONTENT_TYPE, "application/vnd.ipld.raw")], block).into_response()
}
