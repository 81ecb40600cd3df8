//! Weights as they are stored.

use crate::cpu::can_unpack;
use crate::weights::Dtype;

use super::{Engine, Op, Tensor, TensorError, apply_one};

/// A matrix of weights, kept in the format of its file; vectors have one row.
#[derive(Clone, Debug)]
pub struct Weight {
    dtype: Dtype,
    rows: usize,
    columns: usize,
    row_bytes: usize,
    bytes: Vec<u8>,
}

impl Weight {
    /// A weight of that name and shape: `[n]` or `[rows, columns]`.
    ///
    /// # Errors
    ///
    /// When no kernel computes with the type, or the bytes are not those of the shape.
    pub fn new(name: &str, dtype: Dtype, dims: &[usize], bytes: Vec<u8>) -> Result<Self, TensorError> {
        let fault = |expected: String, found: String| TensorError::Shape { operation: "weight", expected, found };
        let (rows, columns) = match *dims {
            [columns] => (1, columns),
            [rows, columns] => (rows, columns),
            _ => return Err(fault(format!("{name}: a vector or a matrix"), format!("{dims:?}"))),
        };
        if !can_unpack(dtype) {
            return Err(TensorError::Dtype { tensor: name.to_owned(), dtype });
        }
        let row_bytes = dtype.row_bytes(columns);
        let expected = row_bytes.and_then(|row| row.checked_mul(rows));
        match row_bytes {
            Some(row_bytes) if columns > 0 && expected == Some(bytes.len()) => {
                Ok(Self { dtype, rows, columns, row_bytes, bytes })
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

    /// The stored bytes of a stretch of a row, whose ends are ends of blocks.
    pub(crate) fn piece(&self, row: usize, begin: usize, length: usize) -> &[u8] {
        let (block, block_bytes) = self.dtype.block();
        &self.row(row)[begin / block * block_bytes..][..length / block * block_bytes]
    }

    /// All values, row after row.
    ///
    /// # Errors
    ///
    /// When the tensor cannot be made.
    pub fn to_vec(&self, engine: &Engine) -> Result<Vec<f32>, TensorError> {
        let ids: Vec<u32> = (0..self.rows as u32).collect();
        Tensor::embedding(engine, self, &ids)?.to_vec()
    }
}

impl Tensor {
    /// Rows of a table: `[ids, columns]`.
    ///
    /// # Errors
    ///
    /// When an id is outside the table.
    pub fn embedding(engine: &Engine, table: &Weight, ids: &[u32]) -> Result<Self, TensorError> {
        apply_one(engine, &Op::Embedding { table, ids }, &[])
    }
}
