//! Tensors and the operations that models are made of.
//!
//! A tensor holds values, weights as their file stores them, or a place in a graph that is being recorded. Every
//! operation goes through `apply`, the one place that decides which: with a recorded argument the operation is recorded
//! too, otherwise it is carried out. So a model is defined once, and runs, or becomes a graph for whatever else computes.
//!
//! Operations are of two kinds. Primitives ([`op::Op`] names them) are what a graph can always be brought down to.
//! Fused ones have a fast kernel of [`crate::cpu`] and one `lower`ing to primitives, written with this same interface.

pub mod op;

mod convolution;
mod eager;
mod fused;
mod lower;
mod primitive;
mod recurrence;
mod weight;

use std::sync::Arc;

use candle_core::Device;

use crate::cpu::{ARITHMETIC, Cpu};
pub use crate::cpu::{Activation, AttentionShape, Keys, KeysValues, PAGE, QueryRow, RopeStyle};
use crate::graph::Node;
pub use fused::{Angles, AttentionInputs, Linear};
pub(crate) use lower::lower;
use op::Op;
pub use op::{Attention, Convolution, Experts, NormKind, Scan, Segment};
pub use recurrence::ScanInputs;
pub use weight::Weight;

/// An operation went wrong.
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
        found: i64,
        /// How many there are.
        rows: usize,
    },
    /// The values of a tensor were asked for while it is recorded: they do not exist yet.
    #[error("{operation}: a recorded tensor has no values yet")]
    Recorded {
        /// What asked.
        operation: &'static str,
    },
    /// Candle could not make the tensor.
    #[error("candle: {0}")]
    Candle(#[from] candle_core::Error),
    /// No thread could be started.
    #[error("starting compute threads: {0}")]
    Threads(#[from] std::io::Error),
}

/// What the elements of a tensor are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// 32-bit floats.
    Float,
    /// 64-bit whole numbers: tokens, positions, places, and truths as 0 and 1.
    Whole,
}

/// What carries out operations. Clones share it.
#[derive(Clone, Debug)]
pub struct Engine(Arc<Cpu>);

impl Engine {
    /// Computes on the processor with that many threads.
    ///
    /// # Errors
    ///
    /// When no threads can be started.
    pub fn cpu(threads: usize) -> Result<Self, TensorError> {
        Ok(Self(Arc::new(Cpu::new(threads.max(1))?)))
    }

    /// The same in plain instructions: the same bits, slowly.
    ///
    /// # Errors
    ///
    /// When no threads can be started.
    pub fn portable(threads: usize) -> Result<Self, TensorError> {
        Ok(Self(Arc::new(Cpu::portable(threads.max(1))?)))
    }

    /// The name of the arithmetic: equal names give equal bits.
    pub fn arithmetic(&self) -> &'static str {
        ARITHMETIC
    }

    pub(crate) fn kernels(&self) -> &Cpu {
        &self.0
    }
}

/// Numbers in a shape, slowest dimension first.
#[derive(Clone, Debug)]
pub struct Tensor {
    value: Value,
    engine: Engine,
}

/// Where the numbers are.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// In memory; f32 or i64.
    Dense(candle_core::Tensor),
    /// In memory, as the file stores them.
    Stored(Arc<Weight>),
    /// Nowhere yet: a place in a graph.
    Recorded(Node),
}

impl Tensor {
    /// A tensor of these values.
    ///
    /// # Errors
    ///
    /// When the number of values is not that of the shape.
    pub fn new(engine: &Engine, values: Vec<f32>, dims: &[usize]) -> Result<Self, TensorError> {
        Ok(Self::dense(engine, candle_core::Tensor::from_vec(values, dims, &Device::Cpu)?))
    }

    /// A tensor of these whole numbers.
    ///
    /// # Errors
    ///
    /// When the number of values is not that of the shape.
    pub fn whole(engine: &Engine, values: Vec<i64>, dims: &[usize]) -> Result<Self, TensorError> {
        Ok(Self::dense(engine, candle_core::Tensor::from_vec(values, dims, &Device::Cpu)?))
    }

    /// A weight, as it is stored.
    pub fn stored(engine: &Engine, weight: Arc<Weight>) -> Self {
        Self { value: Value::Stored(weight), engine: engine.clone() }
    }

    pub(crate) fn dense(engine: &Engine, tensor: candle_core::Tensor) -> Self {
        Self { value: Value::Dense(tensor), engine: engine.clone() }
    }

    pub(crate) fn recorded(engine: &Engine, node: Node) -> Self {
        Self { value: Value::Recorded(node), engine: engine.clone() }
    }

    pub(crate) fn value(&self) -> &Value {
        &self.value
    }

    /// What carries out its operations.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Its shape.
    pub fn dims(&self) -> &[usize] {
        match &self.value {
            Value::Dense(tensor) => tensor.dims(),
            Value::Stored(weight) => weight.dims(),
            Value::Recorded(node) => node.dims(),
        }
    }

    /// How many elements it has.
    pub fn count(&self) -> usize {
        self.dims().iter().product()
    }

    /// The length of a dimension, counted from the end where negative.
    ///
    /// # Errors
    ///
    /// When it has no such dimension.
    pub fn dim(&self, axis: isize) -> Result<usize, TensorError> {
        Ok(self.dims()[self.axis("dim", axis)?])
    }

    /// Its shape, where it has that many dimensions.
    ///
    /// # Errors
    ///
    /// When it has another number of them.
    pub fn sizes<const N: usize>(&self) -> Result<[usize; N], TensorError> {
        self.dims().try_into().map_err(|_| shape("sizes", format!("{N} dimensions"), self.dims()))
    }

    fn axis(&self, operation: &'static str, axis: isize) -> Result<usize, TensorError> {
        let rank = self.dims().len();
        let found = if axis < 0 { axis + rank as isize } else { axis };
        usize::try_from(found)
            .ok()
            .filter(|&axis| axis < rank)
            .ok_or_else(|| shape(operation, format!("a dimension {axis}"), self.dims()))
    }

    /// What its elements are.
    pub fn kind(&self) -> Kind {
        match &self.value {
            Value::Dense(tensor) if tensor.dtype() == candle_core::DType::I64 => Kind::Whole,
            Value::Dense(_) | Value::Stored(_) => Kind::Float,
            Value::Recorded(node) => node.kind(),
        }
    }

    /// Whether it is a place in a graph, without values.
    pub fn is_recorded(&self) -> bool {
        matches!(self.value, Value::Recorded(_))
    }

    /// Its values.
    ///
    /// # Errors
    ///
    /// When it is recorded, or its elements are whole numbers.
    pub fn to_vec(&self) -> Result<Vec<f32>, TensorError> {
        self.read(<[f32]>::to_vec)
    }

    /// Its values.
    ///
    /// # Errors
    ///
    /// When it is recorded, or its elements are floats.
    pub fn to_whole(&self) -> Result<Vec<i64>, TensorError> {
        Ok(self.contiguous("to_whole")?.flatten_all()?.to_vec1()?)
    }

    /// Lends its values.
    ///
    /// # Errors
    ///
    /// When it is recorded, or its elements are whole numbers.
    pub fn read<R>(&self, reader: impl FnOnce(&[f32]) -> R) -> Result<R, TensorError> {
        eager::read(&self.contiguous("read")?, reader)
    }

    /// Its values without gaps; weights are unpacked.
    fn contiguous(&self, operation: &'static str) -> Result<candle_core::Tensor, TensorError> {
        match &self.value {
            Value::Dense(tensor) => Ok(tensor.contiguous()?),
            Value::Stored(weight) => {
                let values = weight.unpack(self.engine.kernels());
                Ok(candle_core::Tensor::from_vec(values, weight.dims(), &Device::Cpu)?)
            }
            Value::Recorded(_) => Err(TensorError::Recorded { operation }),
        }
    }
}

/// Carries out an operation, or records it: the one place where that is decided.
pub(crate) fn apply(op: Op, args: &[&Tensor]) -> Result<Vec<Tensor>, TensorError> {
    let outs = op.infer(args)?;
    let node = args.iter().find_map(|arg| match &arg.value {
        Value::Recorded(node) => Some(node),
        _ => None,
    });
    let first = args.first().ok_or_else(|| shape(op.name(), "at least one tensor", &[]))?;
    match node {
        Some(node) => node.graph().record(op, args, outs, &first.engine),
        None => eager::apply(&op, args),
    }
}

/// The same, for operations with one result.
pub(crate) fn apply_one(op: Op, args: &[&Tensor]) -> Result<Tensor, TensorError> {
    let mut outs = apply(op, args)?;
    outs.pop().ok_or_else(|| shape("apply", "one result", &[]))
}

pub(crate) fn shape(operation: &'static str, expected: impl ToString, found: &[usize]) -> TensorError {
    TensorError::Shape { operation, expected: expected.to_string(), found: format!("{found:?}") }
}
