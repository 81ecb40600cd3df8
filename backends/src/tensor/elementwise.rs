//! Operations that work row by row or element by element.

use crate::cpu::Cpu;

use super::{Activation, Engine, Op, RopeStyle, Tensor, TensorError, Weight, apply_one, shape};

/// Cosines and sines of the turns of some tokens, made by the caller: `[tokens, rotated / 2]` each.
#[derive(Clone, Debug, PartialEq)]
pub struct Angles {
    /// Cosines.
    pub cos: Vec<f32>,
    /// Sines.
    pub sin: Vec<f32>,
}

impl Tensor {
    /// The chosen rows, in that order.
    ///
    /// # Errors
    ///
    /// When a row is not there.
    pub fn rows(&self, engine: &Engine, rows: &[usize]) -> Result<Self, TensorError> {
        apply_one(engine, &Op::Rows { rows }, &[self])
    }

    /// `x / sqrt(mean(x^2) + eps) * weight`, row by row.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn rms_norm(&self, engine: &Engine, weight: &[f32], eps: f32) -> Result<Self, TensorError> {
        apply_one(engine, &Op::RmsNorm { weight, eps }, &[self])
    }

    /// Turns the heads of `[tokens, heads * head]` by their angles.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn rope(&self, engine: &Engine, angles: &Angles, head: usize, style: RopeStyle) -> Result<Self, TensorError> {
        apply_one(engine, &Op::Rope { angles, head, style }, &[self])
    }

    /// `activation(self) * up`.
    ///
    /// # Errors
    ///
    /// When the shapes differ.
    pub fn gated(&self, engine: &Engine, activation: Activation, up: &Self) -> Result<Self, TensorError> {
        apply_one(engine, &Op::Gated { activation }, &[self, up])
    }

    /// The sum of two tensors of one shape.
    ///
    /// # Errors
    ///
    /// When the shapes differ.
    pub fn add(&self, engine: &Engine, other: &Self) -> Result<Self, TensorError> {
        apply_one(engine, &Op::Add, &[self, other])
    }
}

pub(super) fn embedding(cpu: &Cpu, table: &Weight, ids: &[u32]) -> Result<Tensor, TensorError> {
    if let Some(&id) = ids.iter().find(|&&id| id as usize >= table.rows()) {
        return Err(TensorError::Index { operation: "embedding", found: id as usize, rows: table.rows() });
    }
    let mut out = vec![0.0; ids.len() * table.columns()];
    cpu.gather(table, ids, &mut out);
    Tensor::new(out, &[ids.len(), table.columns()])
}

pub(super) fn rows(x: &Tensor, rows: &[usize]) -> Result<Tensor, TensorError> {
    let (tokens, n) = x.matrix("rows")?;
    if let Some(&row) = rows.iter().find(|&&row| row >= tokens) {
        return Err(TensorError::Index { operation: "rows", found: row, rows: tokens });
    }
    let out = x.read(|x| rows.iter().flat_map(|row| &x[row * n..(row + 1) * n]).copied().collect())?;
    Tensor::new(out, &[rows.len(), n])
}

pub(super) fn rms_norm(cpu: &Cpu, x: &Tensor, weight: &[f32], eps: f32) -> Result<Tensor, TensorError> {
    let (_, n) = x.matrix("rms_norm")?;
    if weight.len() != n || n == 0 {
        return Err(shape("rms_norm", format!("[tokens, {}]", weight.len()), x.dims()));
    }
    let out = x.read(|x| {
        let mut out = vec![0.0; x.len()];
        cpu.rms_norm(x, weight, eps, &mut out);
        out
    })?;
    Tensor::new(out, x.dims())
}

pub(super) fn rope(x: &Tensor, angles: &Angles, head: usize, style: RopeStyle) -> Result<Tensor, TensorError> {
    let (tokens, n) = x.matrix("rope")?;
    let whole = tokens > 0 && head > 0 && n.is_multiple_of(head) && angles.cos.len().is_multiple_of(tokens);
    if !whole || angles.cos.len() != angles.sin.len() || angles.cos.len() / tokens * 2 > head || angles.cos.is_empty() {
        let expected = format!("[tokens, heads * {head}] with {} angles", angles.cos.len());
        return Err(shape("rope", expected, x.dims()));
    }
    let mut out = x.to_vec()?;
    crate::cpu::rope(&mut out, head, style, &angles.cos, &angles.sin, tokens);
    Tensor::new(out, x.dims())
}

pub(super) fn gated(cpu: &Cpu, activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor, TensorError> {
    same_shape("gated", gate, up)?;
    let out = gate.read(|gate| {
        up.read(|up| {
            let mut out = vec![0.0; up.len()];
            cpu.gated(activation, gate, up, &mut out);
            out
        })
    })??;
    Tensor::new(out, gate.dims())
}

pub(super) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor, TensorError> {
    same_shape("add", a, b)?;
    let out = a.read(|a| b.read(|b| a.iter().zip(b).map(|(a, b)| a + b).collect()))??;
    Tensor::new(out, a.dims())
}

fn same_shape(operation: &'static str, a: &Tensor, b: &Tensor) -> Result<(), TensorError> {
    if a.dims() == b.dims() { Ok(()) } else { Err(shape(operation, format!("{:?}", a.dims()), b.dims())) }
}
