//! Inputs of jobs that are too large for a message: they travel by CID like everything else.

use std::io::Write;

use accel_backends::files::ModelFiles;
use cid::Cid;
use rust_ipfs::PeerId;

use super::blocks::Hold;
use super::{AddOptions, Chunker, FetchOptions, Store, StoreError, blocking};

/// Bytes that peers may fetch by CID while this lives; then their blocks are freed, unless they are needed otherwise.
/// What a crash leaves behind is garbage.
#[derive(Debug)]
pub struct Lent {
    cid: Cid,
    store: Store,
    hold: Option<Hold>,
}

impl Lent {
    /// Where they are found.
    pub fn cid(&self) -> &Cid {
        &self.cid
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.hold = None;
        // Without a runtime the program ends, as after a crash.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (store, cid) = (self.store.clone(), self.cid);
            runtime.spawn(async move {
                if let Err(error) = store.free_unpinned(cid).await {
                    tracing::warn!(%cid, %error, "a job's input was not freed; garbage collection will");
                }
            });
        }
    }
}

impl Store {
    /// Offers `bytes` to peers as a file.
    ///
    /// # Errors
    /// As [`Store::add`].
    pub async fn lend(&self, bytes: Vec<u8>) -> Result<Lent, StoreError> {
        let source = blocking(move || {
            let io = |source| StoreError::Io { path: std::env::temp_dir(), source };
            let mut file = tempfile::NamedTempFile::new().map_err(io)?;
            file.write_all(&bytes).map_err(io)?;
            Ok(file)
        })
        .await?;
        let options = AddOptions { chunker: Chunker::UNIXFS_2025, pin: false, ..AddOptions::default() };
        let (report, hold) = self.add_held(source.path(), options, |_| {}).await?;
        Ok(Lent { cid: report.root.cid, store: self.clone(), hold })
    }

    /// The bytes of the file `cid`, fetched first where they are not here. They do not stay.
    ///
    /// # Errors
    /// As [`Store::fetch`], and `TooLarge` when there are more than `limit`.
    pub async fn read_bytes(&self, cid: Cid, limit: u64, providers: Vec<PeerId>) -> Result<Vec<u8>, StoreError> {
        let options = FetchOptions { providers, pin: false, ..FetchOptions::default() };
        let bytes = self.fetch_bytes(cid, limit, options).await;
        if let Err(error) = self.free_unpinned(cid).await {
            tracing::warn!(%cid, %error, "a job's input was not freed; garbage collection will");
        }
        bytes
    }

    async fn fetch_bytes(&self, cid: Cid, limit: u64, options: FetchOptions) -> Result<Vec<u8>, StoreError> {
        // The root block says how long the file is, so a file that is too long is not fetched.
        let opened = self.fetch_headers(&cid, options.clone()).await?;
        let found = opened.bytes();
        if found > limit {
            return Err(StoreError::TooLarge { what: format!("the input {cid}"), found, limit });
        }
        self.fetch(&cid, options, |_| {}).await?;
        let files = self.open(&cid, None).await?;
        blocking(move || {
            let file = files.files().first().map(|info| (info.name.clone(), info.bytes));
            let Some((name, bytes)) = file else { return Ok(Vec::new()) };
            let too_large = |_| StoreError::TooLarge { what: format!("the input {cid}"), found: bytes, limit };
            let mut buffer = vec![0; usize::try_from(bytes).map_err(too_large)?];
            let damaged = |error: std::io::Error| StoreError::Corrupt { cid, found: error.to_string() };
            files.read_at(&name, 0, &mut buffer).map_err(damaged)?;
            Ok(buffer)
        })
        .await
    }
}
