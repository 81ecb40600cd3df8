//! What sequences carry through a layer from token to token, and the way through a pass row by row.
//!
//! Each row goes through by itself with what its own sequence carries, so that the rows of a pass may begin and continue
//! in any mixture.

use std::ops::Range;

use accel_backends::tensor::{Tensor, TensorError};

use crate::ModelError;
use crate::cache::{LayerState, Part, Row};
use crate::layers::attention::Pass;

/// What the sequences of a pass carry.
#[derive(Debug)]
pub struct Carries<'a> {
    name: &'a str,
    rows: &'a [Row],
    /// Of each row, and of that each tensor.
    tensors: Vec<Vec<Tensor>>,
}

impl<'a> Carries<'a> {
    /// What the rows carry so far; those at the beginning of their sequences the first values. `name` is for errors.
    ///
    /// # Errors
    ///
    /// When what is kept does not fit a row's past, or the first values cannot be made.
    pub fn of(
        name: &'a str,
        rows: &'a [Row],
        state: Option<&LayerState>,
        part: Part,
        first: impl Fn() -> Result<Vec<Tensor>, TensorError>,
    ) -> Result<Self, ModelError> {
        let tensors = rows.iter().map(|row| match state.map(|state| state.carries(row, part)).transpose()?.flatten() {
            Some(carried) => Ok(carried.to_vec()),
            None => first().map_err(ModelError::at(name)),
        });
        Ok(Self { name, rows, tensors: tensors.collect::<Result<_, ModelError>>()? })
    }

    /// Takes each row through an operation, given its tokens and what it carries at a place, that answers its results and
    /// what it carries then. The results of all rows, one after the other.
    ///
    /// # Errors
    ///
    /// When the operation fails.
    pub fn each(
        &mut self,
        place: usize,
        run: impl Fn(Range<usize>, &Tensor) -> Result<(Tensor, Tensor), TensorError>,
    ) -> Result<Tensor, ModelError> {
        let mut from = 0;
        let mut outs = Vec::with_capacity(self.rows.len());
        let mut each = || {
            for (row, tensors) in self.rows.iter().zip(&mut self.tensors).filter(|(row, _)| row.len > 0) {
                let (out, carried) = run(from..from + row.len, &tensors[place])?;
                tensors[place] = carried;
                outs.push(out);
                from += row.len;
            }
            Tensor::concat(&outs, 0)
        };
        each().map_err(ModelError::at(self.name))
    }

    /// The token before each: `[tokens, width]`, where the tensor at that place is the last one's, `[1, width]`.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn shifted(&mut self, place: usize, x: &Tensor) -> Result<Tensor, ModelError> {
        self.each(place, |tokens, before| {
            let own = x.narrow(0, tokens.start, tokens.len())?;
            let all = Tensor::concat(&[before.clone(), own], 0)?;
            Ok((all.narrow(0, 0, tokens.len())?, all.narrow(0, tokens.len(), 1)?))
        })
    }

    /// Keeps what the rows carry now.
    pub fn keep(self, state: Option<&mut LayerState>, part: Part) {
        let Some(state) = state else { return };
        for (row, tensors) in self.rows.iter().zip(self.tensors) {
            state.carry(row, part, tensors);
        }
    }
}

/// x: `[tokens, width]` with padding put to 0.
///
/// # Errors
///
/// When the shape does not fit.
pub fn without_padding(x: &Tensor, pass: &Pass<'_>) -> Result<Tensor, TensorError> {
    let seen = pass.rows.iter().zip(pass.absent).flat_map(|(row, absent)| {
        (row.past..row.past + row.len).map(|position| if absent.get(position) == Some(&true) { 0.0 } else { 1.0 })
    });
    let seen: Vec<f32> = seen.collect();
    let tokens = seen.len();
    if seen.iter().all(|&seen| seen == 1.0) {
        Ok(x.clone())
    } else {
        x.mul(&Tensor::new(x.engine(), seen, &[tokens, 1])?)
    }
}
