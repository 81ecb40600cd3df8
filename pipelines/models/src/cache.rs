//! The state that a forward pass takes and leaves: keys and values of the positions so far.
//!
//! It is an explicit argument, so that a stage, a test or another peer can hold it. Layers are counted over the whole
//! model, sequences by slot.

use accel_backends::tensor::{KeysValues, Tensor};

use crate::ModelError;

/// Some tokens of one sequence in a forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// How many tokens.
    pub len: usize,
    /// How many positions of the sequence came before.
    pub past: usize,
    /// The sequence.
    pub slot: usize,
    /// How many positions the sequence began with, its prompt. What depends on a length, as some ropes do, takes the
    /// longer of this and the positions up to a token, so that chunks and resumption change nothing.
    pub horizon: usize,
}

/// The state of all layers.
#[derive(Clone, Debug, Default)]
pub struct State {
    layers: Vec<LayerState>,
    absent: Vec<Vec<bool>>,
}

/// The state of one layer: keys and values of each slot.
#[derive(Clone, Debug, Default)]
pub struct LayerState {
    slots: Vec<Kept>,
}

#[derive(Clone, Debug, Default)]
struct Kept {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl State {
    /// The state of so many layers, without sequences.
    pub fn new(layers: usize) -> Self {
        Self { layers: vec![LayerState::default(); layers], absent: Vec::new() }
    }

    /// The state of a layer.
    pub fn layer(&mut self, layer: usize) -> Option<&mut LayerState> {
        self.layers.get_mut(layer)
    }

    /// Says which positions of a sequence are padding, that no token sees; those beyond the end are seen.
    pub fn hide(&mut self, slot: usize, absent: Vec<bool>) {
        if self.absent.len() <= slot {
            self.absent.resize_with(slot + 1, Vec::new);
        }
        self.absent[slot] = absent;
    }

    /// Which positions of a sequence no token sees.
    pub fn absent(&self, slot: usize) -> &[bool] {
        self.absent.get(slot).map_or(&[], Vec::as_slice)
    }

    /// Forgets a sequence and gives its memory back.
    pub fn clear(&mut self, slot: usize) {
        if let Some(absent) = self.absent.get_mut(slot) {
            *absent = Vec::new();
        }
        for kept in self.layers.iter_mut().filter_map(|layer| layer.slots.get_mut(slot)) {
            *kept = Kept::default();
        }
    }
}

impl LayerState {
    /// Keeps the keys and values of a pass: `[tokens, width]` each, the rows one after the other.
    ///
    /// Positions from a row's `past` on are overwritten.
    ///
    /// # Errors
    ///
    /// When a row's past is not kept.
    pub fn keep(&mut self, rows: &[Row], keys: &Tensor, values: &Tensor) -> Result<(), ModelError> {
        let width = keys.dims().last().copied().unwrap_or(0);
        let mut first = 0;
        for row in rows {
            if self.slots.len() <= row.slot {
                self.slots.resize_with(row.slot + 1, Kept::default);
            }
            let kept = &mut self.slots[row.slot];
            if kept.keys.len() < row.past * width {
                let found = format!("{} kept", kept.keys.len() / width.max(1));
                return Err(ModelError::State {
                    place: "kv cache",
                    expected: format!("{} positions", row.past),
                    found,
                });
            }
            let range = first * width..(first + row.len) * width;
            for (kept, new) in [(&mut kept.keys, keys), (&mut kept.values, values)] {
                kept.truncate(row.past * width);
                new.read(|new| kept.extend_from_slice(&new[range.clone()])).map_err(ModelError::at("kv cache"))?;
            }
            first += row.len;
        }
        Ok(())
    }

    /// What is kept of each row's sequence, in the order of the rows, and which of its positions are absent.
    pub fn kept<'a>(&'a self, rows: &[Row], absent: &'a [Vec<bool>]) -> Vec<KeysValues<'a>> {
        let kept = |(row, absent): (&Row, &'a Vec<bool>)| {
            let (keys, values) =
                self.slots.get(row.slot).map_or((&[][..], &[][..]), |kept| (&kept.keys[..], &kept.values[..]));
            KeysValues { keys, values, absent }
        };
        rows.iter().zip(absent).map(kept).collect()
    }
}
