//! Who would do what of a model: what a plan must hold to whatever the machines are.

use std::collections::BTreeSet;

use accel_models::share::Share;
use accel_models::usage::{ExpertUsage, LayerUsage};
use accel_node::shares::plan::{
    AWAKENING, Costs, LAYER, LayerCosts, Machine, Member, Plan, REACHED, Split, Way, Wish, plan,
};
use libp2p::PeerId;
use libp2p::identity::Keypair;

const MB: u64 = 1_000_000;

/// A mixture of 24 layers with 16 experts, of which a token goes through 4.
fn mixture() -> Costs {
    let layer = LayerCosts { dense: 5 * MB, experts: 16, chosen: 4, expert: 3 * MB };
    let layers = vec![layer; 24];
    let bytes = layers.iter().map(|layer| layer.dense + layer.experts as u64 * layer.expert).sum::<u64>() + 2 * MB;
    Costs {
        bytes,
        ends: 2 * MB,
        head: MB,
        layers,
        prompt_only: 0,
        sequences: 1,
        hidden: 1024,
        element: 2.0,
        hot: Vec::new(),
    }
}

/// A machine of its own with much memory, 10 GB/s, and half a millisecond away.
fn machine(number: u8) -> Machine {
    let keypair = Keypair::ed25519_from_bytes([number; 32]).expect("32 bytes are a key");
    Machine {
        peer: Some(PeerId::from(keypair.public())),
        host: number.into(),
        cores: 8,
        threads: 1,
        memory_bytes: 100_000 * MB,
        disk_bytes: 100_000 * MB,
        bytes_per_second: 1e10,
        flops: 1e11,
        round_trip: 5e-4,
        bandwidth: 1e9,
        on_disk: Share::default(),
        whole: false,
    }
}

fn own() -> Machine {
    Machine { peer: None, round_trip: 0.0, ..machine(0) }
}

fn spread(machines: &[Machine]) -> Plan {
    let wish = Wish {
        split: Split::Experts,
        peers: machines.iter().filter_map(|machine| machine.peer).collect(),
        experts_elsewhere: true,
    };
    plan(&mixture(), machines, &wish)
}

/// Each expert's peer.
fn owners(plan: &Plan) -> Vec<Option<PeerId>> {
    let way = plan.way().expect("there is a way");
    let owner = |place| way.members.iter().find(|member| member.share.experts.contains(&place)).and_then(|of| of.peer);
    mixture().places().map(owner).collect()
}

fn moved(before: &[Option<PeerId>], after: &[Option<PeerId>]) -> usize {
    before.iter().zip(after).filter(|(before, after)| before != after).count()
}

#[test]
fn every_expert_has_one_place_and_layers_are_shared_evenly() {
    let plan = spread(&[own(), machine(1), machine(2), machine(3)]);
    let way = plan.way().expect("there is a way");
    assert!(way.members[0].share.experts.is_empty(), "experts stay on the first node");
    let all: usize = way.members.iter().map(|member| member.share.experts.len()).sum();
    assert_eq!(all, 24 * 16);
    assert!(owners(&plan).iter().all(Option::is_some), "an expert has no place");
    for member in &way.members[1..] {
        for layer in 0..24 {
            let held = member.share.experts.range((layer, 0)..(layer + 1, 0)).count();
            assert!((5..=6).contains(&held), "{held} experts of layer {layer}");
        }
    }
}

/// Counts of a layer in which expert 3 is chosen for every token, and the others evenly.
fn usage(layer: usize, tokens: u64) -> LayerUsage {
    let usage = ExpertUsage::new([LayerUsage::new(layer, 16, 4)]);
    let others: Vec<i64> = (0..16).filter(|&expert| expert != 3).collect();
    for token in 0..tokens as usize {
        let other = |number: usize| others[(3 * token + number) % others.len()];
        usage.count(layer, &[3, other(0), other(1), other(2)]);
    }
    usage.layers().remove(0)
}

#[test]
fn hot_experts_get_a_second_place_where_there_is_room() {
    let all = [own(), machine(1), machine(2), machine(3)];
    let wish = Wish { split: Split::Experts, experts_elsewhere: true, ..Wish::default() };
    let wish = Wish { peers: all.iter().filter_map(|machine| machine.peer).collect(), ..wish };
    let before = plan(&mixture(), &all, &wish);
    assert_eq!(before.way().map(Way::replicas), Some(0));

    // Layer 7 has too few tokens to tell.
    let counts = [usage(2, 1000), usage(5, 1000), usage(7, 20)];
    let costs = mixture().with_usage(&counts);
    assert_eq!(costs.hot, [(2, 3), (5, 3)]);
    let after = plan(&costs, &all, &wish);
    let way = after.way().expect("there is a way");
    assert_eq!(way.replicas(), 2);
    for place in costs.hot {
        let holders = way.members.iter().filter(|member| member.share.experts.contains(&place)).count();
        assert_eq!(holders, 2, "{place:?}");
    }
    // Nothing else has moved.
    for (before, after) in before.way().expect("there is a way").members.iter().zip(&way.members) {
        assert!(before.share.experts.is_subset(&after.share.experts));
    }

    let tight = |machine: Machine| Machine { memory_bytes: 16 * 24 * MB + 24 * MB, ..machine };
    let tight = [own(), tight(machine(1)), tight(machine(2)), tight(machine(3))];
    let plan = plan(&mixture().with_usage(&counts), &tight, &wish);
    let way = plan.way().expect("there is a way");
    assert!(way.members[1..].iter().all(|member| member.bytes <= tight[1].memory_bytes));
}

#[test]
fn machines_that_share_processors_get_whole_layers_where_asking_is_dear() {
    let fast = |machine: Machine| Machine { host: 1, cores: 2, bytes_per_second: 1e11, round_trip: 4e-4, ..machine };
    let near = [fast(own()), fast(machine(1)), fast(machine(2)), fast(machine(3))];
    let narrow = spread(&near);
    let way = narrow.way().expect("there is a way");
    for layer in 0..24 {
        let held = |member: &&Member| member.share.experts.range((layer, 0)..(layer + 1, 0)).count() == 16;
        assert_eq!(way.members.iter().filter(held).count(), 1, "layer {layer}");
    }
    for member in &way.members[1..] {
        assert!((6 * 16..=10 * 16).contains(&member.share.experts.len()), "{} experts", member.share.experts.len());
    }
}

#[test]
fn a_machine_that_comes_or_goes_moves_few_experts() {
    let four = owners(&spread(&[own(), machine(1), machine(2), machine(3), machine(4)]));
    let three = owners(&spread(&[own(), machine(1), machine(2), machine(3)]));
    // A quarter has to move; that quotas of layers stay even costs some more.
    let (least, share) = (24 * 16 / 4, 24 * 16);
    let count = moved(&three, &four);
    assert!((least..=2 * least).contains(&count), "{count} of {share} experts moved");
    // Who is asked in what order says nothing.
    let turned = owners(&spread(&[own(), machine(4), machine(2), machine(3), machine(1)]));
    assert_eq!(moved(&four, &turned), 0);
}

#[test]
fn what_is_on_disk_stays_where_it_is() {
    let mut machines = [own(), machine(1), machine(2)];
    let held: BTreeSet<_> = mixture().places().filter(|place| place.1 < 8).collect();
    machines[2].on_disk.experts = held.clone();
    let plan = spread(&machines);
    let way = plan.way().expect("there is a way");
    let of_second = way.members.iter().find(|member| member.peer == machines[2].peer).expect("it takes part");
    assert_eq!(of_second.share.experts, held);
    assert_eq!(of_second.fetch_bytes, 0);
}

#[test]
fn one_machine_is_taken_when_it_is_enough_and_faster() {
    let far = |number| Machine { round_trip: 0.02, ..machine(number) };
    let plan = plan(&mixture(), &[own(), far(1), far(2)], &Wish::default());
    assert_eq!(plan.way().map(|way| way.split), Some(Split::Solo), "{}", plan.why);
    assert!(plan.why.contains("enough"), "{}", plan.why);
}

#[test]
fn several_are_taken_when_they_are_faster() {
    let near = |number| Machine { round_trip: 1e-5, bandwidth: 1e11, ..machine(number) };
    let plan = plan(&mixture(), &[own(), near(1), near(2), near(3)], &Wish::default());
    assert_eq!(plan.way().map(|way| way.split), Some(Split::Experts), "{}", plan.why);
}

#[test]
fn what_fits_no_memory_is_spread_or_said() {
    let small = |number| Machine { memory_bytes: 600 * MB, ..machine(number) };
    let own = Machine { memory_bytes: 200 * MB, ..own() };
    let spread = plan(&mixture(), &[own.clone(), small(1), small(2)], &Wish::default());
    let way = spread.way().expect("there is a way");
    assert_eq!(way.split, Split::Experts);
    for (member, room) in way.members.iter().zip([200, 600, 600]) {
        assert!(member.bytes <= room * MB, "{} bytes", member.bytes);
    }
    let nobody = plan(&mixture(), &[own, small(1)], &Wish::default());
    assert!(nobody.way().is_none() && nobody.why.contains("memory"), "{}", nobody.why);
}

/// 32 layers without experts.
fn dense() -> Costs {
    let layer = LayerCosts { dense: 100 * MB, experts: 0, chosen: 0, expert: 0 };
    Costs { bytes: 3400 * MB, ends: 200 * MB, head: 100 * MB, layers: vec![layer; 32], ..mixture() }
}

/// Layers that each member has, which follow one another.
fn ranges(plan: &Plan) -> Vec<usize> {
    let way = plan.way().expect("there is a way");
    let mut next = 0;
    for member in &way.members {
        let layers: Vec<usize> = member.share.layers.iter().copied().collect();
        assert_eq!(layers, (next..next + layers.len()).collect::<Vec<_>>());
        next += layers.len();
    }
    assert_eq!(next, 32);
    way.members.iter().map(|member| member.share.layers.len()).collect()
}

#[test]
fn layers_are_dealt_in_ranges_by_speed_and_within_memory() {
    let wish = Wish { split: Split::Stages, ..Wish::default() };
    let two = |machines: &[Machine]| {
        let peers = machines.iter().filter_map(|machine| machine.peer).collect();
        ranges(&plan(&dense(), machines, &Wish { peers, ..wish.clone() }))
    };
    assert_eq!(two(&[own(), machine(1)]), [16, 16]);
    assert_eq!(two(&[own(), Machine { bytes_per_second: 3e10, ..machine(1) }]), [8, 24]);
    // The first has the ends too, and an eighth is for sequences.
    let small = Machine { memory_bytes: 1200 * MB, ..own() };
    assert_eq!(two(&[small, machine(1)]), [8, 24]);
    assert_eq!(two(&[Machine { memory_bytes: 250 * MB, ..own() }, machine(1), machine(2)]), [0, 16, 16]);
}

#[test]
fn a_dense_model_that_fits_nobody_is_split_by_layers_and_one_that_fits_is_not() {
    let small = |number| Machine { memory_bytes: 2000 * MB, ..machine(number) };
    let own_small = Machine { memory_bytes: 2000 * MB, ..own() };
    let split = plan(&dense(), &[own_small, small(1), small(2)], &Wish::default());
    assert_eq!(split.way().map(|way| way.split), Some(Split::Stages), "{}", split.why);
    let alone = plan(&dense(), &[own(), machine(1)], &Wish::default());
    assert_eq!(alone.way().map(|way| way.split), Some(Split::Solo), "{}", alone.why);
}

#[test]
fn stages_cost_a_round_trip_each_and_their_layers() {
    let peers = [machine(1), machine(2)].iter().filter_map(|machine| machine.peer).collect();
    let wish = Wish { split: Split::Stages, peers, experts_elsewhere: false };
    let plan = plan(&dense(), &[own(), machine(1), machine(2)], &wish);
    let terms = plan.way().and_then(|way| way.outcome.clone().ok()).expect("it can be done").terms;
    assert!((terms.trips - 2.0).abs() < 1e-9, "{terms:?}");
    // 32 layers of 100 MB and the head's at 10 GB/s, in three parts.
    assert!((terms.here + terms.elsewhere - 0.33 / REACHED - 32.0 * LAYER).abs() < 1e-9, "{terms:?}");
    assert!((terms.round_trips - 0.001 - 2.0 * AWAKENING).abs() < 1e-4, "{terms:?}");
}

#[test]
fn experts_of_layers_elsewhere_may_be_with_others() {
    let machines = [own(), machine(1), machine(2)];
    let peers = machines.iter().filter_map(|machine| machine.peer).collect();
    let plan = plan(&mixture(), &machines, &Wish { split: Split::Both, peers, experts_elsewhere: false });
    let way = plan.way().expect("there is a way");
    let mut all: BTreeSet<(usize, usize)> = BTreeSet::new();
    for member in &way.members {
        assert_eq!(member.share.layers.len(), 8);
        assert!(member.share.experts.iter().any(|place| !member.share.layers.contains(&place.0)));
        all.extend(member.share.experts.iter().copied());
    }
    assert_eq!(all.len(), 24 * 16);
}

#[test]
fn a_prediction_is_the_sum_of_its_terms() {
    let plan = spread(&[own(), machine(1), machine(2)]);
    let outcome = plan.way().and_then(|way| way.outcome.clone().ok()).expect("it can be done");
    let terms = outcome.terms;
    // 24 round trips of half a millisecond, and 120 MB of layers at 10 GB/s.
    assert!((terms.round_trips - 0.012 - 24.0 * AWAKENING).abs() < 0.001, "{terms:?}");
    assert!((terms.trips - 24.0).abs() < 1e-9, "{terms:?}");
    assert!((terms.here - 0.0121 / REACHED - 24.0 * LAYER).abs() < 1e-4, "{terms:?}");
    let seconds = terms.here + terms.elsewhere + terms.round_trips;
    assert!((1.0 / outcome.tokens_per_second - seconds).abs() < 1e-12, "{outcome:?}");
    // Two machines with two of the four experts of a token each, or three and one, or four.
    let one = 3e6 / 1e10 / REACHED;
    assert!(terms.elsewhere > 24.0 * 2.0 * one && terms.elsewhere < 24.0 * 3.0 * one, "{terms:?}");
}

/// Sequences of one search share what they go through of a layer, but each has experts and arithmetic of its own.
#[test]
fn several_sequences_take_longer_than_one_and_less_than_one_after_the_other() {
    let speed = |sequences: usize, machines: &[Machine]| {
        let wish = Wish { experts_elsewhere: true, split: Split::Experts, ..Wish::default() };
        let wish = if machines.len() > 1 { wish } else { Wish::default() };
        let plan = plan(&Costs { sequences, ..mixture() }, machines, &wish);
        plan.way().expect("there is a way").outcome.clone().expect("it can be done")
    };
    for machines in [vec![machine(1)], (1..4).map(machine).collect()] {
        let (one, four) = (speed(1, &machines), speed(4, &machines));
        assert!(four.tokens_per_second < 0.8 * one.tokens_per_second, "{four:?}");
        assert!(four.tokens_per_second > 0.25 * one.tokens_per_second, "{four:?}");
        assert!(machines.len() == 1 || four.terms.bytes >= 4.0 * one.terms.bytes, "{four:?}");
    }
}
