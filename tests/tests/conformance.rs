//! Models against what Hugging Face's libraries answered: the cases that the project keeps.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use accel_conformance::case::{Case, fnv1a64, raw, uniform};
use accel_conformance::runtime::Runtime;
use accel_conformance::{Runner, Use, Verdict, run};
use accel_models::arch;
use accel_tests::cluster::installed;

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

/// The cases that the project keeps.
fn kept() -> Vec<Case> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/conformance");
    let mut directories: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    directories.sort();
    directories.iter().map(|directory| Case::read(directory).unwrap()).collect()
}

fn every_kept_case_passes(runner: &Runner<'_>) {
    let reports: Vec<_> = kept().iter().map(|case| run(case, runner).unwrap()).collect();
    let failed: Vec<_> = reports.iter().filter(|report| report.verdict != Verdict::Pass).collect();
    assert!(!reports.is_empty() && failed.is_empty(), "{failed:#?}");
}

#[test]
fn every_kept_case_passes_eager_with_generation() {
    every_kept_case_passes(&Runner::eager());
}

#[test]
fn every_kept_case_passes_in_the_interpreter() {
    every_kept_case_passes(&Runner { how: Use::Interpreted, ..Runner::eager() });
}

#[test]
fn every_kept_case_passes_in_onnx_runtime_and_its_model_is_checked() {
    let library = installed("ACCEL_TEST_ORT").unwrap();
    let runtime = Runtime::load(&library).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (how, export) = (Use::Onnx, Some(directory.path()));
    every_kept_case_passes(&Runner { how, runtime: Some(&runtime), export, write: None });
    let models: Vec<_> = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(models.len(), kept().len());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/check_onnx.py");
    let python = installed("ACCEL_TEST_PYTHON").unwrap();
    let checked = Command::new(python).arg(script).args(models).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

/// A model type without a case is not known to be right.
#[test]
fn every_model_type_has_a_case() {
    let cases: BTreeSet<String> = kept().into_iter().map(|case| case.model_type).collect();
    let types = arch::ALL.iter().map(|arch| arch.hugging_face.model_type);
    let without: Vec<_> = types.filter(|name| !cases.contains(*name)).collect();
    assert!(without.is_empty(), "no case: {without:?}");
}
