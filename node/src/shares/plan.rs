//! Who does what of a model, and how fast that would be.
//!
//! A plan is worked out from what is known before anything is fetched: where the tensors lie, what each machine offers,
//! and how far away it is. Every way that is possible gets a prediction from the same terms, and the fastest is taken;
//! of equals the one with fewer machines, so that a model that one machine can run is spread only where that is faster.

mod costs;
mod deal;

use std::collections::BTreeSet;

use accel_models::share::Share;
use libp2p::PeerId;

pub use costs::{AWAKENING, Costs, LAYER, LayerCosts, REACHED};
pub use deal::deal_again;
use deal::{deal, deal_layers};

/// How much faster a model must be on more machines: a prediction may be off by so much.
const WORTH: f64 = 1.2;
/// How much faster a model must be where fewer machines have the experts of a layer.
const NARROW: f64 = 1.05;
/// Tokens of the prompt that the time to the first token is told for.
pub const PROMPT_TOKENS: usize = 128;

/// A machine that could do something.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// The peer; none for this node.
    pub peer: Option<PeerId>,
    /// Peers of one number share one machine's processors.
    pub host: u64,
    /// Processors of that machine.
    pub cores: usize,
    /// Threads that compute there.
    pub threads: usize,
    /// Bytes of memory that weights may still take.
    pub memory_bytes: u64,
    /// Bytes of disk that blocks may still take.
    pub disk_bytes: u64,
    /// Bytes of weights that it goes through in a second for one token.
    pub bytes_per_second: f64,
    /// Floating-point operations in a second for many tokens.
    pub flops: f64,
    /// Seconds that rows of one token take there and back.
    pub round_trip: f64,
    /// Bytes of rows in a second beside that.
    pub bandwidth: f64,
    /// The parts that are on its disk.
    pub on_disk: Share,
    /// Whether the whole model is on its disk.
    pub whole: bool,
}

impl Machine {
    /// Whether layers and experts are all on its disk.
    pub fn has(&self, share: &Share) -> bool {
        let (layers, experts) = (&self.on_disk.layers, &self.on_disk.experts);
        self.whole || share.layers.is_subset(layers) && share.experts.is_subset(experts)
    }
}

/// What somebody wants, whatever is fastest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Whatever is fastest.
    #[default]
    Auto,
    /// On one machine.
    Solo,
    /// Experts on several machines.
    Experts,
    /// Layers on several machines, one after the other.
    Stages,
    /// Layers on several machines, and experts on others than the layers that they belong to.
    Both,
}

/// A wish for a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Which way.
    pub split: Split,
    /// Who is asked; everybody where nobody is named.
    pub peers: Vec<PeerId>,
    /// Whether all experts are to be elsewhere.
    pub experts_elsewhere: bool,
}

/// Who has what.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// The peer; none for this node.
    pub peer: Option<PeerId>,
    /// What it has.
    pub share: Share,
    /// Bytes of it.
    pub bytes: u64,
    /// Bytes that it would fetch, as far as is known.
    pub fetch_bytes: u64,
}

/// What a prediction is made of, in seconds for one token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Terms {
    /// Computing here, alone.
    pub here: f64,
    /// Waiting for others to compute, beyond what is computed here meanwhile.
    pub elsewhere: f64,
    /// The ways there and back, with what it takes to get going again.
    pub round_trips: f64,
    /// How many of those.
    pub trips: f64,
    /// Bytes that travel.
    pub bytes: f64,
}

impl Terms {
    fn seconds(&self) -> f64 {
        self.here + self.elsewhere + self.round_trips
    }
}

/// One way to do it.
#[derive(Clone, Debug, PartialEq)]
pub struct Way {
    /// What kind.
    pub split: Split,
    /// Who has what; the first is this node.
    pub members: Vec<Member>,
    /// Why it cannot be done, or how fast it would be.
    pub outcome: Result<Prediction, String>,
}

impl Way {
    /// How many experts more than one machine has.
    pub fn replicas(&self) -> usize {
        let held: usize = self.members.iter().map(|member| member.share.experts.len()).sum();
        let all: BTreeSet<_> = self.members.iter().flat_map(|member| &member.share.experts).collect();
        held - all.len()
    }
}

/// How fast.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Tokens a second of one answer.
    pub tokens_per_second: f64,
    /// Seconds to the first token after [`PROMPT_TOKENS`].
    pub first_token: f64,
    /// What it is made of.
    pub terms: Terms,
}

/// All ways, and the one to take.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The ways.
    pub ways: Vec<Way>,
    /// The one to take; none where the model cannot be run at all.
    pub chosen: Option<usize>,
    /// Why that one.
    pub why: String,
}

impl Plan {
    /// The way to take.
    pub fn way(&self) -> Option<&Way> {
        self.ways.get(self.chosen?)
    }
}

/// Plans a model for these machines, of which the first is this node.
pub fn plan(costs: &Costs, machines: &[Machine], wish: &Wish) -> Plan {
    let Some((own, others)) = machines.split_first() else {
        return Plan { ways: Vec::new(), chosen: None, why: "there is no machine".into() };
    };
    let mut ways = vec![solo(costs, own)];
    let mut others: Vec<&Machine> = others.iter().collect();
    if !wish.peers.is_empty() {
        others.retain(|machine| machine.peer.is_some_and(|peer| wish.peers.contains(&peer)));
    }
    others.sort_by(|a, b| {
        (a.round_trip, b.bytes_per_second)
            .partial_cmp(&(b.round_trip, a.bytes_per_second))
            .unwrap_or(std::cmp::Ordering::Equal)
    });
    let fewest = if wish.peers.is_empty() { 1 } else { others.len().max(1) };
    for count in fewest..=others.len() {
        let others = &others[..count];
        let wants = |split: Split| wish.split == Split::Auto || wish.split == split;
        if costs.has_experts() && wants(Split::Experts) {
            if !wish.experts_elsewhere {
                ways.push(experts(costs, own, others, true));
            }
            ways.push(experts(costs, own, others, false));
        }
        if costs.layers.len() > 1 && wants(Split::Stages) {
            ways.push(stages(costs, own, others, false));
        }
        if costs.layers.len() > 1 && costs.has_experts() && wants(Split::Both) {
            ways.push(stages(costs, own, others, true));
        }
    }
    choose(ways, wish)
}

fn choose(ways: Vec<Way>, wish: &Wish) -> Plan {
    let wanted = |way: &Way| wish.split == Split::Auto || way.split == wish.split;
    let mut chosen: Option<usize> = None;
    for (number, way) in ways.iter().enumerate() {
        let better = chosen.is_none_or(|chosen| speed(way) > WORTH * speed(&ways[chosen]));
        if way.outcome.is_ok() && wanted(way) && better {
            chosen = Some(number);
        }
    }
    let solo = &ways[0];
    let why = match (chosen.map(|chosen| &ways[chosen]), &solo.outcome) {
        (None, _) => {
            let words = ways.iter().filter(|way| wanted(way)).find_map(|way| way.outcome.as_ref().err());
            words.cloned().unwrap_or_else(|| "nobody can be asked, and the model is not to run here alone".into())
        }
        (Some(way), Ok(alone)) if way.split == Split::Solo && wish.split == Split::Auto => match best_spread(&ways) {
            Some(spread) => format!(
                "one machine is enough, and spread over {} it would give {:.1} tokens/s in place of {:.1}",
                spread.1, spread.0, alone.tokens_per_second
            ),
            None => "one machine is enough, and there is no other to share with".into(),
        },
        (Some(way), _) if way.split == Split::Solo => "it was asked for".into(),
        (Some(way), alone) => {
            let instead = match alone {
                Ok(alone) => format!("{:.1} tokens/s alone", alone.tokens_per_second),
                Err(reason) => reason.clone(),
            };
            format!("{:.1} tokens/s on {} machines; {instead}", speed(way), way.members.len())
        }
    };
    Plan { ways, chosen, why }
}

/// The fastest way over several machines, with their number.
fn best_spread(ways: &[Way]) -> Option<(f64, usize)> {
    let spread = ways.iter().filter(|way| way.split != Split::Solo);
    let speeds = spread.filter_map(|way| Some((way.outcome.as_ref().ok()?.tokens_per_second, way.members.len())));
    speeds.max_by(|a, b| a.0.total_cmp(&b.0))
}

fn solo(costs: &Costs, own: &Machine) -> Way {
    let share = everything(costs);
    let fetch_bytes = if own.whole { 0 } else { costs.bytes };
    let member = Member { peer: None, share, bytes: costs.bytes, fetch_bytes };
    let members = vec![member];
    let outcome = fits(costs.bytes, own).map(|()| costs.prediction(&[own], &members));
    Way { split: Split::Solo, members, outcome }
}

fn everything(costs: &Costs) -> Share {
    Share { ends: true, layers: (0..costs.layers.len()).collect(), experts: costs.places().collect() }
}

fn fits(bytes: u64, machine: &Machine) -> Result<(), String> {
    if bytes > machine.memory_bytes {
        let (need, have) = (bytes as f64 / 1e9, machine.memory_bytes as f64 / 1e9);
        return Err(format!("{need:.2} GB do not fit the {have:.2} GB of memory of {}", name(machine)));
    }
    Ok(())
}

fn name(machine: &Machine) -> String {
    machine.peer.map_or_else(|| "this node".into(), |peer| peer.to_string())
}

/// Experts on this node and others, or on others alone.
fn experts(costs: &Costs, own: &Machine, others: &[&Machine], here: bool) -> Way {
    let dense = Share { experts: BTreeSet::new(), ..everything(costs) };
    let mut own_left = own.clone();
    own_left.memory_bytes = own.memory_bytes.saturating_sub(costs.dense());
    let holders: Vec<&Machine> =
        if here { std::iter::once(&own_left).chain(others.iter().copied()).collect() } else { others.to_vec() };
    let machines: Vec<&Machine> = std::iter::once(own).chain(others.iter().copied()).collect();
    best(holders.len(), |width| {
        let dealt = fits(costs.dense(), own).and_then(|()| deal(costs, &holders, width));
        let mut shares: Vec<Share> = match &dealt {
            Ok(shares) => shares.clone(),
            Err(_) => vec![Share::default(); holders.len()],
        };
        let mut of_own = if here { shares.remove(0) } else { Share::default() };
        (of_own.ends, of_own.layers) = (dense.ends, dense.layers.clone());
        let shares = std::iter::once(of_own).chain(shares);
        let members: Vec<Member> =
            machines.iter().zip(shares).map(|(machine, share)| costs.member(machine, share)).collect();
        let outcome = dealt.map(|_| costs.prediction(&machines, &members));
        Way { split: Split::Experts, members, outcome }
    })
}

/// Layers on this node and others, a range on each; with their experts, or `apart` from them, dealt to all.
fn stages(costs: &Costs, own: &Machine, others: &[&Machine], apart: bool) -> Way {
    // Who is nearer changes from look to look; who has which layers does not.
    let mut others = others.to_vec();
    others.sort_by_key(|machine| machine.peer);
    let machines: Vec<&Machine> = std::iter::once(own).chain(others).collect();
    match apart {
        true => best(machines.len(), |width| staged(costs, &machines, Some(width))),
        false => staged(costs, &machines, None),
    }
}

fn staged(costs: &Costs, machines: &[&Machine], apart: Option<usize>) -> Way {
    let split = if apart.is_some() { Split::Both } else { Split::Stages };
    let dealt = deal_layers(costs, machines, apart);
    let shares = dealt.clone().unwrap_or_else(|_| vec![Share::default(); machines.len()]);
    // Who gets nothing has no part in it.
    let (machines, members): (Vec<&Machine>, Vec<Member>) = machines
        .iter()
        .zip(shares)
        .filter(|(_, share)| dealt.is_err() || *share != Share::default())
        .map(|(machine, share)| (*machine, costs.member(machine, share)))
        .unzip();
    let outcome = dealt.and_then(|_| match members.len() {
        0 | 1 => Err("the layers are too few to be split".to_owned()),
        _ => Ok(costs.prediction(&machines, &members)),
    });
    Way { split, members, outcome }
}

/// The fastest of the ways that differ in how many of so many machines have the experts of a layer. All of them work on
/// prompts best, so fewer must be worth it.
fn best(machines: usize, way: impl Fn(usize) -> Way) -> Way {
    let mut best = way(machines);
    for width in std::iter::successors(Some(1), |width| Some(2 * width)).take_while(|&width| width < machines) {
        let other = way(width);
        if speed(&other) > NARROW * speed(&best) {
            best = other;
        }
    }
    best
}

fn speed(way: &Way) -> f64 {
    way.outcome.as_ref().map_or(0.0, |prediction| prediction.tokens_per_second)
}
