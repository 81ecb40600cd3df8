//! The header of a GGUF file, versions 2 and 3: metadata, then tensors.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Version 1 and big-endian files are refused by
//! name. Values are kept by kind, not by width: whoever asks for a number need not know how wide the writer made it.

use std::collections::BTreeMap;

use super::{Dtype, HEADER_BYTES_MAX, NAME_BYTES_MAX, TENSORS_MAX, TensorInfo, WeightsError, check_layout};
use crate::files::{ModelFiles, file_bytes};

/// Metadata entries of a file.
pub const ENTRIES_MAX: u64 = 1 << 16;
/// Elements of one array: the largest vocabularies in use, and their merges, stay below a million.
pub const ARRAY_MAX: u64 = 1 << 22;
/// One text: a chat template, at most.
pub const TEXT_BYTES_MAX: u64 = 4 << 20;
/// Dimensions of a tensor in this format.
const GGUF_DIMS_MAX: u64 = 4;
const MAGIC: [u8; 4] = *b"GGUF";
const ALIGNMENT_DEFAULT: u64 = 32;
/// Bytes asked of the file at once: one block of the store.
const WINDOW_BYTES: u64 = 1 << 20;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An unsigned integer of any width.
    Unsigned(u64),
    /// A signed integer of any width.
    Signed(i64),
    /// A float of either width.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(String),
    /// Integers of any width and sign.
    Integers(Vec<i64>),
    /// Floats of either width.
    Floats(Vec<f32>),
    /// Truth values.
    Bools(Vec<bool>),
    /// Texts.
    Texts(Vec<String>),
}

/// The metadata of a file by key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata(BTreeMap<String, Value>);

impl Metadata {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// The keys and values in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }
}

/// What a header says.
#[derive(Debug)]
pub struct Header {
    /// The metadata.
    pub metadata: Metadata,
    /// The tensors in the order of the header.
    pub tensors: Vec<TensorInfo>,
}

/// Whether the file begins as a GGUF file does.
///
/// # Errors
///
/// When the file cannot be read.
pub fn recognise(files: &dyn ModelFiles, file: &str) -> Result<bool, WeightsError> {
    if file_bytes(files, file).is_none_or(|bytes| bytes < 4) {
        return Ok(false);
    }
    let mut magic = [0; 4];
    files.read_at(file, 0, &mut magic).map_err(|source| WeightsError::Read {
        file: file.into(),
        offset: 0,
        bytes: 4,
        source,
    })?;
    Ok(magic == MAGIC)
}

/// Reads a header.
///
/// # Errors
///
/// When the header cannot be read or does not describe the file.
pub fn read(files: &dyn ModelFiles, file: &str) -> Result<Header, WeightsError> {
    let mut cursor = Cursor::new(files, file);
    if cursor.take::<4>("the magic number")? != MAGIC {
        return Err(cursor.malformed("expected the magic number GGUF"));
    }
    let version = u32::from_le_bytes(cursor.take("the version")?);
    if !(2..=3).contains(&version) {
        let big_endian = if (2..=3).contains(&version.swap_bytes()) { " (a big-endian file)" } else { "" };
        return Err(cursor.malformed(format!("expected version 2 or 3, found {version}{big_endian}")));
    }
    let tensor_count = cursor.count("tensors", TENSORS_MAX, 24)?;
    let entry_count = cursor.count("metadata entries", ENTRIES_MAX, 13)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..entry_count {
        let key = cursor.text("a metadata key", NAME_BYTES_MAX)?;
        let value = cursor.value()?;
        if metadata.contains_key(&key) {
            return Err(cursor.malformed(format!("metadata key {key} is there twice")));
        }
        metadata.insert(key, value);
    }
    let mut tensors = Vec::with_capacity(tensor_count as usize);
    for _ in 0..tensor_count {
        tensors.push(tensor(&mut cursor)?);
    }
    let alignment = match metadata.get("general.alignment") {
        None => ALIGNMENT_DEFAULT,
        Some(&Value::Unsigned(bytes)) if bytes > 0 && bytes <= WINDOW_BYTES && bytes.is_multiple_of(8) => bytes,
        Some(other) => {
            return Err(cursor.malformed(format!("general.alignment: expected a multiple of 8, found {other:?}")));
        }
    };
    // The header is bounded, so rounding its end up cannot overflow.
    let data = if tensors.is_empty() { cursor.offset } else { cursor.offset.next_multiple_of(alignment) };
    for tensor in &mut tensors {
        if !tensor.offset.is_multiple_of(alignment) {
            let (name, offset) = (&tensor.name, tensor.offset);
            return Err(cursor.malformed(format!("tensor {name}: offset {offset} is no multiple of {alignment}")));
        }
        let offset = data.checked_add(tensor.offset);
        tensor.offset =
            offset.ok_or_else(|| cursor.malformed(format!("tensor {}: its offset is out of range", tensor.name)))?;
    }
    check_layout(file, cursor.file_bytes, &tensors)?;
    Ok(Header { metadata: Metadata(metadata), tensors })
}

/// One entry; its offset is still counted from the beginning of the data.
fn tensor(cursor: &mut Cursor<'_>) -> Result<TensorInfo, WeightsError> {
    let name = cursor.text("a tensor's name", NAME_BYTES_MAX)?;
    let count = u64::from(u32::from_le_bytes(cursor.take("a tensor's dimensions")?));
    if count > GGUF_DIMS_MAX {
        let what = "dimensions of a tensor";
        return Err(WeightsError::TooLarge { file: cursor.file.into(), what, limit: GGUF_DIMS_MAX, found: count });
    }
    let mut dims = Vec::with_capacity(count as usize);
    for _ in 0..count {
        dims.push(u64::from_le_bytes(cursor.take("a tensor's dimensions")?));
    }
    // The file gives the fastest dimension first.
    dims.reverse();
    let number = u32::from_le_bytes(cursor.take("a tensor's type")?);
    let offset = u64::from_le_bytes(cursor.take("a tensor's offset")?);
    let Some(dtype) = Dtype::from_gguf(number) else {
        return Err(WeightsError::UnknownDtype { file: cursor.file.into(), tensor: name, found: number.to_string() });
    };
    let (block, block_bytes) = dtype.block();
    let row = dims.last().copied().unwrap_or(1);
    if !row.is_multiple_of(block as u64) {
        let expected = format!("{dims:?} of {dtype} needs rows of a multiple of {block}");
        return Err(WeightsError::Shape { file: cursor.file.into(), tensor: name, expected, found: row });
    }
    let elements = dims.iter().try_fold(1_u64, |product, &dim| product.checked_mul(dim));
    let bytes = elements.and_then(|elements| (elements / block as u64).checked_mul(block_bytes as u64));
    let shape: Result<Vec<usize>, _> = dims.iter().map(|&dim| usize::try_from(dim)).collect();
    match (bytes, shape) {
        (Some(bytes), Ok(dims)) => Ok(TensorInfo { name, dtype, dims, file: cursor.file.into(), offset, bytes }),
        _ => Err(cursor.malformed(format!("tensor {name}: its shape {dims:?} is out of range"))),
    }
}

/// Reads forward through a header, a window at a time.
struct Cursor<'a> {
    files: &'a dyn ModelFiles,
    file: &'a str,
    file_bytes: u64,
    offset: u64,
    window: Vec<u8>,
    window_offset: u64,
}

impl<'a> Cursor<'a> {
    fn new(files: &'a dyn ModelFiles, file: &'a str) -> Self {
        let file_bytes = file_bytes(files, file).unwrap_or(0);
        Self { files, file, file_bytes, offset: 0, window: Vec::new(), window_offset: 0 }
    }

    fn malformed(&self, reason: impl Into<String>) -> WeightsError {
        WeightsError::Malformed { file: self.file.into(), offset: self.offset, reason: reason.into() }
    }

    /// Makes sure that `needed` bytes can follow, before anything is allocated for them.
    fn expect(&self, what: &'static str, needed: u64) -> Result<(), WeightsError> {
        let (offset, file_bytes) = (self.offset, self.file_bytes);
        if needed > file_bytes.saturating_sub(offset) {
            return Err(WeightsError::Truncated { file: self.file.into(), what, offset, needed, file_bytes });
        }
        if offset.saturating_add(needed) > HEADER_BYTES_MAX {
            let (what, found) = ("the header in bytes", offset.saturating_add(needed));
            return Err(WeightsError::TooLarge { file: self.file.into(), what, limit: HEADER_BYTES_MAX, found });
        }
        Ok(())
    }

    fn fill(&mut self, what: &'static str, buffer: &mut [u8]) -> Result<(), WeightsError> {
        self.expect(what, buffer.len() as u64)?;
        let mut done = 0;
        while done < buffer.len() {
            let within = self.offset.wrapping_sub(self.window_offset);
            if within >= self.window.len() as u64 {
                self.refill()?;
                continue;
            }
            let rest = &self.window[within as usize..];
            let length = rest.len().min(buffer.len() - done);
            buffer[done..done + length].copy_from_slice(&rest[..length]);
            done += length;
            self.offset += length as u64;
        }
        Ok(())
    }

    fn refill(&mut self) -> Result<(), WeightsError> {
        // Windows begin at multiples of their size, where blocks of the store begin too.
        let offset = self.offset - self.offset % WINDOW_BYTES;
        let bytes = WINDOW_BYTES.min(self.file_bytes - offset);
        self.window.resize(bytes as usize, 0);
        self.window_offset = offset;
        let read = self.files.read_at(self.file, offset, &mut self.window);
        read.map_err(|source| WeightsError::Read { file: self.file.into(), offset, bytes, source })
    }

    fn take<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], WeightsError> {
        let mut buffer = [0; N];
        self.fill(what, &mut buffer)?;
        Ok(buffer)
    }

    /// A count of things that each take at least `least_bytes` of what follows.
    fn count(&mut self, what: &'static str, limit: u64, least_bytes: u64) -> Result<u64, WeightsError> {
        let found = u64::from_le_bytes(self.take(what)?);
        if found > limit {
            return Err(WeightsError::TooLarge { file: self.file.into(), what, limit, found });
        }
        self.expect(what, found * least_bytes)?;
        Ok(found)
    }

    fn text(&mut self, what: &'static str, limit: u64) -> Result<String, WeightsError> {
        let length = self.count(what, limit, 1)?;
        let mut bytes = vec![0; length as usize];
        self.fill(what, &mut bytes)?;
        String::from_utf8(bytes).map_err(|_| self.malformed(format!("{what} is not UTF-8")))
    }

    fn value(&mut self) -> Result<Value, WeightsError> {
        let what = "a metadata value";
        let kind = u32::from_le_bytes(self.take(what)?);
        Ok(match kind {
            0 => Value::Unsigned(self.take::<1>(what)?[0].into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.take(what)?).into()),
            4 => Value::Unsigned(u32::from_le_bytes(self.take(what)?).into()),
            10 => Value::Unsigned(u64::from_le_bytes(self.take(what)?)),
            1 | 3 | 5 | 11 => Value::Signed(self.integer(kind)?),
            6 | 12 => Value::Float(self.float(kind)?),
            7 => Value::Bool(self.bool()?),
            8 => Value::Text(self.text("a metadata text", TEXT_BYTES_MAX)?),
            9 => self.array()?,
            _ => return Err(self.malformed(format!("unknown kind of metadata value {kind}"))),
        })
    }

    fn array(&mut self) -> Result<Value, WeightsError> {
        let kind = u32::from_le_bytes(self.take("an array's kind")?);
        let least_bytes = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => return Err(self.malformed("arrays of arrays are not supported")),
            _ => return Err(self.malformed(format!("unknown kind of metadata value {kind}"))),
        };
        let count = self.count("elements of an array", ARRAY_MAX, least_bytes)?;
        Ok(match kind {
            6 | 12 => {
                Value::Floats((0..count).map(|_| Ok(self.float(kind)? as f32)).collect::<Result<_, WeightsError>>()?)
            }
            7 => Value::Bools((0..count).map(|_| self.bool()).collect::<Result<_, _>>()?),
            8 => Value::Texts(
                (0..count).map(|_| self.text("a metadata text", TEXT_BYTES_MAX)).collect::<Result<_, _>>()?,
            ),
            _ => Value::Integers((0..count).map(|_| self.integer(kind)).collect::<Result<_, _>>()?),
        })
    }

    fn integer(&mut self, kind: u32) -> Result<i64, WeightsError> {
        let what = "an integer";
        Ok(match kind {
            0 => self.take::<1>(what)?[0].into(),
            1 => i8::from_le_bytes(self.take(what)?).into(),
            2 => u16::from_le_bytes(self.take(what)?).into(),
            3 => i16::from_le_bytes(self.take(what)?).into(),
            4 => u32::from_le_bytes(self.take(what)?).into(),
            5 => i32::from_le_bytes(self.take(what)?).into(),
            10 => {
                let wide = u64::from_le_bytes(self.take(what)?);
                i64::try_from(wide).map_err(|_| self.malformed(format!("the integer {wide} is out of range")))?
            }
            _ => i64::from_le_bytes(self.take(what)?),
        })
    }

    fn float(&mut self, kind: u32) -> Result<f64, WeightsError> {
        Ok(match kind {
            6 => f32::from_le_bytes(self.take("a float")?).into(),
            _ => f64::from_le_bytes(self.take("a float")?),
        })
    }

    fn bool(&mut self) -> Result<bool, WeightsError> {
        match self.take("a truth value")? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(self.malformed(format!("expected a truth value, found {other}"))),
        }
    }
}
