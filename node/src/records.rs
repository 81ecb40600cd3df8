//! Provider records: the DHT hears of every model that is pinned here, as soon as there is somebody to tell.
//!
//! Kademlia renews the records that it was once told of. It keeps them in memory, so after a restart all are told again.

use std::collections::HashSet;

use tokio_util::sync::CancellationToken;

use crate::peers::Peers;
use crate::store::{Store, StoreError};

/// Tells of what is pinned until `stop`.
///
/// # Errors
/// When the store has stopped.
pub async fn run(store: Store, peers: Peers, stop: CancellationToken) -> Result<(), StoreError> {
    let (mut models, mut company) = (store.changes(), peers.changes());
    let mut told = HashSet::new();
    loop {
        let pinned: HashSet<_> = store.pinned().await?.into_iter().map(|root| root.cid).collect();
        told.retain(|root| pinned.contains(root));
        let untold = pinned.difference(&told).next().copied();
        let alone = !peers.any_connected();
        let tell = async {
            match untold {
                Some(root) if !alone => (root, store.provide(&root).await),
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            (root, result) = tell => {
                // One that was refused is not tried again before the next start: adverts name the model all the same.
                if let Err(error) = result {
                    tracing::debug!(%root, %error, "no provider record was stored");
                }
                told.insert(root);
            }
            Ok(()) = models.changed() => {}
            Ok(()) = company.changed(), if untold.is_some() && alone => {}
        }
    }
}
