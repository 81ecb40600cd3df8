//! The header of a safetensors file: eight bytes of length, then JSON.
//!
//! Our own reader, because the usual one takes the whole file as one slice. Format:
//! <https://huggingface.co/docs/safetensors>.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::{DIMS_MAX, Dtype, HEADER_BYTES_MAX, NAME_BYTES_MAX, TENSORS_MAX, TensorInfo, WeightsError, check_layout};
use crate::files::{ModelFiles, file_bytes};

const LENGTH_BYTES: u64 = 8;

/// Whether the name says that a file is of this format; it has no magic number.
pub fn recognise(file: &str) -> bool {
    file.ends_with(".safetensors")
}

/// The tensors of a file.
///
/// # Errors
///
/// When the header cannot be read or does not describe the file.
pub fn read(files: &dyn ModelFiles, file: &str) -> Result<Vec<TensorInfo>, WeightsError> {
    let total = file_bytes(files, file).unwrap_or(0);
    let truncated = |what, offset, needed| WeightsError::Truncated {
        file: file.to_owned(),
        what,
        offset,
        needed,
        file_bytes: total,
    };
    let fetch = |offset: u64, buffer: &mut [u8]| {
        let bytes = buffer.len() as u64;
        files.read_at(file, offset, buffer).map_err(|source| WeightsError::Read {
            file: file.to_owned(),
            offset,
            bytes,
            source,
        })
    };
    if total < LENGTH_BYTES {
        return Err(truncated("the header's length", 0, LENGTH_BYTES));
    }
    let mut length = [0; LENGTH_BYTES as usize];
    fetch(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_BYTES_MAX {
        let what = "the header in bytes";
        return Err(WeightsError::TooLarge { file: file.into(), what, limit: HEADER_BYTES_MAX, found: length });
    }
    if length > total - LENGTH_BYTES {
        return Err(truncated("the header", LENGTH_BYTES, length));
    }
    let mut text = vec![0; length as usize];
    fetch(LENGTH_BYTES, &mut text)?;
    let header: Header = serde_json::from_slice(&text).map_err(|e| WeightsError::Malformed {
        file: file.into(),
        offset: LENGTH_BYTES,
        reason: format!("the header is no JSON of a safetensors file: {e}"),
    })?;
    let data = LENGTH_BYTES + length;
    let tensors =
        header.0.into_iter().map(|(name, entry)| locate(file, data, name, entry)).collect::<Result<Vec<_>, _>>()?;
    check_layout(file, total, &tensors)?;
    Ok(tensors)
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// Entries in the order of the file; a map would hide a name that is there twice.
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    if entries.len() as u64 == TENSORS_MAX || name.len() as u64 > NAME_BYTES_MAX {
                        return Err(serde::de::Error::custom("too many tensors, or too long a name"));
                    }
                    entries.push((name, map.next_value()?));
                }
                Ok(Header(entries))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

fn locate(file: &str, data: u64, name: String, entry: Entry) -> Result<TensorInfo, WeightsError> {
    let Some(dtype) = Dtype::from_safetensors(&entry.dtype) else {
        let found = entry.dtype.chars().take(32).collect();
        return Err(WeightsError::UnknownDtype { file: file.into(), tensor: name, found });
    };
    let malformed = |reason: &str| WeightsError::Malformed {
        file: file.into(),
        offset: LENGTH_BYTES,
        reason: format!("tensor {name}: {reason}"),
    };
    if entry.shape.len() > DIMS_MAX {
        return Err(malformed("too many dimensions"));
    }
    let [begin, end] = entry.data_offsets;
    let bytes = end.checked_sub(begin).ok_or_else(|| malformed("it ends before it begins"))?;
    let offset = data.checked_add(begin).ok_or_else(|| malformed("its offset is out of range"))?;
    let expected = entry
        .shape
        .iter()
        .try_fold(dtype.block().1 as u64, |product, &dim| product.checked_mul(dim))
        .ok_or_else(|| malformed("its shape is out of range"))?;
    if expected != bytes {
        let expected = format!("{:?} of {dtype} takes {expected} bytes", entry.shape);
        return Err(WeightsError::Shape { file: file.into(), tensor: name, expected, found: bytes });
    }
    let dims = entry.shape.iter().map(|&dim| usize::try_from(dim)).collect::<Result<_, _>>();
    let dims = dims.map_err(|_| malformed("its shape is out of range"))?;
    Ok(TensorInfo { name, dtype, dims, file: file.into(), offset, bytes })
}
