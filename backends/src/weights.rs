//! The tensors of a model, found by reading headers only; their bytes are read by range when somebody asks.
//!
//! A header comes from a stranger: every length is compared with the size of the file and with a named bound before
//! anything is allocated, and sums are checked. What a tensor means is the business of the crates above.

pub mod dtype;
pub mod gguf;
pub mod safetensors;
pub mod torch;

use std::collections::BTreeMap;
use std::io;

use crate::files::{ModelFiles, file_bytes, read_small};
pub use dtype::Dtype;

/// Tensors in one model; the largest mixtures of experts in use have some 150,000.
pub const TENSORS_MAX: u64 = 1 << 18;
/// A header of any format: names, shapes and a tokenizer.
pub const HEADER_BYTES_MAX: u64 = 128 << 20;
/// The name of a tensor.
pub const NAME_BYTES_MAX: u64 = 1024;
/// Dimensions of a tensor.
pub const DIMS_MAX: usize = 8;
/// The list of shards of a model.
const SHARD_INDEX_BYTES_MAX: u64 = 64 << 20;
/// What transformers and diffusers call a model's list of shards.
const SHARD_INDEXES: [&str; 2] = ["model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.json"];
/// What they call the one file of a model, which may have others beside it, of another precision say.
const WHOLE: [&str; 2] = ["model.safetensors", "diffusion_pytorch_model.safetensors"];
/// The same for pickled checkpoints, which are read where there is nothing else.
const PICKLED_INDEXES: [&str; 2] = ["pytorch_model.bin.index.json", "diffusion_pytorch_model.bin.index.json"];
const PICKLED_WHOLE: [&str; 2] = ["pytorch_model.bin", "diffusion_pytorch_model.bin"];

/// Where a tensor lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name in the file.
    pub name: String,
    /// How its elements are stored.
    pub dtype: Dtype,
    /// Its shape, slowest dimension first, whatever the file's own order.
    pub dims: Vec<usize>,
    /// The file that holds it.
    pub file: String,
    /// Where its bytes begin in that file.
    pub offset: u64,
    /// How many bytes it has.
    pub bytes: u64,
}

/// What is wrong with a model's weights.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The bytes could not be had.
    #[error("{file}: reading {bytes} bytes at {offset}: {source}")]
    Read {
        /// The file.
        file: String,
        /// Where.
        offset: u64,
        /// How much.
        bytes: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file ends inside its header.
    #[error(
        "{file}: {what} at {offset} needs {needed} bytes, but the file ends at {file_bytes}; it is probably truncated"
    )]
    Truncated {
        /// The file.
        file: String,
        /// What was being read.
        what: &'static str,
        /// Where.
        offset: u64,
        /// How much it needs.
        needed: u64,
        /// The length of the file.
        file_bytes: u64,
    },
    /// The header breaks its format.
    #[error("{file}: at {offset}: {reason}")]
    Malformed {
        /// The file.
        file: String,
        /// Where.
        offset: u64,
        /// How.
        reason: String,
    },
    /// A length is over its bound.
    #[error("{file}: {what}: expected at most {limit}, found {found}")]
    TooLarge {
        /// The file.
        file: String,
        /// What is too large.
        what: &'static str,
        /// The bound.
        limit: u64,
        /// What the file claims.
        found: u64,
    },
    /// The elements are stored in a way that is not known.
    #[error("{file}: tensor {tensor}: unknown element type {found}")]
    UnknownDtype {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The type as the file gives it.
        found: String,
    },
    /// Shape and size of a tensor disagree.
    #[error("{file}: tensor {tensor}: {expected}, found {found}")]
    Shape {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// What its shape and type call for.
        expected: String,
        /// What the file has.
        found: u64,
    },
    /// Two tensors have one name.
    #[error("{file}: tensor {tensor} is there twice")]
    Duplicate {
        /// The file.
        file: String,
        /// The name.
        tensor: String,
    },
    /// A tensor reaches past the end of its file.
    #[error(
        "{file}: tensor {tensor}: {bytes} bytes at {offset} pass the end of the file at {file_bytes}; it is probably truncated"
    )]
    PastEnd {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Where it begins.
        offset: u64,
        /// How long it is.
        bytes: u64,
        /// The length of the file.
        file_bytes: u64,
    },
    /// Two tensors share bytes.
    #[error("{file}: tensors {first} and {second} overlap at {offset}")]
    Overlap {
        /// The file.
        file: String,
        /// The one that begins first.
        first: String,
        /// The other.
        second: String,
        /// Where the other begins.
        offset: u64,
    },
    /// A pickle has more in it than tensors that lie in its file.
    #[error("{file}: at {offset}: the pickle {found}; no checkpoint is run as a program, so save it as safetensors")]
    Pickle {
        /// The file.
        file: String,
        /// Where the next instruction begins.
        offset: u64,
        /// What it does.
        found: String,
    },
    /// The file should be a checkpoint of PyTorch and is no archive.
    #[error(
        "{file}: expected a zip archive as torch.save writes it, found none; one of before 1.6 is saved anew by torch, or as safetensors"
    )]
    OldCheckpoint {
        /// The file.
        file: String,
    },
    /// The list of shards names something that is not there.
    #[error("{list}: tensor {tensor} is said to be in {file}, which does not hold it")]
    MissingInShard {
        /// The list.
        list: String,
        /// The tensor.
        tensor: String,
        /// The shard.
        file: String,
    },
    /// No file holds weights.
    #[error("no weights: expected a .gguf or .safetensors file, or pytorch_model.bin, found {found:?}")]
    NoWeights {
        /// The files of the model.
        found: Vec<String>,
    },
    /// Several files hold weights and nothing says which to use.
    #[error("several weight files and no list of shards: {found:?}; name one of them")]
    Ambiguous {
        /// The candidates.
        found: Vec<String>,
    },
}

/// Every tensor of a model by name, and the metadata of the file when it has any.
#[derive(Debug)]
pub struct TensorIndex {
    tensors: BTreeMap<String, TensorInfo>,
    metadata: Option<gguf::Metadata>,
}

impl TensorIndex {
    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// The tensors in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.values()
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.values().map(|tensor| tensor.bytes).sum()
    }

    /// The metadata of a GGUF file; `None` for other formats.
    pub fn gguf(&self) -> Option<&gguf::Metadata> {
        self.metadata.as_ref()
    }
}

/// Finds the weights of a model: one GGUF file, or safetensors in one file or in shards, or else a pickled checkpoint.
///
/// # Errors
///
/// When there are none, when it is not clear which to use, or when a header is damaged.
pub fn index(files: &dyn ModelFiles) -> Result<TensorIndex, WeightsError> {
    let names: Vec<&str> = files.files().iter().map(|file| file.name.as_str()).collect();
    let mut ggufs = Vec::new();
    for &name in &names {
        if (names.len() == 1 || name.ends_with(".gguf")) && gguf::recognise(files, name)? {
            ggufs.push(name);
        }
    }
    match ggufs[..] {
        [name] => {
            let header = gguf::read(files, name)?;
            return collect(header.tensors, Some(header.metadata));
        }
        [] => {}
        _ => return Err(WeightsError::Ambiguous { found: ggufs.into_iter().map(str::to_owned).collect() }),
    }
    if let Some(list) = SHARD_INDEXES.into_iter().find(|list| names.contains(list)) {
        return sharded(files, list);
    }
    let shards: Vec<&str> = names.iter().copied().filter(|name| safetensors::recognise(name)).collect();
    match (&shards[..], WHOLE.into_iter().find(|name| shards.contains(name))) {
        (&[name], _) | (_, Some(name)) => collect(safetensors::read(files, name)?, None),
        ([], _) => pickled(files, &names),
        _ => Err(WeightsError::Ambiguous { found: shards.into_iter().take(32).map(str::to_owned).collect() }),
    }
}

fn pickled(files: &dyn ModelFiles, names: &[&str]) -> Result<TensorIndex, WeightsError> {
    if let Some(list) = PICKLED_INDEXES.into_iter().find(|list| names.contains(list)) {
        return sharded(files, list);
    }
    match PICKLED_WHOLE.into_iter().find(|name| names.contains(name)) {
        Some(name) => collect(torch::read(files, name)?, None),
        None => Err(WeightsError::NoWeights { found: names.iter().take(32).map(|&name| name.to_owned()).collect() }),
    }
}

/// The files whose headers lie all over them, so that they must be here whole before they can be indexed.
pub fn scattered(files: &dyn ModelFiles) -> Vec<&str> {
    let names = || files.files().iter().map(|file| file.name.as_str());
    if names().any(|name| name.ends_with(".gguf") || safetensors::recognise(name)) {
        return Vec::new();
    }
    names().filter(|name| torch::recognise(name)).collect()
}

/// The tensors of one file in the order of their offsets, or `None` if the file holds no weights.
///
/// GGUF is recognised by its first bytes, the others by the name of the file. A checkpoint of PyTorch that cannot be read
/// counts as a file without weights: many lie beside weights of another format, and whoever asks for its own tensors is
/// told why.
///
/// # Errors
///
/// When the file is of a weight format and its header is damaged.
pub fn tensor_ranges(files: &dyn ModelFiles, file: &str) -> Result<Option<Vec<TensorInfo>>, WeightsError> {
    let mut tensors = if gguf::recognise(files, file)? {
        gguf::read(files, file)?.tensors
    } else if safetensors::recognise(file) {
        safetensors::read(files, file)?
    } else if torch::recognise(file) {
        match torch::read(files, file) {
            Err(error @ WeightsError::Read { .. }) => return Err(error),
            Err(_) => return Ok(None),
            Ok(tensors) => tensors,
        }
    } else {
        return Ok(None);
    };
    tensors.sort_by_key(|tensor| tensor.offset);
    Ok(Some(tensors))
}

/// Reads the bytes of one tensor.
///
/// # Errors
///
/// When the bytes cannot be had.
pub fn read_tensor(files: &dyn ModelFiles, tensor: &TensorInfo) -> Result<Vec<u8>, WeightsError> {
    let fault =
        |source| WeightsError::Read { file: tensor.file.clone(), offset: tensor.offset, bytes: tensor.bytes, source };
    let length = usize::try_from(tensor.bytes).map_err(|e| fault(io::Error::other(e)))?;
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(length).map_err(|e| fault(io::Error::new(io::ErrorKind::OutOfMemory, e)))?;
    buffer.resize(length, 0);
    files.read_at(&tensor.file, tensor.offset, &mut buffer).map_err(fault)?;
    Ok(buffer)
}

fn collect(tensors: Vec<TensorInfo>, metadata: Option<gguf::Metadata>) -> Result<TensorIndex, WeightsError> {
    let tensors = tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
    Ok(TensorIndex { tensors, metadata })
}

#[derive(serde::Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

fn sharded(files: &dyn ModelFiles, index: &str) -> Result<TensorIndex, WeightsError> {
    let bytes = file_bytes(files, index).unwrap_or(0);
    let text = read_small(files, index, SHARD_INDEX_BYTES_MAX)
        .map_err(|source| WeightsError::Read { file: index.into(), offset: 0, bytes, source })?
        .unwrap_or_default();
    let list: ShardIndex = serde_json::from_slice(&text).map_err(|e| WeightsError::Malformed {
        file: index.into(),
        offset: 0,
        reason: e.to_string(),
    })?;
    let mut shards: BTreeMap<&str, BTreeMap<String, TensorInfo>> = BTreeMap::new();
    let mut tensors = BTreeMap::new();
    for (name, file) in &list.weight_map {
        let missing =
            || WeightsError::MissingInShard { list: index.to_owned(), tensor: name.clone(), file: file.clone() };
        if !shards.contains_key(file.as_str()) {
            file_bytes(files, file).ok_or_else(missing)?;
            let read = if torch::recognise(file) { torch::read(files, file)? } else { safetensors::read(files, file)? };
            shards.insert(file, read.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect());
        }
        let tensor = shards.get_mut(file.as_str()).and_then(|shard| shard.remove(name)).ok_or_else(missing)?;
        tensors.insert(name.clone(), tensor);
    }
    Ok(TensorIndex { tensors, metadata: None })
}

/// What every format promises: one name each, and bytes inside the file.
fn check_places(file: &str, file_bytes: u64, tensors: &[TensorInfo]) -> Result<(), WeightsError> {
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = order.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(WeightsError::Duplicate { file: file.into(), tensor: pair[0].name.clone() });
    }
    for tensor in tensors {
        if tensor.offset.checked_add(tensor.bytes).is_none_or(|end| end > file_bytes) {
            return Err(WeightsError::PastEnd {
                file: file.into(),
                tensor: tensor.name.clone(),
                offset: tensor.offset,
                bytes: tensor.bytes,
                file_bytes,
            });
        }
    }
    Ok(())
}

/// What most formats promise: also no byte in two tensors.
fn check_layout(file: &str, file_bytes: u64, tensors: &[TensorInfo]) -> Result<(), WeightsError> {
    check_places(file, file_bytes, tensors)?;
    let mut order: Vec<&TensorInfo> = tensors.iter().filter(|tensor| tensor.bytes > 0).collect();
    order.sort_by_key(|tensor| tensor.offset);
    for pair in order.windows(2) {
        if pair[0].offset + pair[0].bytes > pair[1].offset {
            return Err(WeightsError::Overlap {
                file: file.into(),
                first: pair[0].name.clone(),
                second: pair[1].name.clone(),
                offset: pair[1].offset,
            });
        }
    }
    Ok(())
}
