//! Who does what of a model, and how fast that would be.
//!
//! A plan is worked out from what is known before anything is fetched: where the tensors lie, what each machine offers,
//! and how far away it is. Every way that is possible gets a prediction from the same terms, and the fastest is taken;
//! of equals the one with fewer machines, so that a model that one machine can run is spread only where that is faster.
//!
//! Which machine gets which expert follows from a hash of both (rendezvous hashing, Thaler and Ravishankar, 1996), within
//! each machine's part of every layer: a machine that comes or goes moves few experts.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use accel_models::share::{Anatomy, Part, Share, mixtures, stacks};
use accel_models::spec::{DecoderSpec, HeadSpec, Spec};
use libp2p::PeerId;

use super::experts::Place;

/// How much faster a model must be on more machines: a prediction may be off by so much.
const WORTH: f64 = 1.2;
/// Tokens of the prompt that the time to the first token is told for.
pub const PROMPT_TOKENS: usize = 128;
/// Draws of experts that a prediction is the mean of.
const DRAWS: usize = 64;

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
    /// Experts on its disk.
    pub on_disk: BTreeSet<Place>,
    /// Whether the whole model is on its disk.
    pub whole: bool,
}

/// What a model costs, layer by layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Costs {
    /// Bytes of everything.
    pub bytes: u64,
    /// Bytes of what is before and after the layers.
    pub ends: u64,
    /// Bytes of it that each token goes through.
    pub head: u64,
    /// The layers.
    pub layers: Vec<LayerCosts>,
    /// The first so many layers read prompts only: those of an encoder.
    pub prompt_only: usize,
    /// Numbers of a row.
    pub hidden: usize,
    /// Bytes of an element of most weights.
    pub element: f64,
}

/// What a layer costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerCosts {
    /// Bytes without experts.
    pub dense: u64,
    /// How many experts.
    pub experts: usize,
    /// How many of them a token goes through.
    pub chosen: usize,
    /// Bytes of one.
    pub expert: u64,
}

impl Costs {
    /// The costs of a model.
    pub fn of(spec: &Spec, anatomy: &Anatomy, element: f64) -> Self {
        let mixtures = mixtures(spec);
        let stacks = stacks(spec);
        let count: usize = stacks.iter().map(|(_, stack)| stack.layers.len()).sum();
        let layer = |number: usize| {
            let moe = mixtures.get(&number);
            let experts = moe.map_or(0, |moe| moe.experts);
            let of_expert = |expert| anatomy.bytes(Part::Expert(number, expert));
            LayerCosts {
                dense: anatomy.bytes(Part::Layer(number)),
                experts,
                chosen: moe.map_or(0, |moe| moe.router.chosen),
                expert: (0..experts).map(of_expert).max().unwrap_or(0),
            }
        };
        let ends = anatomy.bytes(Part::Ends) + anatomy.bytes(Part::Common);
        let untied = |spec: &DecoderSpec| matches!(&spec.head, HeadSpec::NextToken(logits) if !logits.tied);
        // Tables are looked up, and only the matrix of the head is gone through.
        let head = match spec {
            Spec::Decoder(spec) if untied(spec) => ends / 2,
            _ => ends,
        };
        let prompt_only = if stacks.len() > 1 { stacks[0].1.layers.len() } else { 0 };
        Self {
            bytes: anatomy.parts().map(|part| anatomy.bytes(part)).sum(),
            ends,
            head,
            layers: (0..count).map(layer).collect(),
            prompt_only,
            hidden: stacks.first().map_or(0, |(_, stack)| stack.hidden),
            element,
        }
    }

    fn dense(&self) -> u64 {
        self.layers.iter().map(|layer| layer.dense).sum::<u64>() + self.ends
    }

    fn experts(&self) -> u64 {
        self.layers.iter().map(|layer| layer.expert * layer.experts as u64).sum()
    }

    /// Whether there are experts to spread.
    pub fn has_experts(&self) -> bool {
        self.experts() > 0
    }

    /// All experts.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        let layers = self.layers.iter().enumerate();
        layers.flat_map(|(number, layer)| (0..layer.experts).map(move |expert| (number, expert)))
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
    /// The ways there and back.
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
    if costs.has_experts() && wish.split != Split::Solo {
        let fewest = if wish.peers.is_empty() { 1 } else { others.len() };
        for count in fewest..=others.len() {
            if !wish.experts_elsewhere {
                ways.push(experts(costs, own, &others[..count], true));
            }
            ways.push(experts(costs, own, &others[..count], false));
        }
    }
    choose(ways, wish)
}

fn choose(ways: Vec<Way>, wish: &Wish) -> Plan {
    let speed = |way: &Way| way.outcome.as_ref().map_or(0.0, |prediction| prediction.tokens_per_second);
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
    let outcome = fits(costs.bytes, own).map(|()| {
        let bytes: u64 = costs.layers[costs.prompt_only..]
            .iter()
            .map(|layer| layer.dense + layer.chosen as u64 * layer.expert)
            .sum::<u64>()
            + costs.head;
        let terms = Terms { here: bytes as f64 / own.bytes_per_second, ..Terms::default() };
        prediction(terms, costs.prompt_seconds(own, &[]))
    });
    Way { split: Split::Solo, members: vec![member], outcome }
}

fn prediction(terms: Terms, prompt: f64) -> Prediction {
    let seconds = terms.seconds();
    Prediction { tokens_per_second: 1.0 / seconds, first_token: prompt + seconds, terms }
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
    let dealt = fits(costs.dense(), own).and_then(|()| deal(costs, &holders));
    let mut shares: Vec<Share> = match &dealt {
        Ok(shares) => shares.clone(),
        Err(_) => vec![Share::default(); holders.len()],
    };
    let mut of_own = if here { shares.remove(0) } else { Share::default() };
    (of_own.ends, of_own.layers) = (dense.ends, dense.layers);
    let members: Vec<Member> = std::iter::once((own, of_own))
        .chain(others.iter().copied().zip(shares))
        .map(|(machine, share)| costs.member(machine, share))
        .collect();
    let outcome = dealt.map(|_| {
        let machines: Vec<&Machine> = std::iter::once(own).chain(others.iter().copied()).collect();
        let terms = costs.spread_terms(&machines, &members);
        prediction(
            terms,
            costs.prompt_seconds(
                own,
                &machines
                    .iter()
                    .zip(&members)
                    .skip(1)
                    .map(|(machine, member)| (*machine, &member.share))
                    .collect::<Vec<_>>(),
            ),
        )
    });
    Way { split: Split::Experts, members, outcome }
}

impl Costs {
    fn member(&self, machine: &Machine, share: Share) -> Member {
        let of_layers: u64 = share.layers.iter().filter_map(|&layer| Some(self.layers.get(layer)?.dense)).sum();
        let of_expert = |place: &Place| self.layers.get(place.0).map_or(0, |layer| layer.expert);
        let experts: u64 = share.experts.iter().map(of_expert).sum();
        let here: u64 = share.experts.intersection(&machine.on_disk).map(of_expert).sum();
        let ends = if share.ends { self.ends } else { 0 };
        let bytes = ends + of_layers + experts;
        let fetch_bytes = if machine.whole { 0 } else { bytes - here };
        Member { peer: machine.peer, share, bytes, fetch_bytes }
    }

    /// Seconds of a token, the mean over draws of which experts it goes through.
    fn spread_terms(&self, machines: &[&Machine], members: &[Member]) -> Terms {
        let own = machines[0];
        let row = 4.0 * self.hidden as f64;
        let mut terms = Terms { here: self.head as f64 / own.bytes_per_second, ..Terms::default() };
        let mut draws = Draws(0x9e37_79b9_7f4a_7c15);
        for (number, layer) in self.layers.iter().enumerate().skip(self.prompt_only) {
            terms.here += layer.dense as f64 / own.bytes_per_second;
            if layer.experts == 0 {
                continue;
            }
            let owner = |expert| members.iter().position(|member| member.share.experts.contains(&(number, expert)));
            let owners: Vec<usize> = (0..layer.experts).map(|expert| owner(expert).unwrap_or(0)).collect();
            for _ in 0..DRAWS {
                let mut rows = vec![0_usize; machines.len()];
                for expert in draws.choose(layer.chosen, layer.experts) {
                    rows[owners[expert]] += 1;
                }
                let work =
                    |machine: usize| rows[machine] as f64 * layer.expert as f64 / machines[machine].bytes_per_second;
                let asked: Vec<usize> = (1..machines.len()).filter(|&machine| rows[machine] > 0).collect();
                let way = |&machine: &usize| {
                    machines[machine].round_trip + row * (1 + rows[machine]) as f64 / machines[machine].bandwidth
                };
                let there = asked.iter().map(|machine| way(machine) + work(*machine)).fold(0.0, f64::max);
                let there = there.max(crowded(machines, &asked, &work) + asked.iter().map(way).fold(0.0, f64::max));
                let trip = asked.iter().map(way).fold(0.0, f64::max);
                let waiting = (there - work(0)).max(0.0);
                let share = 1.0 / DRAWS as f64;
                terms.here += share * work(0);
                terms.round_trips += share * trip.min(waiting);
                terms.elsewhere += share * (waiting - trip).max(0.0);
                terms.trips += share * f64::from(u8::from(!asked.is_empty()));
                terms.bytes += share * asked.iter().map(|&machine| row * (1 + rows[machine]) as f64).sum::<f64>();
            }
        }
        terms
    }

    /// Seconds that a prompt takes.
    fn prompt_seconds(&self, own: &Machine, others: &[(&Machine, &Share)]) -> f64 {
        let tokens = PROMPT_TOKENS as f64;
        let flops = |bytes: f64| 2.0 * bytes / self.element * tokens;
        let dense: u64 = self.layers.iter().map(|layer| layer.dense).sum();
        let mut seconds = flops(dense as f64) / own.flops;
        for (number, layer) in self.layers.iter().enumerate().filter(|(_, layer)| layer.experts > 0) {
            // Every expert works on its part of the tokens, but goes through its weights at least once.
            let of_experts = |experts: f64, machine: &Machine| {
                let work = flops(layer.expert as f64) * layer.chosen as f64 * experts / layer.experts as f64;
                (work / machine.flops).max(experts * layer.expert as f64 / machine.bytes_per_second)
            };
            let held = |share: &Share| share.experts.range((number, 0)..(number + 1, 0)).count() as f64;
            let elsewhere: f64 = others.iter().map(|(_, share)| held(share)).sum();
            let there = others.iter().filter(|(_, share)| held(share) > 0.0).map(|(machine, share)| {
                let rows = tokens * (1.0 + layer.chosen as f64 * held(share) / layer.experts as f64);
                let way = machine.round_trip + 4.0 * self.hidden as f64 * rows / machine.bandwidth;
                way + of_experts(held(share), machine)
            });
            let there = there.fold(0.0, f64::max);
            seconds += there.max(of_experts(layer.experts as f64 - elsewhere, own));
        }
        seconds
    }
}

/// Seconds that machines which share processors need for their work together.
fn crowded(machines: &[&Machine], asked: &[usize], work: &dyn Fn(usize) -> f64) -> f64 {
    let mut of_host: BTreeMap<u64, (f64, usize)> = BTreeMap::new();
    for &machine in asked {
        let host = of_host.entry(machines[machine].host).or_default();
        host.0 += work(machine) * machines[machine].threads as f64;
        host.1 = machines[machine].cores.max(1);
    }
    of_host.values().map(|(seconds, cores)| seconds / *cores as f64).fold(0.0, f64::max)
}

/// Deals the experts of all layers to machines, by their speed and within their memory.
fn deal(costs: &Costs, holders: &[&Machine]) -> Result<Vec<Share>, String> {
    let all = costs.experts() as f64;
    let memory: f64 = holders.iter().map(|machine| machine.memory_bytes as f64).sum();
    if memory < all || holders.is_empty() {
        return Err(format!(
            "{:.2} GB of experts do not fit the {:.2} GB of memory of {} machines",
            all / 1e9,
            memory / 1e9,
            holders.len()
        ));
    }
    // Speed says how much each gets; who has no room for so much gets what fits, and the others the rest.
    let mut parts = vec![0.0; holders.len()];
    let mut open: Vec<usize> = (0..holders.len()).collect();
    let mut left = 1.0;
    loop {
        let speed: f64 = open.iter().map(|&holder| holders[holder].bytes_per_second).sum();
        let full: Vec<usize> = open
            .iter()
            .copied()
            .filter(|&holder| {
                left * holders[holder].bytes_per_second / speed * all > holders[holder].memory_bytes as f64
            })
            .collect();
        if full.is_empty() {
            open.iter().for_each(|&holder| parts[holder] = left * holders[holder].bytes_per_second / speed);
            break;
        }
        for holder in full {
            parts[holder] = holders[holder].memory_bytes as f64 / all;
            left -= parts[holder];
            open.retain(|&other| other != holder);
        }
        if open.is_empty() {
            break;
        }
    }
    let mut shares = vec![Share::default(); holders.len()];
    let mut bytes = vec![0_u64; holders.len()];
    // What rounding gives or takes in one layer is made up for in the next.
    let mut owed = vec![0.0; holders.len()];
    for (number, layer) in costs.layers.iter().enumerate().filter(|(_, layer)| layer.experts > 0) {
        owed.iter_mut().zip(&parts).for_each(|(owed, part)| *owed += part * layer.experts as f64);
        let mut quota: Vec<usize> = owed.iter().map(|owed: &f64| owed.max(0.0) as usize).collect();
        while quota.iter().sum::<usize>() < layer.experts {
            let most = |a: &usize, b: &usize| (owed[*a] - quota[*a] as f64).total_cmp(&(owed[*b] - quota[*b] as f64));
            let Some(holder) = (0..holders.len()).max_by(most) else { break };
            quota[holder] += 1;
        }
        for expert in 0..layer.experts {
            let place = (number, expert);
            let mut ranked: Vec<usize> = (0..holders.len()).collect();
            ranked.sort_by_key(|&holder| {
                std::cmp::Reverse((holders[holder].on_disk.contains(&place), rank(holders[holder], place)))
            });
            let room = |&holder: &usize| bytes[holder] + layer.expert <= holders[holder].memory_bytes;
            let found = ranked.iter().copied().find(|holder| quota[*holder] > 0 && room(holder));
            let Some(holder) = found.or_else(|| ranked.iter().copied().find(room)) else {
                return Err(format!("expert {expert} of layer {number} fits nobody's memory"));
            };
            quota[holder] = quota[holder].saturating_sub(1);
            owed[holder] -= 1.0;
            bytes[holder] += layer.expert;
            shares[holder].insert(Part::Expert(number, expert));
        }
    }
    Ok(shares)
}

/// Deals some experts to machines that may have others already, and says which fit nobody's memory.
pub fn deal_again(costs: &Costs, machines: &[Machine], share: &Share) -> (Vec<(PeerId, Share)>, Share) {
    let mut dealt: BTreeMap<PeerId, (Share, u64)> = BTreeMap::new();
    let mut left = Share::default();
    for &place in &share.experts {
        let bytes = costs.layers.get(place.0).map_or(0, |layer| layer.expert);
        let taken = |peer: &PeerId| dealt.get(peer).map_or(0, |(_, taken)| *taken);
        let able = machines.iter().filter_map(|machine| Some((machine, machine.peer?)));
        let able = able.filter(|(machine, peer)| taken(peer) + bytes <= machine.memory_bytes);
        match able.max_by_key(|(machine, _)| (machine.on_disk.contains(&place), rank(machine, place))) {
            Some((_, peer)) => {
                let (share, taken) = dealt.entry(peer).or_default();
                share.insert(Part::Expert(place.0, place.1));
                *taken += bytes;
            }
            None => left.insert(Part::Expert(place.0, place.1)),
        }
    }
    (dealt.into_iter().map(|(peer, (share, _))| (peer, share)).collect(), left)
}

/// How much a machine is drawn to an expert: the same wherever and whenever it is asked.
fn rank(machine: &Machine, place: Place) -> u64 {
    let mut hasher = DefaultHasher::new();
    (machine.peer.map(|peer| peer.to_bytes()), place).hash(&mut hasher);
    hasher.finish()
}

/// Numbers that look drawn, and are the same each time (xorshift, Marsaglia, 2003).
struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }

    /// Some of so many, each once.
    fn choose(&mut self, chosen: usize, of: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..of).collect();
        for place in 0..chosen.min(of) {
            let other = place + self.below(of - place);
            all.swap(place, other);
        }
        all.truncate(chosen);
        all
    }
}
