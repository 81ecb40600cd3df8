//! Models against what Hugging Face's libraries answered: the cases that the project keeps.

use std::path::Path;

use accel_conformance::case::{Case, fnv1a64, raw, uniform};
use accel_conformance::{Runner, Verdict, run};

/// The values that the format's authors give for checking it.
#[test]
fn weights_follow_from_their_names() {
    assert_eq!(fnv1a64("a"), 0xaf63_dc4c_8601_ec8c);
    assert_eq!(raw("a", 0, 0), 0x5f29_c2aa_dd9b_8527);
    let bits = |values: Vec<f32>| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(uniform("a", 4, 0.0, 1.0, 0)), [0xbe83_58f8, 0x3f01_f932, 0xbeba_9c44, 0xbf69_3f32]);
    let name = "encoder.layer.0.attention.self.query.weight";
    assert_eq!(bits(uniform(name, 3, 0.0, 0.25, 7)), [0xbc48_8080, 0x3e5a_1722, 0x3de1_d354]);
    assert_eq!(bits(uniform("a", 2, 1.0, 0.25, 1)), [0x3f81_a107, 0x3f8c_c03d]);
}

#[test]
fn every_kept_case_passes() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/conformance");
    let mut failed = Vec::new();
    let mut passed = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let report = run(&Case::read(&entry.unwrap().path()).unwrap(), &Runner::eager()).unwrap();
        if report.verdict == Verdict::Pass { passed += 1 } else { failed.push(report) }
    }
    assert!(failed.is_empty(), "{failed:#?}");
    assert_eq!(passed, 16);
}
