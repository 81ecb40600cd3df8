//! A daemon to speak to: the one that runs, or one of the command's own.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::CliError;
use super::daemon::any_port;
use super::interrupts::Interrupts;
use super::output::Output;
use crate::api::{Api, ApiError};
use crate::config::{Config, Overrides};
use crate::daemon::{Daemon, DaemonError};
use crate::data_dir::{self, DataDirError};
use crate::membership::{self, Invite};
use crate::peers::unix_ms;

/// How long a daemon that holds the lock may take to answer or to go.
const LOCKED: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Session {
    pub api: Api,
    own: Option<Daemon>,
    /// Each command on a data directory holds a share of this file's lock, so that the one that brought the daemon up
    /// does not take it away from the others. None where nobody else can come.
    commands: Option<File>,
    /// Where a daemon that leaves nothing behind keeps its things.
    _throw_away: Option<TempDir>,
}

impl Session {
    pub(super) async fn open(overrides: &Overrides) -> Result<Self, CliError> {
        let mut config = Config::load(overrides)?;
        // The command's own daemon takes whatever ports are free.
        config.api.listen.set_port(0);
        for address in &mut config.swarm.listen {
            *address = any_port(address);
        }
        let commands = Some(share(&config.data_dir).await?);
        let begun = Instant::now();
        loop {
            match Api::of(&config.data_dir).await {
                Ok(api) => return Ok(Self { api, own: None, commands, _throw_away: None }),
                Err(ApiError::NoDaemon { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            match Daemon::start(&config).await {
                Ok(own) => return Ok(Self { commands, ..Self::with_own(own) }),
                // A daemon that starts or stops holds the lock and does not answer; it soon does, or is gone.
                Err(DaemonError::Locked { .. }) if begun.elapsed() < LOCKED => tokio::time::sleep(LOOK_AGAIN).await,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A daemon that listens nowhere, runs nothing, and leaves nothing behind; in the private swarm of `invite`, if there is
    /// one.
    pub(super) async fn throw_away(invite: Option<&Invite>) -> Result<Self, CliError> {
        let directory = tempfile::tempdir().map_err(|source| CliError::File { path: std::env::temp_dir(), source })?;
        let mut config = Config { data_dir: directory.path().to_owned(), ..Config::default() };
        config.api.listen.set_port(0);
        config.swarm.listen.clear();
        config.swarm.mdns = false;
        config.jobs.serve = false;
        if let Some(invite) = invite {
            membership::join(directory.path(), invite, unix_ms() / 1000)?;
        }
        let own = Daemon::start(&config).await?;
        Ok(Self { _throw_away: Some(directory), ..Self::with_own(own) })
    }

    fn with_own(own: Daemon) -> Self {
        Self { api: Api::new(own.access().clone()), own: Some(own), commands: None, _throw_away: None }
    }

    /// Stops the command's own daemon when no other command needs it, in order unless there is no patience for that.
    pub(super) async fn close(self, interrupts: &mut Interrupts, output: &Output) {
        let Some(own) = self.own else { return };
        let stop = async {
            if let Some(commands) = self.commands {
                // Given back by the system when this process has gone, for only then is the repository free for the
                // daemon of a command that comes meanwhile: until then that command waits.
                std::mem::forget(alone(commands, output).await);
            }
            own.stop().await;
        };
        tokio::select! {
            () = stop => {}
            () = interrupts.next() => {}
        }
    }
}

async fn share(data_dir: &Path) -> Result<File, CliError> {
    let data_dir = data_dir.to_owned();
    let share = tokio::task::spawn_blocking(move || {
        let (path, file) = data_dir::open_lock(&data_dir, "commands.lock")?;
        file.lock_shared().map_err(data_dir::at(&path))?;
        Ok::<_, DataDirError>(file)
    });
    let broke = |error: tokio::task::JoinError| CliError::Failed {
        doing: "wait for other commands".to_owned(),
        message: error.to_string(),
    };
    Ok(share.await.map_err(broke)??)
}

/// Waits until this is the only command; none when the system cannot tell.
async fn alone(commands: File, output: &Output) -> Option<File> {
    if commands.try_lock().is_err() {
        output.note("waiting for other commands, which use the daemon that this one brought up");
    }
    tokio::task::spawn_blocking(move || commands.lock().ok().map(|()| commands)).await.ok().flatten()
}
