//! The seam where the bytes of a model come from.
//!
//! A model is read by byte range, never as a whole, so that the same loader works on a directory and on verified blocks
//! of IPFS without a second copy on disk. Nothing here interprets the bytes.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Files that one model may have; the most sharded models in use have a few hundred.
pub const MODEL_FILES_MAX: usize = 4096;
/// Directories inside directories of a model: pipelines of Diffusers and Sentence Transformers have one level.
pub const DEPTH_MAX: usize = 4;

/// A file of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// Its name inside the model, with `/` between directories.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
}

/// Bytes of one file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extent {
    /// The file.
    pub file: String,
    /// Where they begin.
    pub offset: u64,
    /// How many.
    pub bytes: u64,
}

/// The files of one model, readable at any offset from any thread.
pub trait ModelFiles: Send + Sync {
    /// The files, in a fixed order.
    fn files(&self) -> &[FileInfo];

    /// Fills `buffer` with the bytes of `file` from `offset` on.
    ///
    /// # Errors
    ///
    /// When the file is not there, ends before the buffer is full, or cannot be read.
    fn read_at(&self, file: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// The length of a file, if the model has it.
pub fn file_bytes(files: &dyn ModelFiles, name: &str) -> Option<u64> {
    files.files().iter().find(|file| file.name == name).map(|file| file.bytes)
}

/// Reads a small file whole; `None` if the model does not have it.
///
/// # Errors
///
/// When the file is longer than `limit` bytes, or cannot be read.
pub fn read_small(files: &dyn ModelFiles, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let Some(bytes) = file_bytes(files, name) else { return Ok(None) };
    if bytes > limit {
        let message = format!("{name}: expected at most {limit} bytes, found {bytes}");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    let length = usize::try_from(bytes).map_err(io::Error::other)?;
    let mut buffer = vec![0; length];
    files.read_at(name, 0, &mut buffer)?;
    Ok(Some(buffer))
}

/// The files of one directory of a model, as if it had no others: pipelines of Diffusers have a directory for each part.
pub struct PartFiles {
    whole: Arc<dyn ModelFiles>,
    prefix: String,
    files: Vec<FileInfo>,
}

impl PartFiles {
    /// The files of the directory of that name; none where there is no such directory.
    pub fn new(whole: Arc<dyn ModelFiles>, directory: &str) -> Self {
        let prefix = format!("{directory}/");
        let inside = |file: &FileInfo| {
            file.name.strip_prefix(&prefix).map(|name| FileInfo { name: name.to_owned(), bytes: file.bytes })
        };
        let files = whole.files().iter().filter_map(inside).collect();
        Self { whole, prefix, files }
    }
}

impl ModelFiles for PartFiles {
    fn files(&self) -> &[FileInfo] {
        &self.files
    }

    fn read_at(&self, file: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.whole.read_at(&format!("{}{file}", self.prefix), offset, buffer)
    }
}

/// A model on the local disk: one file, or the files of a directory.
#[derive(Debug)]
pub struct LocalFiles {
    files: Vec<FileInfo>,
    handles: Vec<File>,
}

impl LocalFiles {
    /// Opens the file, or every file of the directory and of those inside it, [`DEPTH_MAX`] deep. Symbolic links are
    /// followed.
    ///
    /// # Errors
    ///
    /// When the path cannot be opened or has more than [`MODEL_FILES_MAX`] files.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let mut paths = Vec::new();
        if path.is_dir() {
            paths_inside(path, "", DEPTH_MAX, &mut paths)?;
        } else {
            let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| not_utf8(path))?;
            paths.push((name.to_owned(), path.to_owned()));
        }
        paths.sort();
        let mut opened = Self { files: Vec::new(), handles: Vec::new() };
        for (name, path) in paths {
            let handle = File::open(&path).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
            opened.files.push(FileInfo { name, bytes: handle.metadata()?.len() });
            opened.handles.push(handle);
        }
        Ok(opened)
    }
}

impl ModelFiles for LocalFiles {
    fn files(&self) -> &[FileInfo] {
        &self.files
    }

    fn read_at(&self, file: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let place = self
            .files
            .iter()
            .position(|info| info.name == file)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{file}: no such file in the model")))?;
        read_exact_at(&self.handles[place], offset, buffer)
    }
}

/// Adds the files of a directory, each with its name inside the model.
fn paths_inside(directory: &Path, prefix: &str, depth: usize, paths: &mut Vec<(String, PathBuf)>) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| not_utf8(&path))?;
        let name = format!("{prefix}{name}");
        if path.is_dir() {
            if depth > 0 {
                paths_inside(&path, &format!("{name}/"), depth - 1, paths)?;
            }
        } else if path.is_file() {
            if paths.len() == MODEL_FILES_MAX {
                let message = format!("{}: expected at most {MODEL_FILES_MAX} files", directory.display());
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
            paths.push((name, path));
        }
    }
    Ok(())
}

fn not_utf8(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{}: the name is not UTF-8", path.display()))
}

#[cfg(unix)]
fn read_exact_at(handle: &File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(handle, buffer, offset)
}

#[cfg(windows)]
fn read_exact_at(handle: &File, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        let read = std::os::windows::fs::FileExt::seek_read(handle, buffer, offset)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        offset += read as u64;
        buffer = &mut buffer[read..];
    }
    Ok(())
}
