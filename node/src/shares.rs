//! Models that are spread over several peers.
//!
//! One node works on the model: it has what is before and after the layers, and asks others for what they hold. What
//! each holds it has fetched by CID, block by block, and nothing else of the model.

mod coordinator;
mod experts;
mod keeper;
mod link;
mod offers;
mod pace;
pub mod plan;
mod serving;
mod stages;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use accel_backends::files::{Extent, ModelFiles};
use accel_models::share::{Part, Share};
use accel_protocol::{ErrorCode, JobError, ModelRef};
use libp2p::PeerId;
use tokio::runtime::Handle;

use crate::store::{BlockFiles, FetchOptions, FetchProgress, FetchReport, Store};
use crate::swarm::Swarm;

pub use coordinator::{Coordinator, Known, Running};
pub use experts::holder::ExpertHolder;
pub use plan::{Member, PROMPT_TOKENS, Plan, Prediction, Split, Way, Wish};
pub use stages::holder::StageHolder;

/// How long those who were found to have a model are asked without another look.
const FRESH: Duration = Duration::from_secs(600);
/// A file beside the weights that is larger is none that a model is told by.
const SMALL_FILE_BYTES: u64 = 64 << 20;

/// How parts of models get here. Clones are the same.
#[derive(Clone, Debug)]
pub struct Fetcher {
    /// Who brings them.
    pub swarm: Swarm,
    /// Where they are kept.
    pub store: Store,
    /// How they are fetched.
    pub options: FetchOptions,
    /// What fetches for threads that wait.
    pub runtime: Handle,
}

/// How parts of one model get here.
#[derive(Clone, Debug)]
pub struct Fetch {
    fetcher: Fetcher,
    model: ModelRef,
    /// A peer that may have them, whatever it says of itself.
    from: Option<PeerId>,
    /// Who was found to have them, and when: a lookup takes longer than an expert does.
    found: Arc<Mutex<Option<Found>>>,
}

/// Providers, and when they were found.
type Found = (Instant, Vec<PeerId>);

impl Fetcher {
    /// Fetches parts of a model.
    pub fn of(&self, model: &ModelRef) -> Fetch {
        Fetch { fetcher: self.clone(), model: model.clone(), from: None, found: Arc::default() }
    }
}

impl Fetch {
    /// Fetches what of a share is not here, if its bytes in memory are as `fits` wants them.
    ///
    /// # Errors
    /// When nobody has it, the model has no such part, or there is no room.
    pub async fn share(
        &self,
        share: &Share,
        fits: impl FnOnce(u64) -> Result<(), JobError> + Send,
        progress: impl FnMut(&FetchProgress) + Send,
    ) -> Result<FetchReport, JobError> {
        let model = &self.model;
        if !model.path.is_empty() {
            let words = format!("{model}: a model inside of a larger directory cannot be spread over peers");
            return Err(JobError::new(ErrorCode::Unsupported, words));
        }
        let mut providers = self.providers().await;
        providers.extend(self.from.filter(|from| !providers.contains(from)));
        let options = FetchOptions { providers, ..self.fetcher.options.clone() };
        let choose = |files: &BlockFiles| {
            let parts = accel_pipelines::open(Arc::new(files.clone()), 1)?;
            let anatomy = parts.anatomy();
            let missing = share.experts.iter().find(|place| anatomy.bytes(Part::Expert(place.0, place.1)) == 0);
            if let Some((layer, expert)) = missing {
                let words = format!("{model} has no expert {expert} of layer {layer}");
                return Err(JobError::new(ErrorCode::InvalidRequest, words));
            }
            if let Some(layer) = share.layers.iter().find(|&&layer| anatomy.bytes(Part::Layer(layer)) == 0) {
                return Err(JobError::new(ErrorCode::InvalidRequest, format!("{model} has no layer {layer}")));
            }
            fits(anatomy.share_bytes(share))?;
            let mut extents = anatomy.share_extents(share);
            // Whoever reads texts reads the tokenizer and what else stands beside the weights.
            let beside = files.files().iter().filter(|file| share.ends && file.bytes <= SMALL_FILE_BYTES);
            let beside = beside.filter(|file| !parts.index().iter().any(|tensor| tensor.file == file.name));
            extents.extend(beside.map(|file| Extent { file: file.name.clone(), offset: 0, bytes: file.bytes }));
            Ok(extents)
        };
        let fetch = self.fetcher.store.fetch_parts(&model.cid, options, choose, progress);
        fetch.await
    }

    /// Who has the model, as was found a short while ago or is found now.
    async fn providers(&self) -> Vec<PeerId> {
        let known = |found: &Option<Found>| {
            let (when, providers) = found.as_ref()?;
            (when.elapsed() < FRESH && !providers.is_empty()).then(|| providers.clone())
        };
        if let Some(providers) = known(&self.found.lock().unwrap_or_else(PoisonError::into_inner)) {
            return providers;
        }
        let providers = self.fetcher.swarm.providers(&self.model).await;
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), providers.clone()));
        providers
    }

    /// The same, for a thread that computes.
    ///
    /// # Errors
    /// As `share`.
    pub fn blocking(&self, share: &Share) -> Result<FetchReport, JobError> {
        self.fetcher.runtime.block_on(self.share(share, |_| Ok(()), |_| {}))
    }
}
