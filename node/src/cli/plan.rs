//! How a model would run, and on which machines.

use super::CliError;
use super::models::find;
use super::output::{Output, bytes, table};
use crate::api::{Api, MemberView, PlanBody, PlanView, Split, WayView};

/// What can be asked of a plan.
#[derive(Debug, clap::Args)]
pub(super) struct PlanArgs {
    /// CID, ipfs://CID, or a name
    #[arg(value_parser = super::models::named)]
    model: String,
    /// Only this way to run it
    #[arg(long, value_enum, default_value = "auto")]
    split: Split,
    /// A peer that is to take part; may be given several times [default: all that offer to]
    #[arg(long, value_name = "PEER")]
    peer: Vec<String>,
    /// Have no experts on this node
    #[arg(long)]
    experts_elsewhere: bool,
    /// Run the model so from now on, until the node stops
    #[arg(long)]
    keep: bool,
}

pub(super) async fn plan(api: &Api, args: PlanArgs, output: &Output) -> Result<(), CliError> {
    let PlanArgs { model, split, peer, experts_elsewhere, keep } = args;
    let body = PlanBody { split, peers: peer, experts_elsewhere, keep };
    let plan = api.plan(&find(api, &model).await?, &body).await?;
    output.value(&plan, text)
}

fn text(plan: &PlanView) -> String {
    let rows = plan.ways.iter().enumerate().map(|(number, way)| {
        let mark = if plan.chosen == Some(number) { "->" } else { "" };
        let mut row = vec![mark.to_owned(), name(way), way.members.len().to_string()];
        match (&way.prediction, &way.impossible) {
            (Some(fast), _) => row.extend([
                format!("{:.1}", fast.tokens_per_second),
                format!("{:.0} ms", fast.first_token_ms),
                format!("{:.1} ms", fast.here_ms),
                format!("{:.1} ms", fast.elsewhere_ms),
                format!("{:.1} ms in {:.0}", fast.round_trips_ms, fast.round_trips),
                bytes(fast.bytes as u64),
                String::new(),
            ]),
            (None, reason) => {
                row.extend(std::iter::repeat_n("-".to_owned(), 6));
                row.push(reason.clone().unwrap_or_default());
            }
        }
        row
    });
    let heads =
        ["", "WAY", "NODES", "TOKENS/S", "FIRST TOKEN", "HERE", "WAITING", "ROUND TRIPS", "TRAVELS", "NOT POSSIBLE"];
    let mut text = format!("{}\n\n{}", plan.why, table(&heads, rows));
    if let Some(way) = plan.chosen.and_then(|chosen| plan.ways.get(chosen)) {
        let rows = way.members.iter().map(|member| {
            vec![
                member.peer.clone().unwrap_or_else(|| "this node".to_owned()),
                layers(member),
                member.experts.to_string(),
                bytes(member.bytes),
                bytes(member.fetch_bytes),
            ]
        });
        text.push_str(&format!("\n\n{}", table(&["NODE", "LAYERS", "EXPERTS", "MEMORY", "TO FETCH"], rows)));
        if way.replicas > 0 {
            text.push_str(&format!("\n\nThe {} experts that are used most have a second place.", way.replicas));
        }
    }
    if let Some(fast) = plan.chosen.and_then(|chosen| plan.ways.get(chosen)?.prediction) {
        text.push_str(&format!("\n\nThe time to the first token is for a prompt of {} tokens.", fast.prompt_tokens));
    }
    text
}

fn name(way: &WayView) -> String {
    let here = way.members.first().is_some_and(|own| own.experts > 0);
    match way.split {
        Split::Solo | Split::Auto => "alone",
        Split::Experts if here => "experts here and there",
        Split::Experts => "experts elsewhere",
        Split::Stages => "layers on each",
        Split::Both => "layers on each, experts on all",
    }
    .to_owned()
}

fn layers(member: &MemberView) -> String {
    match member.first_layer {
        None => "-".to_owned(),
        Some(first) => format!("{first} to {}", first + member.layers.saturating_sub(1)),
    }
}
