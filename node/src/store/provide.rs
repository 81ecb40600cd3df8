//! Saying and asking in the DHT who has a root.
//!
//! Only roots are provided: a record for every block would be thousands a model. A record carries the external
//! addresses the swarm knows, and lookups drop records without one, so providing with none is refused here instead
//! of succeeding to no effect.

use std::collections::HashSet;
use std::time::Duration;

use cid::Cid;
use futures::StreamExt;
use rust_ipfs::PeerId;

use super::Store;
use super::error::StoreError;

impl Store {
    /// Publishes that this node has `cid`.
    ///
    /// # Errors
    /// `Missing` when it is not here, `Swarm` when the node has no external address or the DHT refuses.
    pub async fn provide(&self, cid: &Cid) -> Result<(), StoreError> {
        let cid = super::dag::canonical(cid)?;
        let failed = |found: String| StoreError::Swarm { doing: "publish a provider record", found };
        if self.blocks().len(&cid)?.is_none() {
            return Err(StoreError::Missing { cid });
        }
        let external = self.ipfs().external_addresses().await.map_err(|error| failed(error.to_string()))?;
        if external.is_empty() {
            return Err(failed("it has no external address, so nobody would find it: give it one".into()));
        }
        self.ipfs().provide(cid).await.map_err(|error| failed(error.to_string()))
    }

    /// Peers that say in the DHT that they have `cid`, as many as turn up within `limit`.
    ///
    /// # Errors
    /// `Swarm` when the lookup cannot start.
    pub async fn find_providers(&self, cid: &Cid, limit: Duration) -> Result<Vec<PeerId>, StoreError> {
        let cid = super::dag::canonical(cid)?;
        let lookup = self.ipfs().dht_get_providers(cid.hash().to_bytes()).await;
        let mut lookup =
            lookup.map_err(|error| StoreError::Swarm { doing: "look for providers", found: error.to_string() })?;
        let mut found = HashSet::new();
        let collect = async {
            while let Some(Ok(peers)) = lookup.next().await {
                found.extend(peers);
            }
        };
        // What was found until then is the answer; a lookup has no end of its own to wait for.
        let _ = tokio::time::timeout(limit, collect).await;
        found.remove(&self.ipfs().keypair().public().to_peer_id());
        Ok(found.into_iter().collect())
    }
}
