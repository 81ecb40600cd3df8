//! Checkpoints of PyTorch, `pytorch_model.bin`: a zip archive of one pickle, which says what tensors there are, and of
//! their bytes.
//!
//! A pickle is a program, and here none is run: `pickle.rs` knows the few instructions and names that say where tensors
//! lie, and refuses every other by its name. Tensors stay in the file and are read by range. As each lies behind a header
//! of its own, all of the file has to be at hand to know where. Format: `torch/serialization.py` and
//! `caffe2/serialize/inline_container.cc` of PyTorch.

mod archive;
mod pickle;

use std::collections::HashMap;

use super::{DIMS_MAX, NAME_BYTES_MAX, TENSORS_MAX, TensorInfo, WeightsError, check_places};
use crate::files::{ModelFiles, file_bytes};
use archive::Archive;
use pickle::{Pickle, Tensor};

/// The pickle of a checkpoint: names and shapes.
const PICKLE_BYTES_MAX: u64 = 16 << 20;
const ZIP_MAGIC: [u8; 4] = *b"PK\x03\x04";

/// Whether the name says that a file is a checkpoint. Files beside it that end so too, such as the state of an optimiser,
/// are none.
pub fn recognise(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file);
    ["pytorch_model", "diffusion_pytorch_model"].iter().any(|begin| name.starts_with(begin)) && name.ends_with(".bin")
}

/// The tensors of a file in the order of its pickle. Some may share their bytes.
///
/// # Errors
///
/// When the file cannot be read, when it is of the format that torch wrote before 1.6, or when its pickle asks for
/// anything but tensors that lie in the file as they are.
pub fn read(files: &dyn ModelFiles, file: &str) -> Result<Vec<TensorInfo>, WeightsError> {
    let mut magic = [0; 4];
    let total = file_bytes(files, file).unwrap_or(0);
    if total >= magic.len() as u64 {
        let fault = |source| WeightsError::Read { file: file.to_owned(), offset: 0, bytes: 4, source };
        files.read_at(file, 0, &mut magic).map_err(fault)?;
    }
    if magic != ZIP_MAGIC {
        return Err(WeightsError::OldCheckpoint { file: file.to_owned() });
    }
    let archive = Archive::open(files, file)?;
    let (folder, entry) = archive.entry_at_top("data.pkl")?;
    let order = archive.small(&format!("{folder}byteorder"), 16)?;
    if order.is_some_and(|order| order != b"little") {
        return Err(archive.malformed(0, "its numbers are big-endian, which is not supported"));
    }
    let (offset, text) = archive.contents(entry, PICKLE_BYTES_MAX)?;
    let pickle = Pickle { file, offset, text: &text };
    let tensors = pickle.tensors()?;
    if tensors.len() as u64 > TENSORS_MAX {
        let (what, found) = ("tensors", tensors.len() as u64);
        return Err(WeightsError::TooLarge { file: file.into(), what, limit: TENSORS_MAX, found });
    }
    // Where the bytes of each storage begin, and how many there are.
    let mut storages: HashMap<&str, (u64, u64)> = HashMap::new();
    let mut found = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let place = match storages.get(tensor.storage) {
            Some(&place) => place,
            None => {
                let place = archive.place(&format!("{folder}data/{}", tensor.storage))?;
                storages.insert(tensor.storage, place);
                place
            }
        };
        found.push(located(file, name, &tensor, place)?);
    }
    check_places(file, total, &found)?;
    Ok(found)
}

fn located(
    file: &str,
    name: &str,
    tensor: &Tensor<'_>,
    (begin, storage_bytes): (u64, u64),
) -> Result<TensorInfo, WeightsError> {
    let malformed = |reason: String| WeightsError::Malformed {
        file: file.into(),
        offset: begin,
        reason: format!("tensor {}: {reason}", name.chars().take(200).collect::<String>()),
    };
    if tensor.dims.len() > DIMS_MAX || name.len() as u64 > NAME_BYTES_MAX {
        return Err(malformed("too many dimensions, or too long a name".into()));
    }
    if !tensor.is_contiguous() {
        let (dims, strides) = (&tensor.dims, &tensor.strides);
        return Err(malformed(format!(
            "its strides {strides:?} for {dims:?} are not contiguous, which is not supported"
        )));
    }
    let element = tensor.dtype.block().1 as u64;
    let bytes = tensor.dims.iter().try_fold(element, |product, &dim| product.checked_mul(dim));
    let range = bytes.and_then(|bytes| {
        let skipped = tensor.offset.checked_mul(element)?;
        (skipped.checked_add(bytes)? <= storage_bytes).then(|| begin.checked_add(skipped)).flatten()
    });
    let dims = tensor.dims.iter().map(|&dim| usize::try_from(dim)).collect::<Result<Vec<_>, _>>();
    match (bytes, range, dims) {
        (Some(bytes), Some(offset), Ok(dims)) => {
            Ok(TensorInfo { name: name.into(), dtype: tensor.dtype, dims, file: file.into(), offset, bytes })
        }
        _ => {
            let Tensor { dims, offset, dtype, .. } = tensor;
            let expected = format!("{dims:?} of {dtype} from element {offset} on needs more than its storage");
            Err(WeightsError::Shape { file: file.into(), tensor: name.into(), expected, found: storage_bytes })
        }
    }
}
