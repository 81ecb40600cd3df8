//! The state that a forward pass takes and leaves: keys and values of the positions so far, and what else layers carry.
//!
//! It is an explicit argument, so that a stage, a test or another peer can hold it. Layers are counted over the whole
//! model, sequences by slot. Keys and values lie in pages, so that a sequence grows without moving; while a pass is
//! recorded they are tensors of the graph instead.

use accel_backends::tensor::{Keys, PAGE, Tensor};

use crate::ModelError;
use crate::layers::rope::Place;
use crate::stage::Sequences;

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

impl Row {
    /// Whole sequences, each from its beginning.
    pub fn whole(lengths: impl IntoIterator<Item = usize>) -> Vec<Self> {
        let row = |(slot, len)| Self { len, past: 0, slot, horizon: len };
        lengths.into_iter().enumerate().map(row).collect()
    }
}

/// The state of all layers.
#[derive(Debug, Default)]
pub struct State {
    layers: Vec<LayerState>,
    slots: Vec<Slot>,
    /// What is kept of the sequences by the stages that work out layers elsewhere.
    stages: Vec<Box<dyn Sequences>>,
}

/// What all layers know of one sequence.
#[derive(Clone, Debug, Default)]
struct Slot {
    /// Positions that no token sees.
    absent: Vec<bool>,
    /// Positions that were read.
    length: usize,
    /// The type of its last token, where types were given.
    last_type: Option<i64>,
    /// Where its first tokens are, where that is more than how many came before.
    places: Option<Places>,
    /// The logarithm of what it weighs among sequences that are read together.
    weight: f32,
}

/// Where the tokens of a sequence are.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// Of each of its first tokens.
    pub first: Vec<Place>,
    /// Those that follow are as far along every axis as tokens came before them, and this much further.
    pub further: i64,
}

/// The state of one layer.
#[derive(Clone, Debug, Default)]
pub struct LayerState {
    slots: Vec<Kept>,
    /// Of each slot what the layer's mixer and its feed-forward part carry from token to token.
    carries: Vec<[Carried; 2]>,
    across: Vec<Option<Across>>,
}

/// Which part of a layer carries something from token to token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What mixes tokens.
    Mixer,
    /// What each goes through.
    Ffn,
}

/// What a part of a layer carries from token to token.
#[derive(Clone, Debug, Default)]
struct Carried {
    /// How many positions it comes from: it cannot go back to an earlier one.
    length: usize,
    tensors: Vec<Tensor>,
}

/// Keys and values of what a sequence is made from, for attention across.
#[derive(Clone, Debug)]
pub struct Across {
    /// `[positions, width]`
    pub keys: Tensor,
    /// `[positions, width]`
    pub values: Tensor,
    /// Which positions no token sees.
    pub absent: Vec<bool>,
}

/// Keys and values of one sequence in one layer.
#[derive(Clone, Debug, Default)]
struct Kept {
    length: usize,
    keys: Vec<Box<[f32]>>,
    values: Vec<Box<[f32]>>,
    recorded: Option<(Tensor, Tensor)>,
}

impl State {
    /// The state of so many layers, without sequences.
    pub fn new(layers: usize) -> Self {
        Self { layers: vec![LayerState::default(); layers], ..Self::default() }
    }

    /// The state of so many layers, some of which stages work out.
    pub(crate) fn with_stages(layers: usize, stages: Vec<Box<dyn Sequences>>) -> Self {
        Self { stages, ..Self::new(layers) }
    }

    /// What a stage keeps.
    pub fn stage(&mut self, stage: usize) -> Option<&mut dyn Sequences> {
        Some(&mut **self.stages.get_mut(stage)?)
    }

    /// The state of a layer.
    pub fn layer(&mut self, layer: usize) -> Option<&mut LayerState> {
        self.layers.get_mut(layer)
    }

    fn slot(&mut self, slot: usize) -> &mut Slot {
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, Slot::default);
        }
        &mut self.slots[slot]
    }

    /// Says which positions of a sequence are padding, that no token sees; those beyond the end are seen.
    pub fn hide(&mut self, slot: usize, absent: Vec<bool>) {
        self.slot(slot).absent = absent;
    }

    /// Which positions of a sequence no token sees.
    pub fn absent(&self, slot: usize) -> &[bool] {
        self.slots.get(slot).map_or(&[], |slot| slot.absent.as_slice())
    }

    /// Says that the tokens of a pass were read.
    pub fn advance(&mut self, rows: &[Row]) {
        for row in rows {
            self.slot(row.slot).length = row.past + row.len;
        }
    }

    /// Says what type the last token of a sequence is.
    pub fn set_last_type(&mut self, slot: usize, last_type: i64) {
        self.slot(slot).last_type = Some(last_type);
    }

    /// The type of each sequence's last token; none where types were not given.
    pub fn last_types(&self) -> Option<Vec<i64>> {
        let types: Option<Vec<i64>> = self.slots.iter().map(|slot| slot.last_type).collect();
        types.filter(|types| !types.is_empty())
    }

    /// Says the logarithm of what a sequence weighs among those that are read together.
    pub fn set_weight(&mut self, slot: usize, weight: f32) {
        self.slot(slot).weight = weight;
    }

    /// The logarithm of what each sequence weighs among those that are read together.
    pub fn weights(&self) -> Vec<f32> {
        self.slots.iter().map(|slot| slot.weight).collect()
    }

    /// Says where the tokens of a sequence are.
    pub fn set_places(&mut self, slot: usize, places: Places) {
        self.slot(slot).places = Some(places);
    }

    /// Where the tokens of a pass are, one row after the other; none where that was not said of any.
    pub fn places(&self, rows: &[Row]) -> Option<Vec<Place>> {
        let of = |row: &Row| self.slots.get(row.slot).and_then(|slot| slot.places.as_ref());
        if rows.iter().all(|row| of(row).is_none()) {
            return None;
        }
        let place = |places: Option<&Places>, position: usize| match places {
            None => [position as i64; 3],
            Some(places) => {
                let later = [(position as i64).saturating_add(places.further); 3];
                places.first.get(position).copied().unwrap_or(later)
            }
        };
        let all = rows.iter().flat_map(|row| (row.past..row.past + row.len).map(move |at| place(of(row), at)));
        Some(all.collect())
    }

    /// The rows that read one more token of each sequence.
    pub fn next_rows(&self) -> Vec<Row> {
        let row = |(slot, kept): (usize, &Slot)| Row { len: 1, past: kept.length, slot, horizon: kept.length };
        self.slots.iter().enumerate().map(row).collect()
    }

    /// Makes of each slot a copy of the one that is named for it: slot `i` becomes what `from[i]` was, and other slots
    /// are gone. Beams of a search go on from one another so.
    pub fn reorder(&mut self, from: &[usize]) {
        reorder(&mut self.slots, from);
        self.stages.iter_mut().for_each(|stage| stage.reorder(from));
        for layer in &mut self.layers {
            reorder(&mut layer.slots, from);
            reorder(&mut layer.carries, from);
            reorder(&mut layer.across, from);
        }
    }

    /// Forgets a sequence and gives its memory back.
    pub fn clear(&mut self, of: usize) {
        if let Some(slot) = self.slots.get_mut(of) {
            *slot = Slot::default();
        }
        self.stages.iter_mut().for_each(|stage| stage.clear(of));
        for layer in &mut self.layers {
            if let Some(kept) = layer.slots.get_mut(of) {
                *kept = Kept::default();
            }
            if let Some(carries) = layer.carries.get_mut(of) {
                *carries = <[Carried; 2]>::default();
            }
            if let Some(across) = layer.across.get_mut(of) {
                *across = None;
            }
        }
    }
}

impl LayerState {
    fn kept_of(&mut self, slot: usize) -> &mut Kept {
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, Kept::default);
        }
        &mut self.slots[slot]
    }

    /// Keeps the keys and values of a pass: `[tokens, width]` each, the rows one after the other.
    ///
    /// Positions from a row's `past` on are overwritten.
    ///
    /// # Errors
    ///
    /// When a row's past is not kept.
    pub fn keep(&mut self, rows: &[Row], keys: &Tensor, values: &Tensor) -> Result<(), ModelError> {
        let mut first = 0;
        for row in rows {
            let kept = self.kept_of(row.slot);
            if kept.length < row.past {
                return Err(not_kept(row.past, kept.length));
            }
            kept.length = row.past + row.len;
            for (pages, new) in [(&mut kept.keys, keys), (&mut kept.values, values)] {
                let width = new.dims().last().copied().unwrap_or(0);
                pages.truncate(kept.length.div_ceil(PAGE));
                while pages.len() < kept.length.div_ceil(PAGE) {
                    pages.push(vec![0.0; PAGE * width].into_boxed_slice());
                }
                let write = |new: &[f32]| {
                    for place in 0..row.len {
                        let position = row.past + place;
                        let to = &mut pages[position / PAGE][position % PAGE * width..][..width];
                        to.copy_from_slice(&new[(first + place) * width..][..width]);
                    }
                };
                new.read(write).map_err(ModelError::at("kv cache"))?;
            }
            first += row.len;
        }
        Ok(())
    }

    /// The kept keys and values of a sequence.
    pub fn kept(&self, slot: usize) -> (Keys<'_>, Keys<'_>) {
        let pages = |of: fn(&Kept) -> &Vec<Box<[f32]>>| {
            Keys::Pages(
                self.slots.get(slot).map_or_else(Vec::new, |kept| of(kept).iter().map(|page| &page[..]).collect()),
            )
        };
        (pages(|kept| &kept.keys), pages(|kept| &kept.values))
    }

    /// The keys that are kept of the positions before a row, `[past, width]`; `like` are keys too, `[.., width]`.
    ///
    /// # Errors
    ///
    /// When they are not kept.
    pub fn past_keys(&self, row: &Row, like: &Tensor) -> Result<Tensor, ModelError> {
        let (past, width) = (row.past, like.dims().last().copied().unwrap_or(0));
        let missing = || not_kept(past, self.slots.get(row.slot).map_or(0, |kept| kept.length));
        let kept = self.slots.get(row.slot).ok_or_else(missing)?;
        let at = || ModelError::at("kv cache");
        if let Some((keys, _)) = &kept.recorded {
            return keys.narrow(0, 0, past).map_err(at());
        }
        let keys: Vec<f32> = kept.keys.iter().flat_map(|page| page.iter().copied()).take(past * width).collect();
        if keys.len() < past * width || kept.length < past {
            return Err(missing());
        }
        Tensor::new(like.engine(), keys, &[past, width]).map_err(at())
    }

    /// Keeps the keys and values of a pass that is recorded, and answers all of each row's: `[past + len, width]`.
    ///
    /// # Errors
    ///
    /// When a row's past is not kept.
    pub fn keep_recorded(
        &mut self,
        rows: &[Row],
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<Vec<(Tensor, Tensor)>, ModelError> {
        let mut first = 0;
        let mut all = Vec::with_capacity(rows.len());
        for row in rows {
            let kept = self.kept_of(row.slot);
            let past = match &kept.recorded {
                Some((keys, values)) if keys.dims()[0] >= row.past => Some((keys, values)),
                None if row.past == 0 => None,
                other => return Err(not_kept(row.past, other.as_ref().map_or(0, |(keys, _)| keys.dims()[0]))),
            };
            let joined = |new: &Tensor, past: Option<&Tensor>| {
                let new = new.narrow(0, first, row.len)?;
                match past {
                    Some(past) => Tensor::concat(&[past.narrow(0, 0, row.past)?, new], 0),
                    None => Ok(new),
                }
            };
            let keys = joined(keys, past.map(|past| past.0)).map_err(ModelError::at("kv cache"))?;
            let values = joined(values, past.map(|past| past.1)).map_err(ModelError::at("kv cache"))?;
            kept.recorded = Some((keys.clone(), values.clone()));
            all.push((keys, values));
            first += row.len;
        }
        Ok(all)
    }

    /// What a part carries from the tokens before a row; none at the beginning of its sequence.
    ///
    /// # Errors
    ///
    /// When it comes from another number of positions than the row's past.
    pub fn carries(&self, row: &Row, part: Part) -> Result<Option<&[Tensor]>, ModelError> {
        let carried = self.carries.get(row.slot).map(|parts| &parts[part as usize]);
        match carried.filter(|carried| !carried.tensors.is_empty()) {
            _ if row.past == 0 => Ok(None),
            Some(carried) if carried.length == row.past => Ok(Some(&carried.tensors)),
            carried => Err(not_kept(row.past, carried.map_or(0, |carried| carried.length))),
        }
    }

    /// Keeps what a part carries from a row on.
    pub fn carry(&mut self, row: &Row, part: Part, tensors: Vec<Tensor>) {
        if self.carries.len() <= row.slot {
            self.carries.resize_with(row.slot + 1, Default::default);
        }
        self.carries[row.slot][part as usize] = Carried { length: row.past + row.len, tensors };
    }

    /// What a sequence is made from.
    pub fn across(&self, slot: usize) -> Option<&Across> {
        self.across.get(slot).and_then(Option::as_ref)
    }

    /// Keeps what a sequence is made from.
    pub fn keep_across(&mut self, slot: usize, across: Across) {
        if self.across.len() <= slot {
            self.across.resize_with(slot + 1, || None);
        }
        self.across[slot] = Some(across);
    }

    /// Every tensor of a graph that the layer keeps of a sequence, to be exchanged for another of its shape.
    pub fn tensors_mut(&mut self, slot: usize) -> Vec<&mut Tensor> {
        let mut all = Vec::new();
        if let Some((keys, values)) = self.slots.get_mut(slot).and_then(|kept| kept.recorded.as_mut()) {
            all.extend([keys, values]);
        }
        all.extend(self.carries.get_mut(slot).into_iter().flatten().flat_map(|carried| &mut carried.tensors));
        all
    }
}

/// What is used once is moved; only what goes on several times is copied.
fn reorder<T: Clone + Default>(slots: &mut Vec<T>, from: &[usize]) {
    if slots.is_empty() {
        return;
    }
    let mut uses = vec![0_usize; slots.len()];
    for &slot in from {
        if let Some(uses) = uses.get_mut(slot) {
            *uses += 1;
        }
    }
    let mut take = |&slot: &usize| match (slots.get_mut(slot), uses.get_mut(slot)) {
        (Some(kept), Some(1)) => std::mem::take(kept),
        (Some(kept), Some(uses)) => {
            *uses -= 1;
            kept.clone()
        }
        _ => T::default(),
    };
    let taken = from.iter().map(&mut take).collect();
    *slots = taken;
}

fn not_kept(expected: usize, found: usize) -> ModelError {
    ModelError::State { place: "kv cache", expected: format!("{expected} positions"), found: format!("{found} kept") }
}
