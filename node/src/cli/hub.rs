//! Models from the Hugging Face hub.

use accel_protocol::JobError;

use super::CliError;
use super::output::{Output, bytes};
use crate::api::{Api, HubBody};
use crate::hub::{HubAccess, HubModel};

/// Downloads, imports and names a model. Whoever types knows the token, which the daemon may not.
pub(super) async fn pull(api: &Api, model: &str, output: &Output) -> Result<(), CliError> {
    let model: HubModel = model.parse().map_err(JobError::from)?;
    let access = HubAccess::of_environment().map_err(JobError::from)?;
    let bar = output.bytes_bar("fetching");
    let body = HubBody { model: model.to_string(), access };
    let pulled = api.pull_from_hub(&body, |now| bar.show(now.done_bytes, now.total_bytes)).await?;
    drop(bar);
    output.value(&pulled, |pulled| {
        format!(
            "{}: {}, {} downloaded in {:.2} s, named {}",
            pulled.cid,
            bytes(pulled.bytes),
            bytes(pulled.downloaded_bytes),
            pulled.seconds,
            pulled.name,
        )
    })
}
