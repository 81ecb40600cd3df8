//! Tensors that hold a part of all experts of a layer, `[experts, ..]`, and what lies in the slice of one of them.
//!
//! An expert is addressed by itself: of such a tensor only the bytes of its own slice are read, which is one range of them,
//! so that who works out some experts fetches no others. A slice is a matrix `[outputs, inputs]` or a bias `[outputs]`, of
//! which two layers may share the outputs.

use std::sync::Arc;

use accel_backends::tensor::{Tensor, TensorError, Weight};
use accel_backends::weights::{Dtype, TensorInfo};

use super::Loader;
use crate::ModelError;

/// How one expert's part of a layer lies in a stacked tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// How the elements of the expert's slice lie.
    pub form: Form,
    /// Which of its outputs are those of the layer.
    pub part: Part,
}

/// How the elements of a slice lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A matrix `[outputs, inputs]`, or a bias.
    AsIs,
    /// A matrix `[inputs, outputs]`.
    Transposed,
    /// A matrix of 4-bit floats, of which 32 inputs make a block, two of them a byte: `[outputs, inputs / 32, 16]`, in a
    /// tensor whose name ends in `_blocks`. The exponents of the blocks, `[outputs, inputs / 32]`, are in one whose name
    /// ends in `_scales` (`integrations/mxfp4.py` in `transformers`).
    Mxfp4,
}

/// Some of the outputs of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of them.
    Whole,
    /// The first half.
    FirstHalf,
    /// The second half.
    SecondHalf,
    /// The first, the third and so on.
    Even,
    /// The second, the fourth and so on.
    Odd,
}

/// Rows of a matrix, or elements of a vector, as they are stored.
struct Rows {
    dtype: Dtype,
    dims: Vec<usize>,
    bytes: Vec<u8>,
}

pub(super) const BLOCKS: &str = "_blocks";
pub(super) const SCALES: &str = "_scales";
/// Elements of a block, and the bytes that they take without their exponent.
const BLOCK: (usize, usize) = (32, 16);

/// The name of a slice, for errors and for the record of what was read.
pub(super) fn slice_name(tensor: &str, number: usize) -> String {
    format!("{tensor}[{number}]")
}

/// The slice of that number, where the tensor has one.
pub(crate) fn slice_of(tensor: &TensorInfo, number: usize) -> Option<TensorInfo> {
    let (&count, dims) = tensor.dims.split_first()?;
    let bytes = tensor.bytes.checked_div(count as u64).filter(|_| number < count)?;
    let offset = tensor.offset + bytes * number as u64;
    Some(TensorInfo { name: slice_name(&tensor.name, number), dims: dims.to_vec(), offset, bytes, ..tensor.clone() })
}

impl Loader<'_> {
    /// A layer's part of its expert's slice of `tensor`; `dims` are those of the layer, where they are known.
    pub(super) fn slice(
        &self,
        name: &str,
        tensor: &TensorInfo,
        slice: Slice,
        dims: Option<&[usize]>,
    ) -> Result<Tensor, ModelError> {
        let at = || ModelError::at(self.name(name));
        // The expert's number is the last in the name.
        let number = self.name(name).rsplit('.').find_map(|part| part.parse().ok()).unwrap_or(0);
        let stored = dims.map(|dims| slice.stored_dims(dims));
        let of_tensor = |tensor: &TensorInfo, dims: Option<&[usize]>| {
            let found = slice_of(tensor, number).filter(|found| dims.is_none_or(|dims| dims == found.dims));
            found.ok_or_else(|| {
                let experts = tensor.dims.first().copied().unwrap_or(0).max(number + 1);
                let expected = [&[experts], dims.unwrap_or_default()].concat();
                ModelError::TensorShape { name: self.name(name), expected, found: tensor.dims.clone() }
            })
        };
        let found = of_tensor(tensor, stored.as_deref())?;
        let (rows, part) = match slice.form {
            Form::AsIs => slice.part.apart(found),
            Form::Transposed | Form::Mxfp4 => (found, slice.part),
        };
        let whole = match slice.form {
            Form::AsIs => Rows { dtype: rows.dtype, dims: rows.dims.clone(), bytes: self.bytes(&rows)? },
            Form::Transposed => transposed(&rows, &self.bytes(&rows)?),
            Form::Mxfp4 => {
                let from = format!("{}{SCALES}", tensor.name.strip_suffix(BLOCKS).unwrap_or(&tensor.name));
                let missing = || ModelError::MissingTensor { name: self.name(name), from: from.clone() };
                let scales = self.index.get(&from).ok_or_else(missing)?;
                let scales = of_tensor(scales, rows.dims.get(..2))?;
                if let Some(other) = [&rows, &scales].into_iter().find(|lying| lying.dtype != Dtype::U8) {
                    return Err(at()(TensorError::Dtype { tensor: other.name.clone(), dtype: other.dtype }));
                }
                packed(&rows, &self.bytes(&rows)?, &self.bytes(&scales)?)
            }
        };
        let Rows { dtype, dims, bytes } = part.of(whole);
        let weight = Weight::new(&rows.name, dtype, &dims, bytes).map_err(at())?;
        let stored = Tensor::stored(self.engine, Arc::new(weight));
        // Vectors are small and go through operations that want floats.
        match dims.len() {
            0 | 1 => stored.to_vec().and_then(|values| Tensor::new(self.engine, values, &dims)).map_err(at()),
            _ => Ok(stored),
        }
    }
}

impl Slice {
    /// The shape of a slice that holds a layer of that shape.
    fn stored_dims(self, dims: &[usize]) -> Vec<usize> {
        let mut all = dims.to_vec();
        if let (Some(outputs), true) = (all.first_mut(), self.part != Part::Whole) {
            *outputs = outputs.saturating_mul(2);
        }
        match (self.form, &mut all[..]) {
            (Form::Transposed, all) => all.reverse(),
            (Form::Mxfp4, [_, inputs]) => {
                // What blocks do not fill is not stored so: the shape then fits none.
                *inputs = if inputs.is_multiple_of(BLOCK.0) { *inputs / BLOCK.0 } else { 0 };
                all.push(BLOCK.1);
            }
            _ => {}
        }
        all
    }
}

impl Part {
    /// Where halves lie, which are ranges of bytes themselves, and what is left to pick of the rows there.
    fn apart(self, mut slice: TensorInfo) -> (TensorInfo, Self) {
        match (self, slice.dims.first_mut()) {
            (Self::FirstHalf | Self::SecondHalf, Some(rows)) if rows.is_multiple_of(2) => {
                *rows /= 2;
                slice.bytes /= 2;
                slice.offset += if self == Self::SecondHalf { slice.bytes } else { 0 };
                (slice, Self::Whole)
            }
            _ => (slice, self),
        }
    }

    /// These rows alone.
    fn of(self, whole: Rows) -> Rows {
        let rows = whole.dims.first().copied().unwrap_or(0);
        if self == Self::Whole || rows < 2 {
            return whole;
        }
        let (half, row_bytes) = (rows / 2, whole.bytes.len() / rows);
        let place = |row: usize| match self {
            Self::Whole | Self::FirstHalf => row,
            Self::SecondHalf => half + row,
            Self::Even => 2 * row,
            Self::Odd => 2 * row + 1,
        };
        let bytes = (0..half).flat_map(|row| &whole.bytes[place(row) * row_bytes..][..row_bytes]).copied().collect();
        Rows { dtype: whole.dtype, dims: [&[half], &whole.dims[1..]].concat(), bytes }
    }
}

/// The rows of a matrix that lies transposed, `[inputs, outputs]`. Elements in blocks cannot: they stay as they lie, and
/// do not fit the shape.
fn transposed(lying: &TensorInfo, bytes: &[u8]) -> Rows {
    let dims = lying.dims.iter().rev().copied().collect();
    let (&[inputs, outputs], (1, size)) = (&lying.dims[..], lying.dtype.block()) else {
        return Rows { dtype: lying.dtype, dims, bytes: Vec::new() };
    };
    let places = (0..outputs).flat_map(|output| (0..inputs).map(move |input| input * outputs + output));
    let bytes = places.flat_map(|place| &bytes[place * size..][..size]).copied().collect();
    Rows { dtype: lying.dtype, dims, bytes }
}

/// The rows of a matrix of 4-bit floats as GGUF files have them, which is what computes with them: the exponent of a block
/// before it, and the first half of its elements in the lower halves of its bytes.
fn packed(lying: &TensorInfo, blocks: &[u8], scales: &[u8]) -> Rows {
    let columns = lying.dims.get(1).map_or(0, |blocks| blocks * BLOCK.0);
    let rows = lying.dims.first().copied().unwrap_or(0);
    let mut bytes = Vec::with_capacity(blocks.len() + scales.len());
    for (block, scale) in blocks.as_chunks::<{ BLOCK.1 }>().0.iter().zip(scales) {
        // The file has neighbours in a byte.
        let element = |place: usize| block[place / 2] >> (4 * (place % 2)) & 15;
        bytes.push(*scale);
        bytes.extend((0..BLOCK.1).map(|place| element(place) | element(place + BLOCK.1) << 4));
    }
    Rows { dtype: Dtype::MXFP4, dims: vec![rows, columns], bytes }
}
