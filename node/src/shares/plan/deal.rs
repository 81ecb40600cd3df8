//! Who gets which experts and layers.
//!
//! Which machine gets which expert follows from a hash of both (rendezvous hashing, Thaler and Ravishankar, 1996), within
//! each machine's part of every layer: a machine that comes or goes moves few experts.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;

use accel_models::share::{Part, Share};
use libp2p::PeerId;

use super::super::experts::Place;
use super::{Costs, LayerCosts, Machine, fits};

/// One of so many parts of the memory of who has layers is left for what they keep of sequences.
const FOR_SEQUENCES: u64 = 8;

/// One of so many parts of a machine's experts may come beside them for the sake of others that fall away or have much to
/// do.
const REPLICAS: u64 = 4;

/// Deals ranges of layers to machines in their order, by their speed and within their memory: with their experts, or
/// `apart` from them, which are then dealt to so many machines a layer.
pub fn deal_layers(costs: &Costs, machines: &[&Machine], apart: Option<usize>) -> Result<Vec<Share>, String> {
    let of_layer = |layer: &LayerCosts| match apart {
        Some(_) => layer.dense,
        None => layer.dense + layer.experts as u64 * layer.expert,
    };
    let bytes: Vec<u64> = costs.layers.iter().map(of_layer).collect();
    let all: u64 = bytes.iter().sum();
    let room = |number: usize| {
        let memory = machines[number].memory_bytes;
        let ends = if number == 0 { costs.ends } else { 0 };
        (memory - memory / FOR_SEQUENCES).saturating_sub(ends)
    };
    fits(costs.ends, machines[0])?;
    let rooms: Vec<u64> = (0..machines.len()).map(room).collect();
    let speeds = speeds(machines);
    let parts = parts(all, &speeds, &rooms).ok_or_else(|| {
        let (need, have) = (all as f64 / 1e9, rooms.iter().sum::<u64>() as f64 / 1e9);
        format!("{need:.2} GB of layers do not fit the {have:.2} GB of memory of {} machines", machines.len())
    })?;
    // By speed; where rounding leaves a layer over, as much on each as fits.
    let by_speed = ranges(&bytes, &rooms, &parts);
    let full: Vec<f64> = rooms.iter().map(|&room| room as f64 / all.max(1) as f64).collect();
    let ranges = by_speed.or_else(|| ranges(&bytes, &rooms, &full));
    let ranges = ranges.ok_or_else(|| "layers are too large for the memory that is left on each machine".to_owned())?;
    let mut shares: Vec<Share> =
        ranges.into_iter().map(|range| Share { layers: range.collect(), ..Share::default() }).collect();
    shares[0].ends = true;
    let Some(width) = apart else {
        for share in &mut shares {
            let of_layer = |&layer: &usize| (0..costs.layers[layer].experts).map(move |expert| (layer, expert));
            share.experts = share.layers.iter().flat_map(of_layer).collect();
        }
        return Ok(shares);
    };
    let left: Vec<Machine> = machines
        .iter()
        .zip(&shares)
        .map(|(machine, share)| {
            let taken = costs.share_bytes(share);
            Machine { memory_bytes: machine.memory_bytes.saturating_sub(taken), ..(*machine).clone() }
        })
        .collect();
    let experts = deal(costs, &left.iter().collect::<Vec<_>>(), width)?;
    shares.iter_mut().zip(experts).for_each(|(share, experts)| share.experts = experts.experts);
    Ok(shares)
}

/// Ranges of layers, each with about its part of all bytes; none where one does not fit its room.
fn ranges(bytes: &[u64], rooms: &[u64], parts: &[f64]) -> Option<Vec<Range<usize>>> {
    let all = bytes.iter().sum::<u64>() as f64;
    let (mut ranges, mut next, mut done, mut upto) = (Vec::new(), 0, 0.0, 0.0);
    for (number, (&room, part)) in rooms.iter().zip(parts).enumerate() {
        let (first, mut taken) = (next, 0);
        upto += part * all;
        let last = number + 1 == rooms.len();
        while let Some(&layer) = bytes.get(next)
            && taken + layer <= room
            // A layer goes to whose part has the middle of it.
            && (last || done + layer as f64 / 2.0 <= upto)
        {
            (taken, done, next) = (taken + layer, done + layer as f64, next + 1);
        }
        ranges.push(first..next);
    }
    (next == bytes.len()).then_some(ranges)
}

/// How fast machines are, in steps down from the fastest: a plan is to stay as it is where a measurement comes out a little
/// different.
fn speeds(machines: &[&Machine]) -> Vec<f64> {
    let fastest = machines.iter().map(|machine| machine.bytes_per_second).fold(0.0, f64::max);
    machines.iter().map(|machine| ((2.0 * (machine.bytes_per_second / fastest).log2()).round() / 2.0).exp2()).collect()
}

/// How much of so many bytes machines of these speeds get, within their rooms, each as a part of all; none where they do
/// not fit.
fn parts(all: u64, speeds: &[f64], rooms: &[u64]) -> Option<Vec<f64>> {
    let all = all.max(1) as f64;
    if speeds.is_empty() || (rooms.iter().map(|&room| room as f64).sum::<f64>()) < all {
        return None;
    }
    // Speed says how much each gets; who has no room for so much gets what fits, and the others the rest.
    let mut parts = vec![0.0; speeds.len()];
    let mut open: Vec<usize> = (0..speeds.len()).collect();
    let mut left = 1.0;
    while !open.is_empty() {
        let speed: f64 = open.iter().map(|&number| speeds[number]).sum();
        let share = |number: usize| left * speeds[number] / speed;
        let full: Vec<usize> =
            open.iter().copied().filter(|&number| share(number) * all > rooms[number] as f64).collect();
        if full.is_empty() {
            open.iter().for_each(|&number| parts[number] = share(number));
            break;
        }
        for number in full {
            parts[number] = rooms[number] as f64 / all;
            left -= parts[number];
            open.retain(|&other| other != number);
        }
    }
    Some(parts)
}

/// Deals the experts of all layers to machines, by their speed and within their memory, those of each layer to so many of
/// them: who asks fewer machines for a layer asks less often, and has fewer at work at once.
pub fn deal(costs: &Costs, holders: &[&Machine], width: usize) -> Result<Vec<Share>, String> {
    let rooms: Vec<u64> = holders.iter().map(|machine| machine.memory_bytes).collect();
    let speeds = speeds(holders);
    let parts = parts(costs.experts(), &speeds, &rooms).ok_or_else(|| {
        let (need, have) = (costs.experts() as f64 / 1e9, rooms.iter().sum::<u64>() as f64 / 1e9);
        format!("{need:.2} GB of experts do not fit the {have:.2} GB of memory of {} machines", holders.len())
    })?;
    let mut shares = vec![Share::default(); holders.len()];
    let mut bytes = vec![0_u64; holders.len()];
    let mut left: Vec<f64> = parts.iter().map(|part| part * costs.places().count() as f64).collect();
    // What rounding gives or takes in one layer is made up for in the next.
    let mut owed = vec![0.0; holders.len()];
    for (number, layer) in costs.layers.iter().enumerate().filter(|(_, layer)| layer.experts > 0) {
        let of_layer = chosen(holders, &left, number, layer, width);
        let all: f64 = of_layer.iter().map(|&holder| parts[holder]).sum();
        of_layer.iter().for_each(|&holder| owed[holder] += parts[holder] / all.max(1e-9) * layer.experts as f64);
        let mut quota = vec![0_usize; holders.len()];
        of_layer.iter().for_each(|&holder| quota[holder] = owed[holder].max(0.0) as usize);
        while quota.iter().sum::<usize>() < layer.experts {
            let most = |a: &usize, b: &usize| (owed[*a] - quota[*a] as f64).total_cmp(&(owed[*b] - quota[*b] as f64));
            let Some(holder) = of_layer.iter().copied().max_by(most) else { break };
            quota[holder] += 1;
        }
        for expert in 0..layer.experts {
            let place = (number, expert);
            let mut ranked: Vec<usize> = (0..holders.len()).collect();
            ranked.sort_by_key(|&holder| {
                std::cmp::Reverse((holders[holder].on_disk.experts.contains(&place), rank(holders[holder], place)))
            });
            let room = |&holder: &usize| bytes[holder] + layer.expert <= holders[holder].memory_bytes;
            let found = ranked.iter().copied().find(|holder| quota[*holder] > 0 && room(holder));
            let Some(holder) = found.or_else(|| ranked.iter().copied().find(room)) else {
                return Err(format!("expert {expert} of layer {number} fits nobody's memory"));
            };
            quota[holder] = quota[holder].saturating_sub(1);
            owed[holder] -= 1.0;
            left[holder] -= 1.0;
            bytes[holder] += layer.expert;
            shares[holder].insert(Part::Expert(number, expert));
        }
    }
    replicate(costs, holders, &mut shares);
    Ok(shares)
}

/// Has a second machine hold each hot expert, as far as there is room: so that two share its work, and it has a place when
/// one falls away. No machine holds more of them than a part of what it has anyway.
fn replicate(costs: &Costs, holders: &[&Machine], shares: &mut [Share]) {
    let own: Vec<u64> = shares.iter().map(|share| costs.share_bytes(share)).collect();
    let mut taken = vec![0_u64; holders.len()];
    for &place in &costs.hot {
        let bytes = costs.layers[place.0].expert;
        let able = |&holder: &usize| {
            let room = holders[holder].memory_bytes.saturating_sub(own[holder]).min(own[holder] / REPLICAS);
            !shares[holder].experts.contains(&place) && taken[holder] + bytes <= room
        };
        let best = (0..holders.len()).filter(able).max_by_key(|&holder| {
            let here = holders[holder].on_disk.experts.contains(&place);
            (here, std::cmp::Reverse(taken[holder]), rank(holders[holder], place))
        });
        if let Some(holder) = best {
            taken[holder] += bytes;
            shares[holder].insert(Part::Expert(place.0, place.1));
        }
    }
}

/// The machines that get the experts of a layer: of those that have enough left to get the ones with most of these on their
/// disks, and of those the ones that are drawn to this layer most.
fn chosen(holders: &[&Machine], left: &[f64], number: usize, layer: &LayerCosts, width: usize) -> Vec<usize> {
    let mut of_layer: Vec<usize> = (0..holders.len()).collect();
    if width >= holders.len() {
        return of_layer;
    }
    let enough = layer.experts as f64 / width as f64 / 2.0;
    of_layer.sort_by_key(|&holder| {
        let here = holders[holder].on_disk.experts.range((number, 0)..(number + 1, 0)).count();
        std::cmp::Reverse((left[holder] >= enough, here, rank(holders[holder], (number, layer.experts))))
    });
    of_layer.truncate(width);
    of_layer
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
        match able.max_by_key(|(machine, _)| (machine.on_disk.experts.contains(&place), rank(machine, place))) {
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
