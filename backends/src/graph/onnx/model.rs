//! A model in the making: names, constants, and the order of it all.

use std::collections::{HashMap, HashSet};

use super::nodes::{self, Call};
use super::output_name;
use super::proto::{
    DimensionProto, FLOAT, GraphProto, INT64, LOCATION_EXTERNAL, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use super::{External, IR_VERSION, MODEL_BYTES_MAX, OPSET, OnnxError};
use crate::graph::{Graph, ValueId};
use crate::tensor::op::Signature;
use crate::tensor::{Kind, Tensor};

/// Constants up to this are in the model once, however often they are used: scalars, shapes, axes.
const SHARED_BYTES_MAX: usize = 64;

#[derive(Default)]
pub(super) struct Model {
    graph: GraphProto,
    /// Names that are in use.
    taken: HashSet<String>,
    fresh: usize,
    /// Small constants, by type, shape and bytes.
    shared: HashMap<(i32, Vec<usize>, Vec<u8>), String>,
    inline_bytes: u64,
}

impl Model {
    pub(super) fn of(graph: &Graph, external: impl Fn(&Tensor) -> Option<External>) -> Result<Self, OnnxError> {
        let mut model = Self::default();
        let mut names: HashMap<ValueId, String> = HashMap::new();
        for (name, id) in &graph.inputs {
            model.take(name)?;
            model.graph.input.push(value_info(name, &graph.values[*id]));
            names.insert(*id, name.clone());
        }
        let copies = model.name_outputs(graph, &mut names)?;
        for (id, tensor) in &graph.constants {
            let name = match external(tensor) {
                Some(external) => model.external(tensor, &external)?,
                None => model.inline(tensor)?,
            };
            names.insert(*id, name);
        }
        for step in &graph.steps {
            for id in &step.outs {
                names.entry(*id).or_insert_with(|| model.fresh());
            }
            let value = |&id: &ValueId| {
                let name = names.get(&id).ok_or(OnnxError::Missing(id))?;
                Ok((name.as_str(), &graph.values[id]))
            };
            let args = step.args.iter().map(value).collect::<Result<_, OnnxError>>()?;
            let outs = step.outs.iter().map(value).collect::<Result<_, OnnxError>>()?;
            nodes::write(&mut model, &Call { op: &step.op, args, outs })?;
        }
        for (name, id) in copies {
            let from = names.get(&id).ok_or(OnnxError::Missing(id))?;
            model.node("Identity", &[from], &[&name]);
        }
        Ok(model)
    }

    pub(super) fn finish(mut self) -> ModelProto {
        self.graph.name = "accel".to_owned();
        ModelProto {
            ir_version: IR_VERSION,
            producer_name: "accel".to_owned(),
            producer_version: env!("CARGO_PKG_VERSION").to_owned(),
            graph: Some(self.graph),
            opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: OPSET }],
        }
    }

    /// Results of steps get the names of outputs at once; what has another name already is answered as a copy. Values
    /// of ONNX have one space of names, so an output that is called as an input is gets one of its own.
    fn name_outputs(
        &mut self,
        graph: &Graph,
        names: &mut HashMap<ValueId, String>,
    ) -> Result<Vec<(String, ValueId)>, OnnxError> {
        let computed: HashSet<ValueId> = graph.steps.iter().flat_map(|step| step.outs.iter().copied()).collect();
        let mut copies = Vec::new();
        for (name, id) in &graph.outputs {
            let name = output_name(graph, name);
            self.take(&name)?;
            self.graph.output.push(value_info(&name, &graph.values[*id]));
            if computed.contains(id) && !names.contains_key(id) {
                names.insert(*id, name);
            } else {
                copies.push((name, *id));
            }
        }
        Ok(copies)
    }

    fn take(&mut self, name: &str) -> Result<(), OnnxError> {
        let free = !name.is_empty() && self.taken.insert(name.to_owned());
        if free { Ok(()) } else { Err(OnnxError::Name(name.to_owned())) }
    }

    /// A name that nothing has yet.
    pub(super) fn fresh(&mut self) -> String {
        loop {
            let name = format!("v{}", self.fresh);
            self.fresh += 1;
            if self.taken.insert(name.clone()) {
                return name;
            }
        }
    }

    pub(super) fn node(&mut self, op_type: &str, inputs: &[&str], outputs: &[&str]) -> &mut NodeProto {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let node = NodeProto {
            input: owned(inputs),
            output: owned(outputs),
            name: format!("{op_type}_{}", self.graph.node.len()),
            op_type: op_type.to_owned(),
            attribute: Vec::new(),
        };
        self.graph.node.push_mut(node)
    }

    /// The name of a constant of floats.
    pub(super) fn floats(&mut self, dims: &[usize], values: &[f32]) -> Result<String, OnnxError> {
        self.constant(FLOAT, dims, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// The name of a constant of whole numbers.
    pub(super) fn wholes(&mut self, dims: &[usize], values: &[i64]) -> Result<String, OnnxError> {
        self.constant(INT64, dims, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// The name of a vector of sizes or places.
    pub(super) fn sizes(&mut self, values: &[usize]) -> Result<String, OnnxError> {
        self.wholes(&[values.len()], &whole(values))
    }

    fn inline(&mut self, tensor: &Tensor) -> Result<String, OnnxError> {
        let bytes = tensor.count() as u64 * if tensor.kind() == Kind::Float { 4 } else { 8 };
        // Before anything is unpacked: what does not fit is probably much larger than memory likes.
        self.inline_bytes = self.inline_bytes.saturating_add(bytes);
        if self.inline_bytes > MODEL_BYTES_MAX {
            return Err(OnnxError::TooLarge(self.inline_bytes));
        }
        match tensor.kind() {
            Kind::Float => self.floats(tensor.dims(), &tensor.to_vec()?),
            Kind::Whole => self.wholes(tensor.dims(), &tensor.to_whole()?),
        }
    }

    fn constant(&mut self, data_type: i32, dims: &[usize], bytes: Vec<u8>) -> Result<String, OnnxError> {
        let key = (bytes.len() <= SHARED_BYTES_MAX).then(|| (data_type, dims.to_vec(), bytes.clone()));
        if let Some(name) = key.as_ref().and_then(|key| self.shared.get(key)) {
            return Ok(name.clone());
        }
        let name = self.fresh();
        self.graph.initializer.push(TensorProto {
            dims: whole(dims),
            data_type,
            name: name.clone(),
            raw_data: Some(bytes),
            ..TensorProto::default()
        });
        if let Some(key) = key {
            self.shared.insert(key, name.clone());
        }
        Ok(name)
    }

    fn external(&mut self, tensor: &Tensor, external: &External) -> Result<String, OnnxError> {
        external.check(tensor)?;
        let entry = |key: &str, value: String| StringStringEntryProto { key: key.to_owned(), value };
        let name = self.fresh();
        self.graph.initializer.push(TensorProto {
            dims: whole(tensor.dims()),
            data_type: FLOAT,
            name: name.clone(),
            external_data: vec![
                entry("location", external.file.clone()),
                entry("offset", external.offset.to_string()),
                entry("length", external.bytes.to_string()),
            ],
            data_location: Some(LOCATION_EXTERNAL),
            ..TensorProto::default()
        });
        Ok(name)
    }
}

/// Sizes as ONNX writes them. None is so large that it would not fit.
pub(super) fn whole(values: &[usize]) -> Vec<i64> {
    values.iter().map(|&value| value as i64).collect()
}

/// The number of a kind of elements.
pub(super) fn element_type(kind: Kind) -> i32 {
    match kind {
        Kind::Float => FLOAT,
        Kind::Whole => INT64,
    }
}

fn value_info(name: &str, (kind, dims): &Signature) -> ValueInfoProto {
    let dim = whole(dims).into_iter().map(|size| DimensionProto { dim_value: Some(size) }).collect();
    let tensor = TensorTypeProto { elem_type: element_type(*kind), shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto { name: name.to_owned(), r#type: Some(TypeProto { tensor_type: Some(tensor) }) }
}
