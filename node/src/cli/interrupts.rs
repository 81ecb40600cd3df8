//! Ctrl-C, and the request to end that `kill` and service managers send.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::CliError;

/// The signals of this process. Once they are watched they no longer end it by themselves, so whatever takes long is
/// to be waited for by [`Interrupts::unless`].
#[derive(Debug)]
pub(super) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    pub(super) fn watch() -> Result<Self, CliError> {
        let failed =
            |error: std::io::Error| CliError::Failed { doing: "watch signals".to_owned(), message: error.to_string() };
        let interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let terminate = signal(SignalKind::terminate()).map_err(failed)?;
        Ok(Self { interrupt, terminate })
    }

    /// Waits for the next signal.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// What `work` gives, unless a signal comes first.
    pub(super) async fn unless<T>(&mut self, work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
        tokio::select! {
            result = work => result,
            () = self.next() => Err(CliError::Interrupted),
        }
    }
}
