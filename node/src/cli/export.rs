//! Models out of the store, as files or in a CAR file, and into it from one.

use std::fs::Permissions;
use std::io::Write;
use std::path::{Path, PathBuf};

use accel_protocol::ModelRef;
use serde::Serialize;
use tempfile::NamedTempFile;
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;

use super::CliError;
use super::models::tell;
use super::output::{Bar, Output, bytes};
use crate::api::{Api, ContentsView, Download, FilePart};

/// Where a CAR file is one by its name.
const CAR: &str = "car";

#[derive(Debug, clap::Args)]
pub(super) struct ExportArgs {
    /// CID, CID/path, ipfs://CID, a name, or NAME@PEER
    #[arg(value_parser = super::models::named)]
    pub model: String,
    /// Where to: FILE.car for a CAR file, - for one to standard output, or else the file or directory to write
    pub to: PathBuf,
    /// Write a CAR file whatever its name
    #[arg(long)]
    car: bool,
    /// Write over files that are there
    #[arg(long)]
    force: bool,
}

/// What was written.
#[derive(Debug, Serialize)]
struct Exported {
    path: PathBuf,
    files: usize,
    bytes: u64,
}

pub(super) async fn export(api: &Api, args: &ExportArgs, model: &ModelRef, output: &Output) -> Result<(), CliError> {
    let bar = output.bytes_bar("exporting");
    let ExportArgs { to, force, .. } = args;
    if to.as_os_str() == "-" {
        if output.is_json() {
            return Err(CliError::Usage("standard output holds the CAR file or JSON, not both".to_owned()));
        }
        let mut car = api.car(model).await?;
        let bytes = car.bytes;
        return copy(&mut car, &mut std::io::stdout(), to, (0, bytes), &bar).await;
    }
    let exported = if args.car || to.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(CAR)) {
        let car = api.car(model).await?;
        let bytes = car.bytes;
        save(car, to, *force, (0, bytes), &bar).await?;
        Exported { path: to.clone(), files: 1, bytes }
    } else {
        files(api, model, to, *force, &bar).await?
    };
    drop(bar);
    output.value(&exported, |exported| {
        let Exported { path, files, bytes: size } = exported;
        let files = if *files == 1 { "1 file".to_owned() } else { format!("{files} files") };
        format!("{}: {files}, {}", path.display(), bytes(*size))
    })
}

/// Writes a model's files, each under its own name.
async fn files(api: &Api, model: &ModelRef, to: &Path, force: bool, bar: &Bar) -> Result<Exported, CliError> {
    let ContentsView { is_directory, files } = api.contents(model).await?;
    let bytes = files.iter().map(|file| file.bytes).sum();
    if let Some(part) = files.iter().find(|file| file.here_bytes < file.bytes) {
        let message = format!("only {} of {} bytes of it are here; pull {model} first", part.here_bytes, part.bytes);
        return Err(CliError::Failed { doing: format!("export {}", part.name), message });
    }
    let targets: Vec<(ModelRef, PathBuf)> = match files.as_slice() {
        [FilePart { name, .. }] if !is_directory => {
            let into = to.is_dir().then(|| Path::new(name).file_name()).flatten();
            vec![(model.clone(), into.map_or_else(|| to.to_owned(), |name| to.join(name)))]
        }
        files => {
            let inside =
                |name: &str| if model.path.is_empty() { name.to_owned() } else { format!("{}/{name}", model.path) };
            let target =
                |file: &FilePart| (ModelRef { path: inside(&file.name), ..model.clone() }, to.join(&file.name));
            files.iter().map(target).collect()
        }
    };
    // Found out before anything is written, not in the middle.
    if let Some((_, there)) = targets.iter().find(|(_, target)| !force && target.symlink_metadata().is_ok()) {
        return Err(exists(there));
    }
    let mut done = 0;
    for (file, target) in &targets {
        let download = api.file(file).await?;
        let length = download.bytes;
        save(download, target, force, (done, bytes), bar).await?;
        done += length;
    }
    let path = targets.first().filter(|_| !is_directory).map_or_else(|| to.to_owned(), |(_, target)| target.clone());
    Ok(Exported { path, files: targets.len(), bytes })
}

fn exists(path: &Path) -> CliError {
    let message = "it is there already; --force writes over it".to_owned();
    CliError::Failed { doing: format!("write {}", path.display()), message }
}

/// Writes a file that is there whole or not at all.
async fn save(
    mut download: Download,
    to: &Path,
    force: bool,
    (done, total): (u64, u64),
    bar: &Bar,
) -> Result<(), CliError> {
    let failed = |source| CliError::File { path: to.to_owned(), source };
    if !force && to.symlink_metadata().is_ok() {
        return Err(exists(to));
    }
    let directory = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(directory).map_err(failed)?;
    let mut file = temporary(directory).map_err(failed)?;
    copy(&mut download, &mut file, to, (done, total), bar).await?;
    file.as_file().sync_all().map_err(failed)?;
    let kept = if force { file.persist(to) } else { file.persist_noclobber(to) };
    kept.map(drop).map_err(|error| failed(error.error))
}

/// A file with the rights that any new file has, under a name that says what it is.
fn temporary(directory: &Path) -> std::io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".accel-export-");
    #[cfg(unix)]
    builder.permissions(<Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o666));
    builder.tempfile_in(directory)
}

async fn copy(
    download: &mut Download,
    into: &mut impl Write,
    path: &Path,
    (mut done, total): (u64, u64),
    bar: &Bar,
) -> Result<(), CliError> {
    let failed = |source| CliError::File { path: path.to_owned(), source };
    while let Some(piece) = download.next().await? {
        into.write_all(&piece).map_err(failed)?;
        done += piece.len() as u64;
        bar.show(done, total);
    }
    into.flush().map_err(failed)
}

pub(super) async fn import(api: &Api, from: &Path, output: &Output) -> Result<(), CliError> {
    let bar = output.bytes_bar("importing");
    let (source, name, total): (Box<dyn AsyncRead + Send + Unpin>, _, _) = if from.as_os_str() == "-" {
        (Box::new(tokio::io::stdin()), String::new(), 0)
    } else {
        let failed = |source| CliError::File { path: from.to_owned(), source };
        let file = tokio::fs::File::open(from).await.map_err(failed)?;
        let total = file.metadata().await.map_err(failed)?.len();
        (Box::new(file), from.file_stem().unwrap_or_default().to_string_lossy().into_owned(), total)
    };
    let mut done = 0;
    let pieces = futures::StreamExt::inspect(ReaderStream::with_capacity(source, 1 << 18), move |piece| {
        done += piece.as_ref().map_or(0, |piece| piece.len() as u64);
        bar.show(done, total.max(done));
    });
    let added = api.import_car(&name, reqwest::Body::wrap_stream(pieces)).await?;
    added.iter().for_each(|added| tell(added, output));
    output.value(&added, |added| added.iter().map(|added| added.cid.as_str()).collect::<Vec<_>>().join("\n"))
}
