//! One file of a hub onto the disk, from where it was left.
//!
//! What has come so far lies beside the file under another name, so that a file that is there is whole. A commit's files
//! never change, so bytes of an earlier try are bytes of the same file; the hash says so in the end.

use std::io::Read;
use std::path::{Path, PathBuf};

use futures::StreamExt;
use reqwest::StatusCode;
use reqwest::header::CONTENT_RANGE;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncWriteExt, BufWriter};

use super::client::{Client, RemoteFile, Repository};
use super::error::HubError;

/// Tries in a row that bring nothing.
const TRIES: usize = 3;
/// Bytes written at once.
const WRITE_BYTES: usize = 1 << 20;

/// Bytes of a file that are here already.
pub(super) fn here(directory: &Path, name: &str, file: &RemoteFile) -> u64 {
    let bytes = |path: PathBuf| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    bytes(directory.join(name)).max(bytes(partial(directory, name))).min(file.bytes)
}

fn partial(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.partial"))
}

/// Downloads a file, unless it is here, and tells each number of bytes that comes. Dropping the future keeps what came.
pub(super) async fn download(
    client: &Client,
    repository: &Repository,
    (name, file): (&str, &RemoteFile),
    directory: &Path,
    mut came: impl FnMut(u64),
) -> Result<(), HubError> {
    let (whole, part) = (directory.join(name), partial(directory, name));
    if std::fs::metadata(&whole).is_ok_and(|metadata| metadata.len() == file.bytes) {
        return Ok(());
    }
    let failed = |path: &Path| {
        let (path, needed) = (path.to_owned(), file.bytes);
        move |source| HubError::writing(path, needed, source)
    };
    if let Some(parent) = whole.parent() {
        std::fs::create_dir_all(parent).map_err(failed(parent))?;
    }
    let mut open = tokio::fs::OpenOptions::new();
    let mut tries = 0;
    loop {
        let out = open.create(true).append(true).open(&part).await.map_err(failed(&part))?;
        let mut offset = out.metadata().await.map_err(failed(&part))?.len();
        if offset > file.bytes {
            out.set_len(0).await.map_err(failed(&part))?;
            offset = 0;
        }
        if offset == file.bytes {
            break;
        }
        let response = match client.file(&repository.commit, name, offset).await {
            Err(HubError::Unreachable { .. }) if tries + 1 < TRIES => {
                tries += 1;
                continue;
            }
            other => other?,
        };
        // A server that begins anew has not understood from where.
        let begins = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
        if offset > 0
            && (response.status() != StatusCode::PARTIAL_CONTENT
                || !begins.is_some_and(|range| range.starts_with(&format!("bytes {offset}-"))))
        {
            out.set_len(0).await.map_err(failed(&part))?;
            offset = 0;
            if response.status() == StatusCode::PARTIAL_CONTENT {
                tries += 1;
                if tries == TRIES {
                    let (endpoint, found) = (client.endpoint().to_owned(), format!("another part of {name}"));
                    return Err(HubError::Refused { endpoint, found, later: false });
                }
                continue;
            }
        }
        let mut out = BufWriter::with_capacity(WRITE_BYTES, out);
        let mut pieces = response.bytes_stream();
        let (begun, mut broken) = (offset, None);
        while offset < file.bytes {
            match pieces.next().await {
                Some(Ok(piece)) => {
                    let piece = &piece[..piece.len().min(usize::try_from(file.bytes - offset).unwrap_or(usize::MAX))];
                    out.write_all(piece).await.map_err(failed(&part))?;
                    offset += piece.len() as u64;
                    came(piece.len() as u64);
                }
                Some(Err(error)) => {
                    broken = Some(client.unreachable(error));
                    break;
                }
                None => break,
            }
        }
        out.flush().await.map_err(failed(&part))?;
        if offset == file.bytes {
            break;
        }
        // Connections break; as long as each brings something, another is worth it.
        tries = if offset > begun { 0 } else { tries + 1 };
        if tries == TRIES {
            let short = || HubError::Unreachable {
                endpoint: client.endpoint().to_owned(),
                found: format!("{name} ends after {offset} of {} bytes", file.bytes),
            };
            return Err(broken.unwrap_or_else(short));
        }
    }
    if let Some(expected) = &file.sha256 {
        let path = part.clone();
        let hash = tokio::task::spawn_blocking(move || sha256(&path)).await;
        let found = hash.map_err(|error| HubError::Failed(error.to_string()))?.map_err(failed(&part))?;
        if !found.eq_ignore_ascii_case(expected) {
            std::fs::remove_file(&part).map_err(failed(&part))?;
            return Err(HubError::Corrupt { file: name.to_owned(), expected: expected.clone(), found });
        }
    }
    std::fs::rename(&part, &whole).map_err(failed(&whole))
}

fn sha256(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; WRITE_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            read => hash.update(&buffer[..read]),
        }
    }
}
