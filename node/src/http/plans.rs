//! Plans and models on several machines, on the loopback interface.

use std::sync::atomic::Ordering;

use accel_protocol::{ErrorCode, JobError};
use axum::Json;
use axum::extract::{Path, State};
use libp2p::PeerId;

use super::models::parse;
use super::{Refusal, Shared};
use crate::api::{HolderView, MemberView, PlanBody, PlanView, PredictionView, SpreadView, StageView, WayView};
use crate::shares::{Member, PROMPT_TOKENS, Prediction, Running, Way, Wish};

pub(super) async fn plan(
    State(shared): State<Shared>,
    Path(model): Path<String>,
    Json(body): Json<PlanBody>,
) -> Result<Json<PlanView>, Refusal> {
    let model = parse(&model)?;
    let peer = |text: &String| {
        let wrong = || JobError::new(ErrorCode::InvalidRequest, format!("peer: expected a peer id, found {text:?}"));
        text.parse::<PeerId>().map_err(|_| wrong())
    };
    let peers = body.peers.iter().map(peer).collect::<Result<Vec<_>, _>>()?;
    let wish = Wish { split: body.split, peers, experts_elsewhere: body.experts_elsewhere };
    let models = shared.node.scheduler.models();
    let coordinator = models.coordinator();
    let known = coordinator.look(&model).await?;
    if body.keep {
        coordinator.wish(&model, wish.clone());
        if !models.unload(&model) {
            let words = format!("{model} is at work, and will run so when it is loaded again");
            return Err(JobError::new(ErrorCode::OutOfResources, words).into());
        }
    }
    let plan = coordinator.plan(&model, &known, &wish, models.idle_bytes()).await?;
    if body.keep {
        coordinator.remember(&model, plan.clone());
    }
    Ok(Json(PlanView {
        model: model.to_string(),
        ways: plan.ways.iter().map(way).collect(),
        chosen: plan.chosen,
        why: plan.why,
    }))
}

fn way(way: &Way) -> WayView {
    let (prediction, impossible) = match &way.outcome {
        Ok(outcome) => (Some(prediction(outcome)), None),
        Err(reason) => (None, Some(reason.clone())),
    };
    let members = way.members.iter().map(member).collect();
    WayView { split: way.split, members, replicas: way.replicas(), prediction, impossible }
}

fn member(member: &Member) -> MemberView {
    MemberView {
        peer: member.peer.map(|peer| peer.to_string()),
        layers: member.share.layers.len(),
        first_layer: member.share.layers.first().copied(),
        experts: member.share.experts.len(),
        bytes: member.bytes,
        fetch_bytes: member.fetch_bytes,
    }
}

fn prediction(prediction: &Prediction) -> PredictionView {
    let terms = prediction.terms;
    PredictionView {
        tokens_per_second: prediction.tokens_per_second,
        first_token_ms: prediction.first_token * 1e3,
        prompt_tokens: PROMPT_TOKENS,
        here_ms: terms.here * 1e3,
        elsewhere_ms: terms.elsewhere * 1e3,
        round_trips_ms: terms.round_trips * 1e3,
        round_trips: terms.trips,
        bytes: terms.bytes,
    }
}

pub(super) async fn spread(State(shared): State<Shared>) -> Json<Vec<SpreadView>> {
    let running = shared.node.scheduler.models().coordinator().running();
    Json(running.iter().map(running_view).collect())
}

fn running_view(running: &Running) -> SpreadView {
    let mut view = SpreadView { model: running.model.to_string(), ..SpreadView::default() };
    if let Some(spread) = &running.spread {
        let counts = spread.counts();
        let peers = spread.remotes().into_iter().map(|(remote, places)| HolderView {
            peer: remote.peer.to_string(),
            open: remote.is_open(),
            experts: places.len(),
            transport_ms: remote.pace().transport * 1e3,
            row_ms: remote.pace().row * 1e3,
        });
        view.peers = peers.collect();
        view.experts_here = spread.here().len();
        view.borrowed = counts.borrowed.load(Ordering::Relaxed);
        view.rounds = counts.rounds.load(Ordering::Relaxed);
        view.repeats = counts.repeats.load(Ordering::Relaxed);
        view.rows = counts.rows.load(Ordering::Relaxed);
        view.bytes = counts.bytes.load(Ordering::Relaxed);
    }
    let stages = running.relays.iter().map(|relay| {
        let (range, counts, remote) = (relay.range(), relay.counts(), relay.remote());
        StageView {
            first_layer: range.start,
            layers: range.len(),
            peer: remote.as_ref().map(|remote| remote.peer.to_string()),
            here: relay.is_here(),
            passes: counts.passes.load(Ordering::Relaxed),
            bytes: counts.bytes.load(Ordering::Relaxed),
            busy_ms: counts.busy_micros.load(Ordering::Relaxed) as f64 / 1e3,
            losses: counts.losses.load(Ordering::Relaxed),
            transport_ms: remote.map_or(0.0, |remote| remote.paced().pace().transport * 1e3),
        }
    });
    view.stages = stages.collect();
    view
}
