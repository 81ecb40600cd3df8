//! A daemon in the foreground: `accel-node`, and the processes of the demo.

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use tokio::io::AsyncReadExt;
use tracing_subscriber::EnvFilter;

use super::CliError;
use super::interrupts::Interrupts;
use super::membership::Token;
use super::output::Output;
use crate::config::{Config, LogConfig, LogFormat, Overrides};
use crate::daemon::Daemon;
use crate::membership;
use crate::peers::unix_ms;

/// How a daemon runs in the foreground.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Foreground {
    /// Go into the private swarm of this invite, now and at every later start; @FILE reads it from a file, - from standard
    /// input
    #[arg(long, env = "ACCEL_JOIN", hide_env_values = true, value_name = "TOKEN")]
    join: Option<Token>,
    /// Stop when standard input closes
    #[arg(long, hide = true)]
    pub attached: bool,
}

/// Runs a daemon until SIGTERM or SIGINT; a second signal ends it at once.
///
/// # Errors
/// When the configuration is wrong, the daemon does not start, or a part of it breaks down.
pub(super) async fn run_daemon(
    overrides: &Overrides,
    foreground: Foreground,
    mut interrupts: Interrupts,
    output: &Output,
) -> Result<(), CliError> {
    let config = Config::load(overrides)?;
    start_log(&config.log)?;
    if let Some(token) = &foreground.join {
        membership::join(&config.data_dir, &token.read()?, unix_ms() / 1000)?;
    }
    let mut daemon = Daemon::start(&config).await?;
    let mut changes = daemon.changes();
    let ready = daemon.ready().await?;
    output.value(&ready, |ready| ready.addresses.join("\n"))?;
    let mut closed_input = std::pin::pin!(closed_input());
    let broke_down = loop {
        tokio::select! {
            () = &mut closed_input, if foreground.attached => break false,
            () = interrupts.next() => break false,
            () = daemon.broke_down() => break true,
            Ok(()) = changes.changed() => {}
        }
        daemon = tokio::select! {
            restarted = daemon.restart(&config) => restarted?,
            () = interrupts.next() => return Err(CliError::Interrupted),
        };
    };
    tokio::select! {
        () = daemon.stop() => {}
        () = interrupts.next() => return Err(CliError::Interrupted),
    }
    if broke_down {
        let message = "a part of it broke down; the log says which".to_owned();
        return Err(CliError::Failed { doing: "run the daemon".to_owned(), message });
    }
    Ok(())
}

/// Ends when standard input does.
async fn closed_input() {
    let mut buffer = [0; 64];
    while tokio::io::stdin().read(&mut buffer).await.is_ok_and(|count| count > 0) {}
}

fn start_log(config: &LogConfig) -> Result<(), CliError> {
    let filter = EnvFilter::try_new(&config.filter)
        .map_err(|error| CliError::Usage(format!("log.filter {:?}: {error}", config.filter)))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match config.format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().try_init(),
    };
    started.map_err(|error| CliError::Failed { doing: "start the log".to_owned(), message: error.to_string() })
}

/// The address with whatever port is free.
pub(super) fn any_port(address: &Multiaddr) -> Multiaddr {
    address
        .iter()
        .map(|part| match part {
            Protocol::Tcp(_) => Protocol::Tcp(0),
            Protocol::Udp(_) => Protocol::Udp(0),
            other => other,
        })
        .collect()
}
