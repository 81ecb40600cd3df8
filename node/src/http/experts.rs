//! What models' experts were chosen for, on the loopback interface.

use accel_models::usage::LayerUsage;
use accel_protocol::{ErrorCode, JobError};
use axum::Json;
use axum::extract::{Path, State};

use super::models::parse;
use super::{Refusal, Shared};
use crate::api::{ExpertsView, LayerExpertsView};

/// Pairs of a layer that are singled out.
const PAIRS: usize = 8;
/// Fewer tokens say nothing of a pair.
const PAIR_TOKENS: u64 = 5;

pub(super) async fn experts(
    State(shared): State<Shared>,
    Path(model): Path<String>,
) -> Result<Json<ExpertsView>, Refusal> {
    let model = parse(&model)?;
    let models = shared.node.scheduler.models();
    let (ledger, of) = (models.usage().clone(), model.clone());
    // Pairs of a large model are many.
    let view = move || ledger.total(&of).map(|layers| layers.iter().map(layer).collect());
    let read = tokio::task::spawn_blocking(view).await;
    let layers: Option<Vec<_>> =
        read.map_err(|error| JobError::new(ErrorCode::Internal, format!("reading usage broke off: {error}")))?;
    // What has not run may still be a mixture; its headers tell.
    if layers.is_none() && !models.coordinator().look(&model).await?.has_experts() {
        let words = format!("{model} has no mixture of experts, so there is no use of experts to show");
        return Err(JobError::new(ErrorCode::Unsupported, words).into());
    }
    Ok(Json(ExpertsView { model: model.to_string(), layers: layers.unwrap_or_default() }))
}

fn layer(usage: &LayerUsage) -> LayerExpertsView {
    let experts = usage.experts();
    let row = |first: usize| (first + 1..experts).filter_map(|second| usage.together(first, second)).collect();
    LayerExpertsView {
        layer: usage.layer(),
        experts,
        chosen: usage.chosen(),
        tokens: usage.tokens(),
        entropy_bits: usage.entropy_bits(),
        evenness: usage.evenness(),
        routed: usage.routed().to_vec(),
        shares: (0..experts).map(|expert| usage.share(expert)).collect(),
        by_use: usage.by_use(),
        even_lift: usage.even_lift(),
        pairs: usage.top_pairs(PAIRS, PAIR_TOKENS),
        together: usage.has_pairs().then(|| (0..experts).map(row).collect()),
    }
}
