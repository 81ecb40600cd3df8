//! Graphs: what a model does, recorded.
//!
//! An ordinary run with some tensors of a [`Recorder`] in it records itself: every operation on them becomes a step, and
//! whatever else it uses, weights above all, becomes a constant. [`Graph::lower`] brings it down to primitives.

pub mod interpret;
pub mod onnx;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::tensor::op::{Op, Signature};
use crate::tensor::{Engine, Kind, Tensor, TensorError, Value, apply, lower};

/// A value in a graph, by its number.
pub type ValueId = usize;

/// What a run was.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// Kind and shape of each value.
    pub values: Vec<Signature>,
    /// What is given.
    pub inputs: Vec<(String, ValueId)>,
    /// What is known: tensors with values.
    pub constants: Vec<(ValueId, Tensor)>,
    /// The operations, each after those that it needs.
    pub steps: Vec<Step>,
    /// What is answered.
    pub outputs: Vec<(String, ValueId)>,
}

/// One operation.
#[derive(Clone, Debug)]
pub struct Step {
    /// What it does.
    pub op: Op,
    /// To what.
    pub args: Vec<ValueId>,
    /// With which results.
    pub outs: Vec<ValueId>,
}

/// A graph in the making. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Recorder(Arc<Mutex<Recording>>);

#[derive(Debug, Default)]
struct Recording {
    graph: Graph,
    /// Constants that are here already, by where their numbers lie.
    known: HashMap<usize, ValueId>,
}

/// A place in a graph.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    recorder: Recorder,
    id: ValueId,
    signature: Signature,
}

impl Node {
    pub(crate) fn graph(&self) -> &Recorder {
        &self.recorder
    }

    pub(crate) fn dims(&self) -> &[usize] {
        &self.signature.1
    }

    pub(crate) fn kind(&self) -> Kind {
        self.signature.0
    }
}

impl Recorder {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    fn recording(&self) -> MutexGuard<'_, Recording> {
        // Every change is whole before the lock goes.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A tensor that will be given.
    pub fn input(&self, engine: &Engine, name: &str, kind: Kind, dims: &[usize]) -> Tensor {
        let signature = (kind, dims.to_vec());
        let mut recording = self.recording();
        let id = recording.graph.value(signature.clone());
        recording.graph.inputs.push((name.to_owned(), id));
        Tensor::recorded(engine, Node { recorder: self.clone(), id, signature })
    }

    /// What was recorded, with these answers.
    ///
    /// # Errors
    ///
    /// When an answer belongs to another recording.
    pub fn finish(&self, outputs: &[(String, Tensor)]) -> Result<Graph, TensorError> {
        let mut recording = self.recording();
        for (name, tensor) in outputs {
            let id = recording.place(self, tensor)?;
            recording.graph.outputs.push((name.clone(), id));
        }
        Ok(std::mem::take(&mut recording.graph))
    }

    pub(crate) fn record(
        &self,
        op: Op,
        args: &[&Tensor],
        outs: Vec<Signature>,
        engine: &Engine,
    ) -> Result<Vec<Tensor>, TensorError> {
        let mut recording = self.recording();
        let args = args.iter().map(|arg| recording.place(self, arg)).collect::<Result<_, _>>()?;
        let tensor = |(id, signature): (ValueId, Signature)| {
            Tensor::recorded(engine, Node { recorder: self.clone(), id, signature })
        };
        let ids: Vec<ValueId> = outs.iter().map(|signature| recording.graph.value(signature.clone())).collect();
        recording.graph.steps.push(Step { op, args, outs: ids.clone() });
        Ok(ids.into_iter().zip(outs).map(tensor).collect())
    }
}

impl Recording {
    /// The value that a tensor is, as a constant where it is not of the graph.
    fn place(&mut self, recorder: &Recorder, tensor: &Tensor) -> Result<ValueId, TensorError> {
        let address = match tensor.value() {
            Value::Recorded(node) if Arc::ptr_eq(&node.recorder.0, &recorder.0) => return Ok(node.id),
            Value::Recorded(_) => return Err(TensorError::Recorded { operation: "another recording" }),
            Value::Stored(weight) => Arc::as_ptr(weight) as usize,
            Value::Dense(_) => 0,
        };
        if let Some(&id) = self.known.get(&address).filter(|_| address != 0) {
            return Ok(id);
        }
        let id = self.graph.value((tensor.kind(), tensor.dims().to_vec()));
        self.graph.constants.push((id, tensor.clone()));
        if address != 0 {
            self.known.insert(address, id);
        }
        Ok(id)
    }
}

impl Graph {
    fn value(&mut self, signature: Signature) -> ValueId {
        self.values.push(signature);
        self.values.len() - 1
    }

    /// The same in primitives, but for the fused operations that are to be kept.
    ///
    /// # Errors
    ///
    /// When an operation cannot be lowered.
    pub fn lower(&self, engine: &Engine, keep: impl Fn(&Op) -> bool) -> Result<Self, TensorError> {
        let mut graph = self.clone();
        // What a fused operation is made of may be fused in turn.
        while graph.steps.iter().any(|step| step.op.is_fused() && !keep(&step.op)) {
            graph = graph.lower_once(engine, &keep)?;
        }
        Ok(graph)
    }

    fn lower_once(&self, engine: &Engine, keep: &impl Fn(&Op) -> bool) -> Result<Self, TensorError> {
        let recorder = Recorder::new();
        let mut tensors: HashMap<ValueId, Tensor> = self.constants.iter().cloned().collect();
        for (name, id) in &self.inputs {
            let (kind, dims) = &self.values[*id];
            tensors.insert(*id, recorder.input(engine, name, *kind, dims));
        }
        for step in &self.steps {
            let args: Vec<&Tensor> = step.args.iter().filter_map(|id| tensors.get(id)).collect();
            let fused = step.op.is_fused() && !keep(&step.op);
            let outs = if fused { lower(&step.op, &args)? } else { apply(step.op.clone(), &args)? };
            tensors.extend(step.outs.iter().copied().zip(outs));
        }
        let outputs: Vec<_> =
            self.outputs.iter().filter_map(|(name, id)| Some((name.clone(), tensors.get(id)?.clone()))).collect();
        recorder.finish(&outputs)
    }
}
