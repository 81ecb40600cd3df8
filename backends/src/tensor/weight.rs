//! Weights as they are stored.

use crate::cpu::{Cpu, can_unpack};
use crate::weights::Dtype;

use super::TensorError;

/// Weights, kept in the format of their file: a matrix of the first dimension by all others.
#[derive(Clone, Debug)]
pub struct Weight {
    dtype: Dtype,
    dims: Vec<usize>,
    rows: usize,
    columns: usize,
    row_bytes: usize,
    bytes: Vec<u8>,
}

impl Weight {
    /// A weight of that name and shape.
    ///
    /// # Errors
    ///
    /// When no kernel computes with the type, or the bytes are not those of the shape.
    pub fn new(name: &str, dtype: Dtype, dims: &[usize], bytes: Vec<u8>) -> Result<Self, TensorError> {
        let fault = |expected: String, found: String| TensorError::Shape { operation: "weight", expected, found };
        let (rows, columns) = flat(dims);
        if !can_unpack(dtype) {
            return Err(TensorError::Dtype { tensor: name.to_owned(), dtype });
        }
        let row_bytes = dtype.row_bytes(columns);
        let expected = row_bytes.and_then(|row| row.checked_mul(rows));
        match row_bytes {
            Some(row_bytes) if columns > 0 && expected == Some(bytes.len()) => {
                Ok(Self { dtype, dims: dims.to_vec(), rows, columns, row_bytes, bytes })
            }
            _ => {
                let expected = format!("{name}: {expected:?} bytes for {dims:?} of {dtype}");
                Err(fault(expected, format!("{} bytes", bytes.len())))
            }
        }
    }

    /// How it is stored.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Its rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes that it occupies.
    pub fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The stored bytes of a row.
    pub(crate) fn row(&self, row: usize) -> &[u8] {
        &self.bytes[row * self.row_bytes..][..self.row_bytes]
    }

    /// The stored bytes of rows, one behind the other.
    pub(crate) fn rows_from(&self, first: usize, count: usize) -> &[u8] {
        &self.bytes[first * self.row_bytes..][..count * self.row_bytes]
    }

    /// The stored bytes of a stretch of a row, whose ends are ends of blocks.
    pub(crate) fn piece(&self, row: usize, begin: usize, length: usize) -> &[u8] {
        let (block, block_bytes) = self.dtype.block();
        &self.row(row)[begin / block * block_bytes..][..length / block * block_bytes]
    }

    /// Its shape.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// A matrix of these values, `[dims[0], rest]`.
    pub fn from_floats(dims: &[usize], values: &[f32]) -> Self {
        let (rows, columns) = flat(dims);
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { dtype: Dtype::F32, dims: dims.to_vec(), rows, columns, row_bytes: 4 * columns, bytes }
    }

    /// The same as a matrix, copied.
    pub fn flattened(&self) -> Self {
        Self { dims: vec![self.rows, self.columns], bytes: self.bytes.clone(), ..*self }
    }

    /// These rows, copied.
    pub fn picked(&self, rows: &[usize]) -> Self {
        let bytes = rows.iter().flat_map(|&row| self.row(row)).copied().collect();
        let dims = [&[rows.len()], &self.dims[1..]].concat();
        Self { dims, rows: rows.len(), bytes, ..*self }
    }

    /// Some rows, copied.
    pub(crate) fn rows_of(&self, first: usize, count: usize) -> Self {
        let bytes = self.bytes[first * self.row_bytes..][..count * self.row_bytes].to_vec();
        let dims = [&[count], &self.dims[1..]].concat();
        Self { dims, rows: count, bytes, ..*self }
    }

    /// All values, row after row.
    pub(crate) fn unpack(&self, cpu: &Cpu) -> Vec<f32> {
        let ids: Vec<u32> = (0..self.rows as u32).collect();
        let mut out = vec![0.0; self.rows * self.columns];
        cpu.gather(self, &ids, &mut out);
        out
    }
}

/// Rows, and elements of a row; a vector is one row.
fn flat(dims: &[usize]) -> (usize, usize) {
    match dims {
        [] => (1, 1),
        [columns] => (1, *columns),
        [rows, rest @ ..] => (*rows, rest.iter().product()),
    }
}
