//! Checkpoints of PyTorch: files that torch has written (tests/scripts/pickled_checkpoints.py), and what strangers might.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::path::PathBuf;

use accel_backends::weights::{self, TensorInfo, WeightsError};
use proptest::prelude::*;
use serde_json::Value;

use super::Held;

const NAME: &str = "pytorch_model.bin";

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/pickled").join(name)
}

fn checkpoint(name: &str) -> Vec<u8> {
    std::fs::read(path(&format!("{name}.bin"))).unwrap()
}

/// What torch said of each checkpoint that it wrote.
fn told() -> Vec<(String, Value)> {
    let entries = std::fs::read_dir(path("")).unwrap().map(|entry| entry.unwrap().path());
    let mut told: Vec<_> = entries
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
        })
        .collect();
    told.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(told.len(), 14);
    told
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn compare(files: &Held, name: &str, tensor: &TensorInfo, told: &Value) {
    assert_eq!(tensor.dtype.name(), told["dtype"], "{name}: {}", tensor.name);
    assert_eq!(serde_json::to_value(&tensor.dims).unwrap(), told["shape"], "{name}: {}", tensor.name);
    let bytes = weights::read_tensor(files, tensor).unwrap();
    assert_eq!(hex(&bytes), told["bytes"].as_str().unwrap(), "{name}: {}", tensor.name);
}

#[test]
fn tensors_of_checkpoints_are_those_that_torch_reads() {
    for (name, told) in told() {
        let files = Held::new(&[(NAME, &checkpoint(&name))]);
        let Some(tensors) = told["tensors"].as_object() else { continue };
        let index = weights::index(&files).unwrap_or_else(|error| panic!("{name}: {error}"));
        let names: Vec<_> = index.iter().map(|tensor| tensor.name.clone()).collect();
        let mut expected: Vec<_> = tensors.keys().cloned().collect();
        expected.sort();
        assert_eq!(names, expected, "{name}");
        for tensor in index.iter() {
            compare(&files, &name, tensor, &tensors[&tensor.name]);
        }
        // What the store cuts the file by.
        let ranges = weights::tensor_ranges(&files, NAME).unwrap().unwrap();
        assert!(ranges.is_sorted_by_key(|tensor| tensor.offset) && ranges.len() == names.len(), "{name}");
    }
}

#[test]
fn what_is_more_than_tensors_is_refused_by_name_and_never_run() {
    for (name, told) in told() {
        let Some(words) = told["refused"].as_array() else { continue };
        let files = Held::new(&[(NAME, &checkpoint(&name))]);
        let error = weights::index(&files).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word.as_str().unwrap()), "{name}: {word}: {error}");
        }
        // Beside other weights it is a file as any other.
        assert!(weights::tensor_ranges(&files, NAME).unwrap().is_none(), "{name}");
    }
}

#[test]
fn shards_of_a_checkpoint_are_put_together() {
    let list = serde_json::json!({ "weight_map": {
        "embed.weight": "pytorch_model-00001-of-00002.bin", "scalar": "pytorch_model-00002-of-00002.bin",
    } });
    let files = Held::new(&[
        ("config.json", b"{}"),
        ("pytorch_model.bin.index.json", list.to_string().as_bytes()),
        ("pytorch_model-00001-of-00002.bin", &checkpoint("module")),
        ("pytorch_model-00002-of-00002.bin", &checkpoint("parameters")),
        ("training_args.bin", &checkpoint("code")),
    ]);
    let index = weights::index(&files).unwrap();
    assert_eq!(index.iter().count(), 2);
    assert_eq!(index.get("scalar").unwrap().dims, Vec::<usize>::new());
    let scattered = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"];
    assert_eq!(weights::scattered(&files), scattered);
    assert!(weights::tensor_ranges(&files, "training_args.bin").unwrap().is_none());
}

/// An archive with one pickle and one storage of four bytes, as small as can be.
fn archive(pickle: &[u8]) -> Vec<u8> {
    let (mut text, mut list) = (Vec::new(), Vec::new());
    for (name, bytes) in [("x/data.pkl", pickle), ("x/data/0", &[0, 0, 128, 63])] {
        let (place, length) = (text.len() as u32, (bytes.len() as u32).to_le_bytes());
        text.extend(b"PK\x03\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        text.extend([length, length].concat());
        text.extend([name.len() as u8, 0, 0, 0]);
        text.extend([name.as_bytes(), bytes].concat());
        list.extend(b"PK\x01\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        list.extend([length, length].concat());
        list.extend([name.len() as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        list.extend(place.to_le_bytes());
        list.extend(name.as_bytes());
    }
    let place = text.len() as u32;
    text.extend(&list);
    text.extend(b"PK\x05\x06\0\0\0\0\x02\0\x02\0");
    text.extend([(list.len() as u32).to_le_bytes(), place.to_le_bytes()].concat());
    text.extend([0, 0]);
    text
}

fn refused(pickle: &[u8]) -> String {
    weights::index(&Held::new(&[(NAME, &archive(pickle))])).unwrap_err().to_string()
}

const STORAGE: &[u8] = b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000\
    X\x03\0\0\0cpuK\x01tQ";

/// A dictionary with one tensor of the storage from an element on, of a shape and strides.
fn one(place: u8, shape: &[u8], strides: &[u8]) -> Vec<u8> {
    [b"}X\x01\0\0\0w", STORAGE, &[b'K', place], shape, strides, b"\x89NtRs."].concat()
}

#[test]
fn a_pickle_cannot_ask_for_more_than_there_is() {
    let whole = one(0, b"K\x01\x85", b"K\x01\x85");
    let index = weights::index(&Held::new(&[(NAME, &archive(&whole))])).unwrap();
    assert_eq!((index.get("w").unwrap().bytes, index.iter().count()), (4, 1));
    for (pickle, words) in [
        (one(1, b"K\x01\x85", b"K\x01\x85"), "needs more than its storage"),
        (one(0, b"K\x02\x85", b"K\x01\x85"), "needs more than its storage"),
        (one(0, b"\x8a\x08\0\0\0\0\0\0\0\x40\x85", b"K\x01\x85"), "needs more than its storage"),
        (one(0, b"J\xff\xff\xff\xff\x85", b"K\x01\x85"), "arguments that it does not take"),
        (one(0, b"K\x01K\x01\x86", b"K\x01\x85"), "not contiguous"),
        (one(0, b"K\x02\x85", b"K\0\x85"), "not contiguous"),
        (one(0, &b"(K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01t"[..], b")"), "arguments that it does not take"),
        (b"cos\nsystem\nX\x02\0\0\0id\x85R.".to_vec(), "names os.system"),
        (b"c__builtin__\neval\n.".to_vec(), "names __builtin__.eval"),
        (b"X\x02\0\0\0osX\x06\0\0\0system\x93.".to_vec(), "names os.system"),
        (b"\x81.".to_vec(), "instruction 0x81"),
        (b"(ios\nsystem\n.".to_vec(), "instruction 0x69"),
        (b"R.".to_vec(), "more from its stack"),
        (b"}(K\x01u.".to_vec(), "a name without a value"),
        (b"}K\x01K\x02s.".to_vec(), "has a number as a name"),
        (b"h\x05.".to_vec(), "recalls 5"),
        (b"t.".to_vec(), "no mark"),
        (b"X\xff\xff\xff\xffabc".to_vec(), "middle of an instruction"),
        (b"]".to_vec(), "middle of an instruction"),
        (b"K\x01.".to_vec(), "is a number; expected a dictionary"),
    ] {
        let error = refused(&pickle);
        assert!(error.contains(words), "{words}: {error}");
    }
}

#[test]
fn deep_long_and_circular_pickles_end_soon() {
    // A million tuples in each other, a dictionary in itself, and a long list that many tensors recall.
    let deep = [&b")"[..], &vec![0x85; 1 << 20], b"."].concat();
    assert!(refused(&deep).contains("expected a dictionary"));
    assert!(refused(b"}q\0X\x01\0\0\0ah\0s.").contains("has a dictionary as a"));
    let numbers = b"K\x01".repeat(1 << 19);
    let recalled = [STORAGE, b"K\0h\0h\0\x89NtR0"].concat();
    let long = [&b"("[..], &numbers, b"tq\0", &recalled.repeat(1 << 10)].concat();
    assert!(refused(&long).contains("arguments that it does not take"));
    assert!(refused(&b"N".repeat(5 << 20)).contains("over 4194304 instructions"));
    let error = weights::index(&Held::new(&[(NAME, &archive(&vec![b'N'; 17 << 20]))])).unwrap_err();
    assert!(matches!(error, WeightsError::TooLarge { .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_bytes_of_a_pickle_break_the_reader(pickle in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _refused = weights::index(&Held::new(&[(NAME, &archive(&pickle))]));
    }

    #[test]
    fn no_change_of_a_checkpoint_breaks_the_reader(
        name in prop_oneof!["module", "types", "views", "protocol4", "parameters", "sparse"],
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        length in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let mut bytes = checkpoint(&name);
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if cut {
            bytes.truncate(length.index(bytes.len()));
        }
        let files = Held::new(&[(NAME, &bytes)]);
        if let Ok(index) = weights::index(&files) {
            for tensor in index.iter() {
                prop_assert!(tensor.offset + tensor.bytes <= bytes.len() as u64);
                prop_assert!(weights::read_tensor(&files, tensor).is_ok());
            }
        }
    }
}
