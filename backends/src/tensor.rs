//! Tensors and the operations that models are made of.
//!
//! A tensor is candle's; the fused operations are the kernels of [`crate::cpu`], because candle's products change with
//! the number of rows. Every operation goes through `apply`, the one place that decides how it is carried out. Shapes
//! are checked here, so kernels need not.

mod attention;
mod elementwise;
mod linear;
mod weight;

use candle_core::{CpuStorage, DType, Device, Storage};

use crate::cpu::{ARITHMETIC, Cpu};
pub use crate::cpu::{Activation, AttentionShape, KeysValues, QueryRow, RopeStyle};
pub use elementwise::Angles;
pub use linear::Linear;
pub use weight::Weight;

/// An operation on tensors went wrong.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// Shapes do not fit.
    #[error("{operation}: expected {expected}, found {found}")]
    Shape {
        /// The operation.
        operation: &'static str,
        /// What it needs.
        expected: String,
        /// What it got.
        found: String,
    },
    /// Weights are stored in a way that no kernel reads.
    #[error("{tensor}: no kernel computes with {dtype}")]
    Dtype {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: crate::weights::Dtype,
    },
    /// A token or position that a table does not have.
    #[error("{operation}: {found} is outside the table of {rows}")]
    Index {
        /// The operation.
        operation: &'static str,
        /// What was asked for.
        found: usize,
        /// How many there are.
        rows: usize,
    },
    /// Candle could not make the tensor.
    #[error("candle: {0}")]
    Candle(#[from] candle_core::Error),
    /// No thread could be started.
    #[error("starting compute threads: {0}")]
    Threads(#[from] std::io::Error),
}

/// An f32 tensor, contiguous.
#[derive(Clone, Debug)]
pub struct Tensor(candle_core::Tensor);

impl Tensor {
    /// A tensor of these values, slowest dimension first.
    ///
    /// # Errors
    ///
    /// When the number of values is not that of the shape.
    pub fn new(values: Vec<f32>, dims: &[usize]) -> Result<Self, TensorError> {
        Ok(Self(candle_core::Tensor::from_vec(values, dims, &Device::Cpu)?))
    }

    /// Its shape.
    pub fn dims(&self) -> &[usize] {
        self.0.dims()
    }

    /// Its values.
    ///
    /// # Errors
    ///
    /// When candle cannot read them.
    pub fn to_vec(&self) -> Result<Vec<f32>, TensorError> {
        self.read(<[f32]>::to_vec)
    }

    /// Lends its values.
    ///
    /// # Errors
    ///
    /// When candle cannot read them.
    pub fn read<R>(&self, reader: impl FnOnce(&[f32]) -> R) -> Result<R, TensorError> {
        let (storage, layout) = self.0.storage_and_layout();
        match (&*storage, layout.contiguous_offsets()) {
            (Storage::Cpu(CpuStorage::F32(values)), Some((begin, end))) => Ok(reader(&values[begin..end])),
            _ => Err(TensorError::Shape {
                operation: "read",
                expected: format!("a contiguous {:?} on the processor", DType::F32),
                found: format!("{:?} {:?}", self.0.dtype(), self.0.layout()),
            }),
        }
    }

    /// `[tokens, n]`, or an error that names the operation.
    fn matrix(&self, operation: &'static str) -> Result<(usize, usize), TensorError> {
        match *self.dims() {
            [tokens, n] => Ok((tokens, n)),
            _ => Err(shape(operation, "[tokens, n]", self.dims())),
        }
    }
}

/// What carries out operations.
#[derive(Debug)]
pub struct Engine {
    cpu: Cpu,
}

impl Engine {
    /// Computes on the processor with that many threads.
    ///
    /// # Errors
    ///
    /// When no threads can be started.
    pub fn cpu(threads: usize) -> Result<Self, TensorError> {
        Ok(Self { cpu: Cpu::new(threads.max(1))? })
    }

    /// The same in plain instructions: the same bits, slowly.
    ///
    /// # Errors
    ///
    /// When no threads can be started.
    pub fn portable(threads: usize) -> Result<Self, TensorError> {
        Ok(Self { cpu: Cpu::portable(threads.max(1))? })
    }

    /// The name of the arithmetic: equal names give equal bits.
    pub fn arithmetic(&self) -> &'static str {
        ARITHMETIC
    }
}

/// An operation with everything about it that is no tensor.
enum Op<'a> {
    Embedding { table: &'a Weight, ids: &'a [u32] },
    Rows { rows: &'a [usize] },
    Linear { layers: &'a [&'a Linear] },
    RmsNorm { weight: &'a [f32], eps: f32 },
    Rope { angles: &'a Angles, head: usize, style: RopeStyle },
    Attention { shape: &'a AttentionShape, queries: &'a [QueryRow], sequences: &'a [KeysValues<'a>] },
    Gated { activation: Activation },
    Add,
}

/// Carries out an operation: the one place where how is decided.
fn apply(engine: &Engine, op: &Op<'_>, args: &[&Tensor]) -> Result<Vec<Tensor>, TensorError> {
    let cpu = &engine.cpu;
    match (op, args) {
        (Op::Embedding { table, ids }, []) => elementwise::embedding(cpu, table, ids),
        (Op::Rows { rows }, [x]) => elementwise::rows(x, rows),
        (Op::Linear { layers }, [x]) => return linear::linear(cpu, x, layers),
        (Op::RmsNorm { weight, eps }, [x]) => elementwise::rms_norm(cpu, x, weight, *eps),
        (Op::Rope { angles, head, style }, [x]) => elementwise::rope(x, angles, *head, *style),
        (Op::Attention { shape, queries, sequences }, [q]) => attention::attention(cpu, q, shape, queries, sequences),
        (Op::Gated { activation }, [gate, up]) => elementwise::gated(cpu, *activation, gate, up),
        (Op::Add, [a, b]) => elementwise::add(a, b),
        _ => Err(TensorError::Shape {
            operation: "apply",
            expected: "the operation's own number of tensors".into(),
            found: args.len().to_string(),
        }),
    }
    .map(|tensor| vec![tensor])
}

fn apply_one(engine: &Engine, op: &Op<'_>, args: &[&Tensor]) -> Result<Tensor, TensorError> {
    let mut outs = apply(engine, op, args)?;
    outs.pop().ok_or_else(|| shape("apply", "one result", &[]))
}

fn shape(operation: &'static str, expected: impl ToString, found: &[usize]) -> TensorError {
    TensorError::Shape { operation, expected: expected.to_string(), found: format!("{found:?}") }
}
