//! What a model costs, layer by layer, and how fast machines would be that share it.

use std::collections::BTreeMap;

use accel_models::share::{Anatomy, Part, Share, mixtures, stacks};
use accel_models::spec::{DecoderSpec, HeadSpec, Spec};
use accel_models::usage::LayerUsage;

use super::super::experts::Place;
use super::{Machine, Member, PROMPT_TOKENS, Prediction, Terms};

/// Draws of experts that a prediction is the mean of.
const DRAWS: usize = 64;
/// Seconds that a layer takes beside going through its weights: norms, attention to what came before, and the beginnings of
/// operations. Measured on one processor of today's.
pub const LAYER: f64 = 1.2e-4;
/// What a model reaches of the pace that was measured with matrices of one size in the fastest of many looks. Measured there
/// too.
pub const REACHED: f64 = 0.87;
/// Seconds that rows which come from elsewhere cost beside their way: threads that wake up, and weights that others drove out
/// of the caches meanwhile. Measured there too.
pub const AWAKENING: f64 = 2.5e-4;
/// An expert is hot that is used so many times as often as if all of its layer were used evenly,
const HOT: f64 = 1.5;
/// in so many tokens at least.
const HOT_TOKENS: u64 = 256;
/// What processors that work at once for several peers reach of what each reaches alone: they wait for the same memory, and
/// for each other. Measured where two processors had three peers.
const TOGETHER: f64 = 0.67;

/// What a model costs, layer by layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Costs {
    /// Bytes of everything.
    pub bytes: u64,
    /// Bytes of what is before and after the layers.
    pub ends: u64,
    /// Bytes of it that each token goes through; more where their format takes longer than that of most weights.
    pub head: u64,
    /// The layers.
    pub layers: Vec<LayerCosts>,
    /// The first so many layers read prompts only: those of an encoder.
    pub prompt_only: usize,
    /// Sequences that are written at once for one answer.
    pub sequences: usize,
    /// Numbers of a row.
    pub hidden: usize,
    /// Bytes of an element of most weights.
    pub element: f64,
    /// Experts that are used so much more than others that two machines are to have them, the hottest first.
    pub hot: Vec<Place>,
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
            sequences: 1,
            hidden: stacks.first().map_or(0, |(_, stack)| stack.hidden),
            element,
            hot: Vec::new(),
        }
    }

    /// The same with the experts that were used most so far.
    #[must_use]
    pub fn with_usage(mut self, layers: &[LayerUsage]) -> Self {
        let known = |usage: &&LayerUsage| {
            let layer = self.layers.get(usage.layer());
            usage.tokens() >= HOT_TOKENS && layer.is_some_and(|layer| layer.experts == usage.experts())
        };
        let times = |usage: &LayerUsage, expert: usize| usage.share(expert) * usage.experts() as f64;
        let mut hot: Vec<(f64, Place)> = layers
            .iter()
            .filter(known)
            .flat_map(|usage| (0..usage.experts()).map(|expert| (times(usage, expert), (usage.layer(), expert))))
            .filter(|(times, _)| *times >= HOT)
            .collect();
        hot.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        self.hot = hot.into_iter().map(|(_, place)| place).collect();
        self
    }

    pub(super) fn dense(&self) -> u64 {
        self.layers.iter().map(|layer| layer.dense).sum::<u64>() + self.ends
    }

    pub(super) fn experts(&self) -> u64 {
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

impl Costs {
    /// Bytes of a share in memory.
    pub fn share_bytes(&self, share: &Share) -> u64 {
        let of_layers: u64 = share.layers.iter().filter_map(|&layer| Some(self.layers.get(layer)?.dense)).sum();
        let of_expert = |place: &Place| self.layers.get(place.0).map_or(0, |layer| layer.expert);
        let ends = if share.ends { self.ends } else { 0 };
        ends + of_layers + share.experts.iter().map(of_expert).sum::<u64>()
    }

    pub(super) fn member(&self, machine: &Machine, share: Share) -> Member {
        let here = Share {
            ends: false,
            layers: share.layers.intersection(&machine.on_disk.layers).copied().collect(),
            experts: share.experts.intersection(&machine.on_disk.experts).copied().collect(),
        };
        let bytes = self.share_bytes(&share);
        let fetch_bytes = if machine.whole { 0 } else { bytes - self.share_bytes(&here) };
        Member { peer: machine.peer, share, bytes, fetch_bytes }
    }

    pub(super) fn prediction(&self, machines: &[&Machine], members: &[Member]) -> Prediction {
        let terms = self.terms(machines, members);
        let seconds = terms.seconds();
        let first_token = self.prompt_seconds(machines, members) + seconds;
        Prediction { tokens_per_second: 1.0 / seconds, first_token, terms }
    }

    /// Seconds in which a machine puts rows through weights: the first waits for memory, the others are computed meanwhile
    /// and after.
    fn through(&self, machine: &Machine, bytes: u64, rows: usize) -> f64 {
        let bytes = bytes as f64;
        let more = rows.saturating_sub(1) as f64 * 2.0 * bytes / self.element;
        (bytes / machine.bytes_per_second + more / machine.flops) / REACHED
    }

    /// Seconds of a token of an answer, the mean over draws of which experts it goes through.
    fn terms(&self, machines: &[&Machine], members: &[Member]) -> Terms {
        let (row, sequences) = (4.0 * self.hidden as f64, self.sequences.max(1));
        let rows_bytes = row * sequences as f64;
        let mut terms = Terms { here: self.through(machines[0], self.head, sequences), ..Terms::default() };
        let mut draws = Draws(0x9e37_79b9_7f4a_7c15);
        let mut before = 0;
        for (number, layer) in self.layers.iter().enumerate().skip(self.prompt_only) {
            let base = base(members, number);
            if base != before && base != 0 {
                let way = machines[base].round_trip + 2.0 * rows_bytes / machines[base].bandwidth;
                terms.round_trips += AWAKENING + way;
                terms.trips += 1.0;
                terms.bytes += 2.0 * rows_bytes;
            }
            before = base;
            let at_work = if base == 0 { &mut terms.here } else { &mut terms.elsewhere };
            *at_work += LAYER + self.through(machines[base], layer.dense, sequences);
            if layer.experts == 0 {
                continue;
            }
            let owner = |expert| members.iter().position(|member| member.share.experts.contains(&(number, expert)));
            let owners: Vec<usize> = (0..layer.experts).map(|expert| owner(expert).unwrap_or(base)).collect();
            for _ in 0..DRAWS {
                let mut of_expert = vec![0_usize; layer.experts];
                for _ in 0..sequences {
                    draws.choose(layer.chosen, layer.experts).into_iter().for_each(|expert| of_expert[expert] += 1);
                }
                let (mut rows, mut seconds) = (vec![0_usize; machines.len()], vec![0.0; machines.len()]);
                for (&owner, &count) in owners.iter().zip(&of_expert).filter(|(_, count)| **count > 0) {
                    rows[owner] += count;
                    seconds[owner] += self.through(machines[owner], layer.expert, count);
                }
                let work = |machine: usize| seconds[machine];
                // A row goes there once, and comes back from each of its experts.
                let bytes = |machine: usize| row * (sequences.min(rows[machine]) + rows[machine]) as f64;
                let asked: Vec<usize> =
                    (0..machines.len()).filter(|&machine| machine != base && rows[machine] > 0).collect();
                // Of the way between two others no more is known than how far both are from here.
                let way = |&machine: &usize| {
                    let (near, far) = (machines[machine], machines[base]);
                    let bandwidth = near.bandwidth.min(far.bandwidth);
                    near.round_trip.max(far.round_trip) + bytes(machine) / bandwidth
                };
                let there = asked.iter().map(|machine| way(machine) + work(*machine)).fold(0.0, f64::max);
                let there = there.max(crowded(machines, base, &asked, &work, &way));
                let awakening = if asked.is_empty() { 0.0 } else { AWAKENING };
                let trip = asked.iter().map(way).fold(0.0, f64::max) + awakening;
                let waiting = (there + awakening - work(base)).max(0.0);
                let share = 1.0 / DRAWS as f64;
                *(if base == 0 { &mut terms.here } else { &mut terms.elsewhere }) += share * work(base);
                terms.round_trips += share * trip.min(waiting);
                terms.elsewhere += share * (waiting - trip).max(0.0);
                terms.trips += share * f64::from(u8::from(!asked.is_empty()));
                terms.bytes += share * asked.iter().map(|&machine| bytes(machine)).sum::<f64>();
            }
        }
        terms
    }

    /// Seconds that a prompt takes.
    fn prompt_seconds(&self, machines: &[&Machine], members: &[Member]) -> f64 {
        let tokens = PROMPT_TOKENS as f64;
        let flops = |bytes: f64| 2.0 * bytes / self.element * tokens;
        let way =
            |machine: &Machine, rows: f64| machine.round_trip + 4.0 * self.hidden as f64 * rows / machine.bandwidth;
        let (mut seconds, mut before) = (0.0, 0);
        for (number, layer) in self.layers.iter().enumerate() {
            let base = base(members, number);
            if base != before && base != 0 {
                seconds += way(machines[base], 2.0 * tokens);
            }
            before = base;
            seconds += flops(layer.dense as f64) / machines[base].flops;
            if layer.experts == 0 {
                continue;
            }
            // Every expert works on its part of the tokens, but goes through its weights at least once.
            let of_experts = |experts: f64, machine: &Machine| {
                let work = flops(layer.expert as f64) * layer.chosen as f64 * experts / layer.experts as f64;
                (work / machine.flops).max(experts * layer.expert as f64 / machine.bytes_per_second)
            };
            let held = |share: &Share| share.experts.range((number, 0)..(number + 1, 0)).count() as f64;
            let others = || machines.iter().zip(members).enumerate().filter(|(machine, _)| *machine != base);
            let elsewhere: f64 = others().map(|(_, (_, member))| held(&member.share)).sum();
            let there = others().filter(|(_, (_, member))| held(&member.share) > 0.0).map(|(_, (machine, member))| {
                let held = held(&member.share);
                let rows = tokens * (1.0 + layer.chosen as f64 * held / layer.experts as f64);
                way(machine, rows) + of_experts(held, machine)
            });
            let there = there.fold(0.0, f64::max);
            seconds += there.max(of_experts(layer.experts as f64 - elsewhere, machines[base]));
        }
        seconds
    }
}

/// Who works on a layer: the first where nobody else does.
fn base(members: &[Member], layer: usize) -> usize {
    members.iter().position(|member| member.share.layers.contains(&layer)).unwrap_or(0)
}

/// Seconds until those who are asked have answered, as far as they share processors with each other. To who asks on the
/// same machine the ways are work for them too.
fn crowded(
    machines: &[&Machine],
    base: usize,
    asked: &[usize],
    work: &dyn Fn(usize) -> f64,
    way: &dyn Fn(&usize) -> f64,
) -> f64 {
    #[derive(Default)]
    struct Host {
        seconds: f64,
        way: f64,
        processors: f64,
        machines: usize,
    }
    let mut of_host: BTreeMap<u64, Host> = BTreeMap::new();
    for &machine in asked {
        let Machine { host, threads, cores, .. } = *machines[machine];
        let same = host == machines[base].host;
        let host = of_host.entry(host).or_default();
        host.seconds += work(machine) * threads as f64 + if same { way(&machine) } else { 0.0 };
        host.way = if same { 0.0 } else { host.way.max(way(&machine)) };
        host.processors = cores.max(1) as f64;
        host.machines += 1;
    }
    let seconds = of_host.into_values().filter(|host| host.machines > 1);
    seconds.map(|host| host.way + host.seconds / host.processors / TOGETHER).fold(0.0, f64::max)
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
