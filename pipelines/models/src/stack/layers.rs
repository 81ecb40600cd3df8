//! The layers of a stack, those that are here and those that others work out.

use std::ops::Range;
use std::sync::Arc;

use accel_backends::tensor::Tensor;

use super::Reading;
use super::layer::Layer;
use crate::ModelError;
use crate::cache::State;
use crate::layers::attention::Pass;
use crate::layers::bias::Bias;
use crate::layers::carry::without_padding;
use crate::layers::moe::Experts;
use crate::layers::ngrams::Ngrams;
use crate::layers::relative::Distances;
use crate::layers::rope::{Place, Rope};
use crate::rules::Loader;
use crate::spec::{BiasSpec, FfnSpec, LayerSpec, MixerSpec, StackSpec};
use crate::stage::{self, Stage, StagePass};
use crate::usage::{Routed, Watched};

/// Layers with their weights, as far as they are here.
#[derive(Debug)]
pub struct Layers {
    spec: StackSpec,
    ropes: Vec<Rope>,
    bias: Bias,
    distances: Option<Distances>,
    ngrams: Option<Ngrams>,
    layers: Vec<Option<Layer>>,
    stages: Vec<(Range<usize>, Arc<dyn Stage>)>,
    /// Who hears what routers choose, here and at stages.
    routed: Option<Arc<dyn Routed>>,
}

/// Layers one after the other that are in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// They are here.
    Here(Range<usize>),
    /// The stage of that number works them out.
    There(usize),
}

impl Layers {
    /// Reads the layers that the loader is to read.
    ///
    /// # Errors
    ///
    /// When their weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: StackSpec) -> Result<Self, ModelError> {
        let ropes = spec.ropes.iter().map(|rope| Rope::load(loader, rope)).collect::<Result<_, _>>()?;
        let bias = Bias::load(loader, &spec.bias)?;
        let distances = match &spec.bias {
            BiasSpec::Vectors(distances) => Some(Distances::load(loader, distances, spec.hidden)?),
            _ => None,
        };
        let ngrams = spec.embed.ngrams.as_ref().map(|ngrams| Ngrams::load(loader, ngrams, spec.hidden)).transpose()?;
        let layer = |(number, layer)| {
            loader.has_layer(number).then(|| Layer::load(loader, number, layer, spec.hidden)).transpose()
        };
        let layers = spec.layers.iter().enumerate().map(layer).collect::<Result<_, _>>()?;
        Ok(Self { spec, ropes, bias, distances, ngrams, layers, stages: Vec::new(), routed: None })
    }

    /// What the stack is made of.
    pub fn spec(&self) -> &StackSpec {
        &self.spec
    }

    /// A state without sequences.
    pub fn state(&self) -> State {
        State::with_stages(self.layers.len(), self.stages.iter().map(|(_, stage)| stage.begin()).collect())
    }

    /// Has somebody else work out a range of layers.
    pub fn set_stage(&mut self, range: Range<usize>, stage: Arc<dyn Stage>) {
        self.layers[range.clone()].iter_mut().for_each(|layer| *layer = None);
        self.stages.push((range, stage));
        self.stages.sort_by_key(|(range, _)| range.start);
    }

    /// Whether somebody else works out some layers.
    pub fn has_stages(&self) -> bool {
        !self.stages.is_empty()
    }

    /// Where the layers of a range are, in their order.
    ///
    /// # Errors
    ///
    /// When some are nowhere, or a stage has some of the range and others beside.
    pub fn segments(&self, range: Range<usize>) -> Result<Vec<Segment>, ModelError> {
        let mut segments = Vec::new();
        let mut number = range.start;
        while number < range.end {
            let is_here = |number: &usize| self.layers.get(*number).is_some_and(Option::is_some);
            let here = (number..range.end).take_while(is_here).count();
            if here > 0 {
                segments.push(Segment::Here(number..number + here));
                number += here;
                continue;
            }
            let stage = self.stages.iter().position(|(of, _)| of.start == number && of.end <= range.end);
            let stage = stage.ok_or_else(|| self.missing(number))?;
            segments.push(Segment::There(stage));
            number = self.stages[stage].0.end;
        }
        Ok(segments)
    }

    fn missing(&self, number: usize) -> ModelError {
        if number < self.layers.len() {
            return ModelError::Elsewhere { part: format!("layer {number}"), reason: "nobody has it".into() };
        }
        let expected = format!("a layer below {}", self.layers.len());
        ModelError::State { place: "layers", expected, found: number.to_string() }
    }

    /// A range of layers, for tokens that are at these places, one row after the other. x: `[tokens, hidden]` to the same
    /// shape.
    ///
    /// # Errors
    ///
    /// When the rows do not fit `x` or the state, or a stage fails.
    pub fn forward(
        &self,
        range: Range<usize>,
        x: Tensor,
        reading: &Reading<'_>,
        places: Option<&[Place]>,
        mut state: Option<&mut State>,
    ) -> Result<Tensor, ModelError> {
        let mut x = x;
        for segment in self.segments(range)? {
            x = match segment {
                Segment::Here(range) => self.here(range, x, reading, places, state.as_deref_mut())?,
                Segment::There(number) => self.there(number, x, reading, state.as_deref_mut())?,
            };
        }
        Ok(x)
    }

    /// Has a stage work, and waits for it.
    fn there(
        &self,
        number: usize,
        x: Tensor,
        reading: &Reading<'_>,
        state: Option<&mut State>,
    ) -> Result<Tensor, ModelError> {
        let missing = || self.missing(self.stages.get(number).map_or(usize::MAX, |(range, _)| range.start));
        let (_, stage) = self.stages.get(number).ok_or_else(missing)?;
        let wanted = (0..x.dims().first().copied().unwrap_or(0)).collect();
        let (absent, keeps) = (reading.absent_of(state.as_deref()), state.is_some());
        let (rows, source, routed) = (reading.rows.to_vec(), reading.source.cloned(), self.routed.clone());
        let pass = StagePass { rows, x, wanted, absent, source, keeps, routed };
        match state {
            Some(state) => stage::wait(state.stage(number).ok_or_else(missing)?, pass),
            None => stage::wait(&mut *stage.begin(), pass),
        }
    }

    /// A range of layers that are here.
    fn here(
        &self,
        range: Range<usize>,
        x: Tensor,
        reading: &Reading<'_>,
        places: Option<&[Place]>,
        mut state: Option<&mut State>,
    ) -> Result<Tensor, ModelError> {
        let engine = x.engine().clone();
        let rows = reading.rows;
        let styles = self.spec.ropes.iter().map(|rope| rope.style);
        let angles =
            self.ropes.iter().zip(styles).map(|(rope, style)| Ok((rope.angles(&engine, rows, places)?, style)));
        let angles = angles.collect::<Result<Vec<_>, ModelError>>()?;
        let absent = reading.absent_of(state.as_deref());
        let bias = self.bias.of(&engine, rows, &absent, self.spec.causal)?;
        let pass = Pass {
            rows,
            causal: self.spec.causal,
            absent: &absent,
            angles: &angles,
            bias: &bias,
            distances: self.distances.as_ref(),
            source: reading.source,
        };
        let mut x = x;
        if self.spec.embed.blank_padding && range.start == 0 {
            x = without_padding(&x, &pass).map_err(ModelError::at("embed"))?;
        }
        for number in range {
            let layer = self.layers.get(number).and_then(Option::as_ref).ok_or_else(|| self.missing(number))?;
            let state = match &mut state {
                Some(state) => Some(state.layer(number).ok_or_else(|| self.missing(number))?),
                None => None,
            };
            let made = layer.forward(x.clone(), &pass, state)?;
            x = match self.ngrams.as_ref().filter(|_| number == 0) {
                Some(ngrams) => ngrams.forward(&x, &made, &pass)?,
                None => made,
            };
        }
        Ok(x)
    }

    /// Has somebody else work out the experts of all layers that have any.
    pub fn set_experts(&mut self, experts: &Arc<dyn Experts>) {
        let mixtures = self.layers.iter_mut().flatten().filter_map(Layer::mixture_mut);
        mixtures.for_each(|moe| moe.set_experts(experts.clone()));
    }

    /// Has the routers of all layers say what they choose; `first` is the number of this stack's first layer in the model.
    pub fn watch_experts(&mut self, first: usize, routed: Option<&Arc<dyn Routed>>) {
        self.routed = routed.cloned();
        for (number, layer) in self.layers.iter_mut().enumerate() {
            if let Some(moe) = layer.as_mut().and_then(Layer::mixture_mut) {
                moe.watch(routed.map(|routed| Watched { routed: routed.clone(), layer: first + number }));
            }
        }
    }

    /// The layers that are here.
    fn specs_here(&self) -> impl Iterator<Item = &LayerSpec> {
        self.spec.layers.iter().zip(&self.layers).filter_map(|(spec, layer)| layer.as_ref().map(|_| spec))
    }

    /// Bytes of keys and values that one position takes here.
    pub fn position_bytes(&self) -> u64 {
        let width = |layer: &LayerSpec| match &layer.mixer {
            MixerSpec::Attention(attention) => 2 * 4 * (attention.kv_heads * attention.head) as u64,
            MixerSpec::Latent(latent) => 4 * (latent.heads * (latent.plain + latent.turned + latent.value_head)) as u64,
            MixerSpec::Across(_) => 0,
            MixerSpec::Mamba(_) | MixerSpec::Mamba2(_) | MixerSpec::TimeMix(_) => 0,
        };
        self.specs_here().map(width).sum()
    }

    /// Bytes that a sequence takes here however long it is: what its layers carry.
    pub fn sequence_bytes(&self) -> u64 {
        let hidden = self.spec.hidden;
        let carried = |layer: &LayerSpec| {
            let mixer = match &layer.mixer {
                MixerSpec::Attention(_) | MixerSpec::Latent(_) | MixerSpec::Across(_) => 0,
                MixerSpec::Mamba(mamba) => mamba.inner * (mamba.taps - 1 + mamba.places),
                MixerSpec::Mamba2(mamba) => {
                    let inner = mamba.heads * mamba.head;
                    (inner + 2 * mamba.groups * mamba.places) * (mamba.taps - 1) + inner * mamba.places
                }
                MixerSpec::TimeMix(mix) => hidden + 3 * mix.inner,
            };
            let ffn = if matches!(layer.ffn, FfnSpec::ChannelMix(_)) { hidden } else { 0 };
            4 * (mixer + ffn) as u64
        };
        self.specs_here().map(carried).sum()
    }
}
