//! What the store must know about weights files: where tensors lie, and what a root is by its looks.
//!
//! The formats themselves are read by the backends crate, on this side of an import and on the other.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use accel_backends::files::{LocalFiles, ModelFiles, file_bytes};
use accel_backends::weights::{self, TensorInfo};

use super::cut::Extent;
use super::error::StoreError;
use super::roots::RootKind;

/// Where the tensors of a file on this machine lie, or `None` when it holds no weights.
pub(super) fn extents(path: &Path) -> Result<Option<Vec<Extent>>, StoreError> {
    let files = LocalFiles::open(path).map_err(|source| StoreError::Source { path: path.to_owned(), source })?;
    let Some(name) = files.files().first().map(|file| file.name.clone()) else {
        return Ok(None);
    };
    let tensors = weights::tensor_ranges(&files, &name).map_err(|error| StoreError::Weights {
        file: path.display().to_string(),
        found: format!("{error}; add it with fixed chunks to store it as it is"),
    })?;
    Ok(tensors.map(|list| list.iter().map(|tensor| Extent { offset: tensor.offset, bytes: tensor.bytes }).collect()))
}

/// The tensors of one file of a stored model, or `None` when it holds no weights.
pub(super) fn tensors(files: &dyn ModelFiles, file: &str) -> Result<Option<Vec<TensorInfo>>, StoreError> {
    weights::tensor_ranges(files, file)
        .map_err(|error| StoreError::Weights { file: file.to_owned(), found: error.to_string() })
}

/// The files of a stored model that must be here whole before their tensors are known, each with all its bytes.
pub(super) fn scattered(files: &dyn ModelFiles) -> HashMap<String, Vec<Range<u64>>> {
    let whole = |name: &str| Some((name.to_owned(), std::iter::once(0..file_bytes(files, name)?).collect()));
    weights::scattered(files).into_iter().filter_map(whole).collect()
}

/// Kind of a file that begins with `magic`.
pub(super) fn file_kind(magic: &[u8]) -> RootKind {
    if magic.starts_with(b"GGUF") { RootKind::Gguf } else { RootKind::File }
}

/// Kind of a directory with these names.
pub(super) fn directory_kind<'a>(mut names: impl Iterator<Item = &'a str>) -> RootKind {
    match names.any(|name| ["config.json", "model_index.json"].contains(&name) || name.ends_with(".safetensors")) {
        true => RootKind::HuggingFace,
        false => RootKind::Directory,
    }
}
