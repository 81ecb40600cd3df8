//! The models that can be asked by name: those that are here, and those that peers have.

use accel_protocol::ModelRef;

use super::Shared;
use crate::store::{RootKind, StoreError};

/// A model that can be asked.
#[derive(Clone, Debug)]
pub(super) struct KnownModel {
    /// What to ask it by: its name here if it has one, or its CID.
    pub id: String,
    pub model: ModelRef,
    pub bytes: u64,
    /// When it came here; 0 where it is not.
    pub added_unix_seconds: u64,
    pub is_here: bool,
    /// Whether it is in memory, here or with a peer.
    pub loaded: bool,
    pub kind: Option<RootKind>,
}

/// All of them, those of this node first. One with several names is there once for each.
pub(super) async fn known(shared: &Shared) -> Result<Vec<KnownModel>, StoreError> {
    let loaded = shared.node.scheduler.models().loaded();
    let mut found: Vec<KnownModel> = Vec::new();
    for root in shared.node.store.pinned().await? {
        if matches!(root.kind, RootKind::Gguf | RootKind::HuggingFace) {
            let model = ModelRef::from(root.cid);
            found.push(KnownModel {
                id: model.to_string(),
                bytes: root.bytes,
                added_unix_seconds: root.added_unix_seconds,
                is_here: true,
                loaded: loaded.contains(&model),
                kind: Some(root.kind),
                model,
            });
        }
    }
    let adverts = shared.node.swarm.peers().all().into_iter().filter_map(|(_, peer)| peer.advert);
    for held in adverts.flat_map(|advert| advert.models) {
        match found.iter_mut().find(|known| known.model == held.model) {
            Some(known) => known.loaded |= held.loaded,
            None => found.push(KnownModel {
                id: held.model.to_string(),
                bytes: held.bytes,
                added_unix_seconds: 0,
                is_here: false,
                loaded: held.loaded,
                kind: None,
                model: held.model,
            }),
        }
    }
    let named = |known: KnownModel| {
        let names = shared.names.of(&known.model);
        let called: Vec<_> = names.iter().map(|name| KnownModel { id: name.to_string(), ..known.clone() }).collect();
        if called.is_empty() { vec![known] } else { called }
    };
    Ok(found.into_iter().flat_map(named).collect())
}
