//! What is counted of the choices of routers, with numbers that can be worked out by hand.

use accel_models::usage::{ExpertPair, ExpertUsage, LayerUsage, PAIRED_EXPERTS_MAX, UsageError};
use serde_json::{Value, json};

/// Layer 3 with four experts, of which two are chosen.
fn usage(places: &[i64]) -> ExpertUsage {
    let usage = ExpertUsage::new([LayerUsage::new(3, 4, 2)]);
    usage.count(3, places);
    usage
}

#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
fn layer(usage: &ExpertUsage) -> LayerUsage {
    let [layer] = usage.layers().try_into().unwrap();
    layer
}

fn close(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-12, "expected {expected}, found {found}");
}

#[test]
fn tokens_experts_and_pairs_are_counted() {
    // Four tokens: 0 and 1 twice (in either order), 0 and 2, 2 and 1.
    let usage = usage(&[0, 1, 1, 0]);
    usage.count(3, &[0, 2, 2, 1]);
    // A layer without experts has nothing to count.
    usage.count(2, &[0, 1]);
    assert_eq!(usage.counted(), 4);
    let layer = layer(&usage);
    assert_eq!((layer.layer(), layer.experts(), layer.chosen(), layer.tokens()), (3, 4, 2, 4));
    assert_eq!(layer.routed(), [3, 3, 2, 0]);
    assert_eq!(layer.routed().iter().sum::<u64>(), 4 * 2);
    let pairs = [(0, 1, 2), (1, 0, 2), (0, 2, 1), (1, 2, 1), (0, 3, 0), (2, 3, 0)];
    for (first, second, tokens) in pairs {
        assert_eq!(layer.together(first, second), Some(tokens), "{first} and {second}");
    }
    assert_eq!((layer.together(1, 1), layer.together(1, 4)), (None, None));
    assert_eq!(layer.by_use(), [0, 1, 2, 3]);
}

#[test]
fn what_is_no_expert_is_not_counted() {
    let usage = usage(&[0, 1, 0, 4, -1, 2, 3, 2]);
    assert_eq!(layer(&usage).routed(), [1, 1, 1, 1]);
    assert_eq!((layer(&usage).tokens(), usage.counted()), (2, 2));
}

#[test]
fn shares_and_entropy_follow() {
    let none = layer(&usage(&[]));
    assert_eq!((none.share(0), none.entropy_bits(), none.evenness()), (0.0, 0.0, 0.0));
    let even = layer(&usage(&[0, 1, 2, 3]));
    close(even.entropy_bits(), 2.0);
    close(even.evenness(), 1.0);
    // Shares of 1/2, 1/4, 1/8 and 1/8: 1/2 * 1 + 1/4 * 2 + 1/8 * 3 + 1/8 * 3 bits.
    let uneven = layer(&usage(&[0, 1, 0, 1, 0, 2, 0, 3]));
    let shares: Vec<f64> = (0..4).map(|expert| uneven.share(expert)).collect();
    assert_eq!(shares, [0.5, 0.25, 0.125, 0.125]);
    close(uneven.entropy_bits(), 1.75);
    close(uneven.evenness(), 0.875);
    // One expert for each token, and always the same.
    let alone = ExpertUsage::new([LayerUsage::new(0, 8, 1)]);
    alone.count(0, &[5, 5, 5]);
    let alone = layer(&alone);
    assert_eq!((alone.share(5), alone.entropy_bits(), alone.has_pairs()), (1.0, 0.0, false));
    assert!(!alone.entropy_bits().is_sign_negative());
}

#[test]
fn pairs_beyond_chance_come_first() {
    // 0 and 1 three times, 2 and 3 twice, 0 and 2 once: of six tokens 0 has 4, 1 and 2 have 3, 3 has 2.
    let layer = layer(&usage(&[0, 1, 0, 1, 1, 0, 2, 3, 3, 2, 0, 2]));
    assert_eq!(layer.routed(), [4, 3, 3, 2]);
    // (2/6) / ((3/6) * (2/6)), (3/6) / ((4/6) * (3/6)), (1/6) / ((4/6) * (3/6)).
    close(layer.lift(3, 2).unwrap(), 2.0);
    close(layer.lift(0, 1).unwrap(), 1.5);
    close(layer.lift(0, 2).unwrap(), 0.5);
    assert_eq!(layer.lift(1, 2), Some(0.0));
    let pair = |experts, tokens, lift| ExpertPair { experts, tokens, lift };
    assert_eq!(layer.top_pairs(9, 0), [pair([2, 3], 2, 2.0), pair([0, 1], 3, 1.5), pair([0, 2], 1, 0.5)]);
    assert_eq!(layer.top_pairs(1, 3), [pair([0, 1], 3, 1.5)]);
    // Each pair of four once: 1/6 of tokens each, of experts that each have half of them.
    let even = self::layer(&usage(&[0, 1, 0, 2, 0, 3, 1, 2, 1, 3, 2, 3]));
    close(even.even_lift().unwrap(), 2.0 / 3.0);
    close(even.lift(1, 3).unwrap(), 2.0 / 3.0);
}

#[test]
fn many_experts_have_no_pairs() {
    for (experts, has_pairs) in [(PAIRED_EXPERTS_MAX, true), (PAIRED_EXPERTS_MAX + 1, false)] {
        let usage = ExpertUsage::new([LayerUsage::new(0, experts, 2)]);
        let last = experts as i64 - 1;
        usage.count(0, &[last, last - 1]);
        let layer = layer(&usage);
        assert_eq!(layer.has_pairs(), has_pairs);
        assert_eq!(layer.together(experts - 1, experts - 2), has_pairs.then_some(1));
        assert_eq!(layer.top_pairs(3, 1).len(), usize::from(has_pairs));
        assert_eq!(layer.even_lift().is_some(), has_pairs);
        assert_eq!((layer.tokens(), layer.routed()[experts - 1]), (1, 1));
    }
}

#[test]
fn runs_add_up_and_can_be_kept() {
    let (first, second) = (usage(&[0, 1, 2, 3]), usage(&[0, 1, 1, 3, 0, 2]));
    let kept = serde_json::to_string(&first.layers()).unwrap();
    let read: Vec<LayerUsage> = serde_json::from_str(&kept).unwrap();
    assert_eq!(read, first.layers());
    second.add(&read).unwrap();
    assert_eq!(layer(&second), layer(&usage(&[0, 1, 1, 3, 0, 2, 0, 1, 2, 3])));
    assert_eq!(second.counted(), 5);

    // Nothing of another model's counts is added, also where some of them fit.
    let others =
        [vec![LayerUsage::new(3, 4, 1)], vec![LayerUsage::new(3, 5, 2)], vec![layer(&first), LayerUsage::new(4, 4, 2)]];
    for other in others {
        assert!(matches!(second.add(&other), Err(UsageError::Other { .. })), "{other:?}");
        assert_eq!(second.counted(), 5);
    }
}

#[test]
fn counts_that_contradict_themselves_are_refused() {
    let good = json!({"layer": 1, "chosen": 2, "tokens": 2, "routed": [2, 1, 1], "together": [1, 1, 0]});
    serde_json::from_value::<LayerUsage>(good.clone()).unwrap();
    let changes = [
        ("chosen", json!(0)),
        ("chosen", json!(4)),
        ("tokens", json!(3)),
        ("tokens", json!(u64::MAX)),
        ("routed", json!([2, 1])),
        ("routed", json!([u64::MAX, 1, 4])),
        ("routed", json!([])),
        ("together", Value::Null),
        ("together", json!([1, 1])),
        ("together", json!([1, 3, 0])),
        ("more", json!(1)),
    ];
    for (key, value) in changes {
        let mut bad = good.clone();
        bad[key] = value;
        assert!(serde_json::from_value::<LayerUsage>(bad.clone()).is_err(), "{bad}");
    }
}

#[test]
fn threads_count_at_once() {
    let usage = usage(&[]);
    std::thread::scope(|scope| {
        for first in 0..4_i64 {
            let usage = &usage;
            scope.spawn(move || (0..100).for_each(|_| usage.count(3, &[first, (first + 1) % 4])));
        }
    });
    assert_eq!(layer(&usage).routed(), [200; 4]);
    assert_eq!(usage.counted(), 400);
}
