//! The files of the data directory: made for their owner, locked, and replaced whole.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A data directory, or a file in it, that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("data directory {}: {source}", path.display())]
pub struct DataDirError {
    /// The directory or the file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: std::io::Error,
}

/// Says of an error of the system which path it is about.
pub fn at(path: &Path) -> impl FnOnce(std::io::Error) -> DataDirError {
    move |source| DataDirError { path: path.to_owned(), source }
}

/// A file to lock in the data directory, which is made where it is missing.
///
/// # Errors
/// When the directory or the file cannot be made.
pub fn open_lock(data_dir: &Path, name: &str) -> Result<(PathBuf, File), DataDirError> {
    DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(at(data_dir))?;
    let path = data_dir.join(name);
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(at(&path))?;
    Ok((path, file))
}

/// Puts a file that only its owner can read in the place of what is at `path`. It is written beside its place, synced and
/// renamed, so that a crash never leaves half of it.
///
/// # Errors
/// When the system refuses.
pub fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    sync_directory_of(path)
}

/// Makes sure that what was renamed or removed stays so.
///
/// # Errors
/// When the system refuses.
pub fn sync_directory_of(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}
