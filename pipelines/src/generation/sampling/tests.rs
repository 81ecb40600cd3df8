//! Properties of sampling.

use accel_protocol::Generation;
use proptest::prelude::*;

use super::{Choice, NotNumbers, uniform};

fn choose(logits: Vec<f32>, seen: &[u32], position: usize, generation: &Generation) -> Result<Choice, NotNumbers> {
    super::choose(logits, seen, position, generation, |_| {})
}

fn generation(temperature: f32) -> Generation {
    Generation { temperature, seed: 7, ..Generation::default() }
}

#[test]
fn greedy_takes_the_lowest_of_equals() {
    assert_eq!(choose(vec![1.0, 3.0, 3.0], &[], 0, &generation(0.0)).unwrap().id, 1);
}

#[test]
fn logits_that_are_no_numbers_are_refused() {
    for bad in [f32::NAN, f32::INFINITY] {
        assert_eq!(choose(vec![1.0, bad], &[], 3, &generation(0.0)), Err(NotNumbers { position: 3 }));
    }
    assert!(choose(vec![f32::NEG_INFINITY; 2], &[], 0, &generation(1.0)).is_err());
    assert_eq!(choose(vec![f32::NEG_INFINITY, 0.0], &[], 0, &generation(1.0)).unwrap().id, 1);
}

#[test]
fn a_seen_token_is_penalised_once() {
    let generation = Generation { repetition_penalty: 2.0, logprobs: Some(2), ..generation(0.0) };
    let choice = choose(vec![4.0, 3.0, -1.0], &[0, 0, 2], 0, &generation).unwrap();
    assert_eq!(choice.id, 1);
    let (logprob, top) = choice.logprob.unwrap();
    assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 1]);
    assert!((logprob + 1.318_17).abs() < 1e-3, "{logprob}");
}

#[test]
fn draws_follow_the_probabilities() {
    let logits = [0.0_f32, 1.0, 2.0];
    let mut counts = [0_u32; 3];
    for position in 0..30_000 {
        counts[choose(logits.to_vec(), &[], position, &generation(1.0)).unwrap().id as usize] += 1;
    }
    let total: f32 = logits.iter().map(|logit| logit.exp()).sum();
    for (count, logit) in counts.into_iter().zip(logits) {
        assert!((count as f32 / 30_000.0 - logit.exp() / total).abs() < 0.01, "{counts:?}");
    }
}

proptest! {
    #[test]
    fn cuts_keep_only_what_they_allow(
        logits in prop::collection::vec(-5.0_f32..5.0, 2..40),
        seed: u64,
        position in 0_usize..1000,
        top_k in 1_u32..8,
        top_p in 0.05_f32..1.0,
        min_p in 0.0_f32..1.0,
    ) {
        let cut = |top_k, top_p, min_p| Generation { seed, top_k, top_p, min_p, temperature: 0.8, ..Generation::default() };
        let rank = |id: u32| logits.iter().filter(|&&other| other > logits[id as usize]).count();
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let by_k = choose(logits.clone(), &[], position, &cut(top_k, 1.0, 0.0)).unwrap().id;
        prop_assert!(rank(by_k) < top_k as usize);
        let by_p = choose(logits.clone(), &[], position, &cut(0, top_p, 0.0)).unwrap().id;
        let weight = |logit: f32| f64::from((logit - largest) / 0.8).exp();
        let total: f64 = logits.iter().map(|&logit| weight(logit)).sum();
        let above: f64 = logits.iter().filter(|&&other| other > logits[by_p as usize]).map(|&logit| weight(logit)).sum();
        prop_assert!(above / total < f64::from(top_p) + 1e-6);
        let by_min = choose(logits.clone(), &[], position, &cut(0, 1.0, min_p)).unwrap().id;
        prop_assert!(weight(logits[by_min as usize]) >= f64::from(min_p) - 1e-6);
        prop_assert_eq!(by_k, choose(logits.clone(), &[], position, &cut(top_k, 1.0, 0.0)).unwrap().id);
        prop_assert!((0.0..1.0).contains(&uniform(seed, position as u64)));
    }
}
