//! Headers of weight files: what they say is found, and whatever is damaged is an error that says where.

#[path = "weights/pickled.rs"]
mod pickled;

use std::io;

use accel_backends::files::{FileInfo, LocalFiles, ModelFiles};
use accel_backends::weights::gguf::{self, Value};
use accel_backends::weights::{self, Dtype, WeightsError};
use proptest::prelude::*;

/// Files in memory.
struct Held(Vec<FileInfo>, Vec<Vec<u8>>);

impl Held {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let infos = files.iter().map(|(name, bytes)| FileInfo { name: (*name).into(), bytes: bytes.len() as u64 });
        Self(infos.collect(), files.iter().map(|(_, bytes)| bytes.to_vec()).collect())
    }
}

impl ModelFiles for Held {
    fn files(&self) -> &[FileInfo] {
        &self.0
    }

    fn read_at(&self, file: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let place = self.0.iter().position(|info| info.name == file).ok_or(io::ErrorKind::NotFound)?;
        let range = offset as usize..offset as usize + buffer.len();
        buffer.copy_from_slice(self.1[place].get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// A file with three metadata entries and two tensors: `a` of [2, 32] Q4_0 and `b` of [3] F32.
fn small_gguf() -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend(2_u64.to_le_bytes());
    bytes.extend(3_u64.to_le_bytes());
    text(&mut bytes, "general.architecture");
    bytes.extend(8_u32.to_le_bytes());
    text(&mut bytes, "llama");
    text(&mut bytes, "llama.block_count");
    bytes.extend(4_u32.to_le_bytes());
    bytes.extend(2_u32.to_le_bytes());
    text(&mut bytes, "tokenizer.ggml.tokens");
    bytes.extend(9_u32.to_le_bytes());
    bytes.extend(8_u32.to_le_bytes());
    bytes.extend(2_u64.to_le_bytes());
    text(&mut bytes, "x");
    text(&mut bytes, "yz");
    for (name, dims, number, offset) in [("a", &[32_u64, 2][..], 2_u32, 0_u64), ("b", &[3], 0, 64)] {
        text(&mut bytes, name);
        bytes.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| bytes.extend(dim.to_le_bytes()));
        bytes.extend(number.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend([1; 36]);
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend([2; 12]);
    bytes
}

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 7);
    bytes
}

const SMALL_SAFETENSORS: &str = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},
    "b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}}"#;

#[test]
fn a_gguf_file_says_what_it_holds() {
    let files = Held::new(&[("m.gguf", &small_gguf())]);
    let index = weights::index(&files).unwrap();
    let a = index.get("a").unwrap();
    assert_eq!((a.dtype, &a.dims[..], a.bytes), (Dtype::Q4_0, &[2, 32][..], 36));
    assert_eq!(weights::read_tensor(&files, a).unwrap(), [1; 36]);
    assert_eq!(weights::read_tensor(&files, index.get("b").unwrap()).unwrap(), [2; 12]);
    let metadata = index.gguf().unwrap();
    assert_eq!(metadata.get("llama.block_count"), Some(&Value::Unsigned(2)));
    assert_eq!(metadata.get("tokenizer.ggml.tokens"), Some(&Value::Texts(vec!["x".into(), "yz".into()])));
    let ranges = weights::tensor_ranges(&files, "m.gguf").unwrap().unwrap();
    assert_eq!(ranges.iter().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn a_safetensors_file_says_what_it_holds() {
    let files = Held::new(&[("config.json", b"{}"), ("model.safetensors", &safetensors(SMALL_SAFETENSORS, 32))]);
    let index = weights::index(&files).unwrap();
    let b = index.get("b").unwrap();
    assert_eq!((b.dtype, &b.dims[..], b.bytes), (Dtype::BF16, &[4][..], 8));
    assert_eq!(index.bytes(), 32);
    assert!(weights::tensor_ranges(&files, "config.json").unwrap().is_none());
}

#[test]
fn shards_are_found_by_their_list() {
    let one = safetensors(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1);
    let two = safetensors(r#"{"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#, 2);
    let list = br#"{"metadata":{},"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#;
    let files = Held::new(&[("1.safetensors", &one), ("2.safetensors", &two), ("model.safetensors.index.json", list)]);
    assert_eq!(weights::index(&files).unwrap().get("b").unwrap().file, "2.safetensors");
    let wrong = br#"{"weight_map":{"a":"2.safetensors"}}"#;
    let files = Held::new(&[("1.safetensors", &one), ("2.safetensors", &two), ("model.safetensors.index.json", wrong)]);
    assert!(matches!(weights::index(&files), Err(WeightsError::MissingInShard { .. })));
    let files = Held::new(&[("1.safetensors", &one), ("2.safetensors", &two)]);
    assert!(matches!(weights::index(&files), Err(WeightsError::Ambiguous { .. })));
}

#[test]
fn every_truncation_is_an_error() {
    let whole = small_gguf();
    for length in 0..whole.len() {
        let files = Held::new(&[("m.gguf", &whole[..length])]);
        assert!(gguf::read(&files, "m.gguf").is_err(), "{length} bytes of {}", whole.len());
    }
    let whole = safetensors(SMALL_SAFETENSORS, 32);
    for length in 0..whole.len() {
        let files = Held::new(&[("m.safetensors", &whole[..length])]);
        assert!(weights::index(&files).is_err(), "{length} bytes of {}", whole.len());
    }
}

#[test]
fn a_damaged_header_is_named() {
    let cases = [
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
            "is there twice",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
            "overlap at",
        ),
        (r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, "takes 12 bytes, found 8"),
        (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}}"#, "ends before it begins"),
        (r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, "no JSON of a safetensors file"),
        (r#"{"a":{"dtype":"F3","shape":[1],"data_offsets":[0,4]}}"#, "unknown element type F3"),
        (r#"{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}"#, "pass the end of the file"),
        (r#"{"a":{"dtype":"U8","shape":[18446744073709551615,2],"data_offsets":[0,9]}}"#, "out of range"),
    ];
    for (header, words) in cases {
        let files = Held::new(&[("m.safetensors", &safetensors(header, 8))]);
        let error = weights::index(&files).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("m.safetensors"), "{header}: {error}");
    }
    let mut bytes = small_gguf();
    bytes[4] = 1;
    let error = gguf::read(&Held::new(&[("m", &bytes)]), "m").unwrap_err().to_string();
    assert!(error.contains("expected version 2 or 3, found 1"), "{error}");
    let mut bytes = small_gguf();
    bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(gguf::read(&Held::new(&[("m", &bytes)]), "m"), Err(WeightsError::TooLarge { .. })));
    assert!(matches!(weights::index(&Held::new(&[("a.bin", b"xx")])), Err(WeightsError::NoWeights { .. })));
}

#[test]
fn a_directory_is_a_model() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("m.gguf"), small_gguf()).unwrap();
    std::fs::create_dir(directory.path().join("inside")).unwrap();
    let files = LocalFiles::open(directory.path()).unwrap();
    assert_eq!(files.files().len(), 1);
    assert!(weights::index(&files).unwrap().get("a").is_some());
    assert!(files.read_at("m.gguf", files.files()[0].bytes - 1, &mut [0; 2]).is_err());
    assert!(files.read_at("other", 0, &mut [0; 2]).is_err());
    let single = LocalFiles::open(directory.path().join("m.gguf")).unwrap();
    assert!(weights::index(&single).unwrap().gguf().is_some());
}

proptest! {
    #[test]
    fn changed_bytes_never_panic(changes in prop::collection::vec((0_usize..400, any::<u8>()), 1..8)) {
        for (name, mut bytes) in [("m.gguf", small_gguf()), ("m.safetensors", safetensors(SMALL_SAFETENSORS, 32))] {
            for &(place, byte) in &changes {
                let length = bytes.len();
                bytes[place % length] = byte;
            }
            let files = Held::new(&[(name, &bytes)]);
            if let Ok(Some(tensors)) = weights::tensor_ranges(&files, name) {
                for tensor in tensors {
                    prop_assert_eq!(weights::read_tensor(&files, &tensor).unwrap().len() as u64, tensor.bytes);
                }
            }
        }
    }
}
