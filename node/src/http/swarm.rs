//! Going into another swarm. The membership itself, and the key with it, never travels over the interface: it stands in the
//! data directory, and the daemon is told to look.

use accel_protocol::{ErrorCode, JobError};
use axum::Json;
use axum::extract::State;

use super::{Refusal, Shared};

/// Answers which start of the node will be in the swarm that the data directory names.
pub async fn reload(State(shared): State<Shared>) -> Result<Json<u64>, Refusal> {
    let reload = shared.reload.clone();
    let asked = tokio::task::spawn_blocking(move || reload.ask()).await;
    let asked = asked.map_err(|error| JobError::new(ErrorCode::Internal, format!("the membership: {error}")))?;
    let start = asked.map_err(|error| JobError::new(ErrorCode::Internal, error))?;
    let own = "the change is kept, but a command has brought up the daemon that runs, which stays in its swarm until that \
               command has ended";
    Ok(Json(start.ok_or_else(|| JobError::new(ErrorCode::ShuttingDown, own))?))
}
