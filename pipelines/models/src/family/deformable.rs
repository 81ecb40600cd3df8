//! Models that find objects by looking at few points of maps of several sizes (<https://arxiv.org/abs/2010.04159>).

use accel_backends::tensor::{Convolution as Op, Engine, Linear, Tensor, TensorError};

use crate::ModelError;
use crate::backbone::Backbone;
use crate::family::detection::shown;
use crate::layers::convolution::{Convolution, GroupNorm};
use crate::layers::deformable::{Levels, Points};
use crate::layers::finder::{Finder, Looked};
use crate::layers::patch::Asked;
use crate::layers::perceptron::Perceptron;
use crate::layers::place::{Places, Shown};
use crate::layers::proposals::{Proposals, Proposed};
use crate::model::{Inputs, Outputs};
use crate::rules::Loader;
use crate::spec::detection::{DeformableBegin, DeformableHead, DeformableSpec, FinderSpec};

/// A model with its weights.
#[derive(Debug)]
pub struct Deformable {
    backbone: Backbone,
    stages: Vec<usize>,
    projections: Vec<(Convolution, GroupNorm)>,
    places: Places,
    /// What is added to places of each map: `[levels, hidden]`.
    levels: Tensor,
    encoder: Vec<Finder>,
    decoder: Vec<Finder>,
    begin: Begin,
    head: Option<Head>,
}

/// Where objects are looked for.
#[derive(Debug)]
enum Begin {
    /// Where queries have learned: a table `[queries, 2 * hidden]`, and what makes points of its first half.
    Learned { queries: Tensor, points: Linear },
    /// At places that look like objects.
    Proposed(Box<Proposals>),
}

/// What is said of objects after the last layer.
#[derive(Debug)]
struct Head {
    labels: Linear,
    /// Of each layer where layers move boxes, or of the last.
    boxes: Vec<Perceptron>,
    refined: bool,
}

/// The maps of an image as the layers see them.
#[derive(Debug)]
struct Maps {
    /// `[batch, places, hidden]`
    states: Tensor,
    /// What says where they are, of the same shape.
    places: Tensor,
    levels: Levels,
    /// What of each map is no padding.
    shown: Vec<Shown>,
}

/// What objects begin with.
struct Begun {
    /// `[batch, objects, hidden]`
    states: Tensor,
    /// What each looks for, of the same shape.
    queries: Tensor,
    /// Where: `[batch, objects, 2]`, or boxes `[batch, objects, 4]`.
    at: Tensor,
}

impl Deformable {
    /// Reads a model.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: &DeformableSpec) -> Result<Self, ModelError> {
        let hidden = spec.hidden;
        let layers = |part: &str, of: &FinderSpec, objects: bool| {
            let layer = |number: usize| {
                Finder::load(&loader.part(&format!("{part}.{number}")), of, &spec.norm, hidden, objects)
            };
            (0..of.layers).map(layer).collect::<Result<Vec<_>, _>>()
        };
        let levels = loader.tensor("levels", &[spec.levels, hidden])?;
        let proposed = spec.head.filter(|head| head.begin == DeformableBegin::Proposed);
        Ok(Self {
            backbone: Backbone::load(&loader.part("backbone"), &spec.backbone)?,
            stages: spec.stages.clone(),
            projections: (0..spec.levels).map(|level| projection(loader, spec, level)).collect::<Result<_, _>>()?,
            places: Places::load(&loader.part("places"), spec.places, hidden)?,
            levels,
            encoder: layers("encoder", &spec.encoder, false)?,
            decoder: layers("decoder", &spec.decoder, true)?,
            begin: match proposed {
                Some(head) => {
                    let part = loader.part(&format!("objects.{}", spec.decoder.layers));
                    Begin::Proposed(Box::new(Proposals::load(loader, &part, hidden, head.labels, spec.queries)?))
                }
                None => Begin::Learned {
                    queries: loader.weight("queries", &[spec.queries, 2 * hidden])?,
                    points: loader.linear("points", 2, hidden, true)?,
                },
            },
            head: spec.head.map(|head| Head::load(loader, head, spec.decoder.layers, hidden)).transpose()?,
        })
    }

    /// Answers all that the model's class answers: of `pixel_values` and perhaps `pixel_mask`, see [`shown`].
    ///
    /// # Errors
    ///
    /// When an input is missing, not supported, or of the wrong shape.
    pub fn answer(&self, inputs: &Inputs) -> Result<Outputs, ModelError> {
        inputs.only(&["pixel_values", "pixel_mask"])?;
        let maps = self.maps(inputs)?;
        let x = self.encoded(&maps)?;
        let at = || ModelError::at("objects");
        let mut outputs = Vec::new();
        let begun = match &self.begin {
            Begin::Learned { queries, points } => learned(queries, points, x.dims()[0]).map_err(at())?,
            Begin::Proposed(proposals) => {
                let Proposed { states, queries, boxes, labels, all_boxes } = proposals.of(&x, &maps.shown)?;
                outputs.push(("enc_outputs_class".into(), labels));
                outputs.push(("enc_outputs_coord_logits".into(), all_boxes));
                Begun { states, queries, at: boxes }
            }
        };
        outputs.push(("init_reference_points".into(), begun.at.clone()));
        let (mut found, mut references) = (begun.states, begun.at);
        let (mut all_found, mut all_references) = (Vec::new(), Vec::new());
        let mut last = references.clone();
        for (number, layer) in self.decoder.iter().enumerate() {
            let points = seen_parts(&references, &maps.shown).map_err(at())?;
            let points = Some(Points { at: &points, levels: &maps.levels });
            let looked = Looked { states: &x, placed: &x, absent: &[], points };
            found = layer.of_objects(&found, &begun.queries, &looked)?;
            last = references.clone();
            if let Some(head) = self.head.as_ref().filter(|head| head.refined) {
                references = head.boxes(&found, &references, number)?;
            }
            all_found.push(found.clone());
            all_references.push(references.clone());
        }
        if let Some(head) = &self.head {
            outputs.push(("logits".into(), found.linear(&head.labels).map_err(at())?));
            outputs.push(("pred_boxes".into(), head.boxes(&found, &last, self.decoder.len().saturating_sub(1))?));
        }
        outputs.push(("last_hidden_state".into(), found));
        outputs.push(("intermediate_hidden_states".into(), Tensor::stack(&all_found, 1).map_err(at())?));
        outputs.push(("intermediate_reference_points".into(), Tensor::stack(&all_references, 1).map_err(at())?));
        outputs.push(("encoder_last_hidden_state".into(), x));
        Ok(outputs)
    }

    /// Maps of the stages, and further ones of the last.
    fn maps(&self, inputs: &Inputs) -> Result<Maps, ModelError> {
        let asked = Asked { pixels: inputs.tensor("pixel_values")?, hidden: None, stretched: false };
        let stages = self.backbone.see(&asked, &self.stages)?.stages;
        let whole = shown(inputs)?;
        let at = || ModelError::at("maps");
        let (mut states, mut places, mut shown, mut sizes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut last = None;
        for (level, (convolution, norm)) in self.projections.iter().enumerate() {
            let further = if level == stages.len() { stages.last() } else { last.as_ref() };
            let from = stages.get(level).or(further);
            let from = from.ok_or_else(|| ModelError::input("pixel_values", "an image with maps", &[]))?;
            let map = norm.forward(&convolution.forward(from)?)?;
            let [_, _, height, width] = map.sizes().map_err(at())?;
            let part = whole.of_map([height, width]);
            let of_level = |level: usize| self.levels.narrow(0, level, 1);
            let place = self.places.of(map.engine(), &part).and_then(|x| x.add(&of_level(level)?)).map_err(at())?;
            states.push(map.flatten(2, 3).and_then(|x| x.transpose(1, 2)).map_err(at())?);
            places.push(place);
            shown.push(part);
            sizes.push([height, width]);
            last = Some(map);
        }
        let states = Tensor::concat(&states, 1).map_err(at())?;
        let mask = shown_places(states.engine(), &shown).map_err(at())?;
        let places = Tensor::concat(&places, 1).map_err(at())?;
        Ok(Maps { states, places, levels: Levels { sizes, shown: mask }, shown })
    }

    fn encoded(&self, maps: &Maps) -> Result<Tensor, ModelError> {
        let at = own_points(maps.states.engine(), &maps.shown).map_err(ModelError::at("points"))?;
        let points = Points { at: &at, levels: &maps.levels };
        let mut x = maps.states.clone();
        for layer in &self.encoder {
            x = layer.of_places(&x, &maps.places, &[], Some(points))?;
        }
        Ok(x)
    }
}

impl Head {
    fn load(loader: &Loader<'_>, spec: DeformableHead, layers: usize, hidden: usize) -> Result<Self, ModelError> {
        let refined = spec.begin != DeformableBegin::Learned;
        // Where layers do not move boxes, one head is all layers'.
        let last = if refined { layers.saturating_sub(1) } else { 0 };
        let boxes =
            |number: usize| Perceptron::load(loader, &format!("objects.{number}.boxes"), &[hidden, hidden, hidden, 4]);
        Ok(Self {
            labels: loader.linear(&format!("objects.{last}.labels"), spec.labels, hidden, true)?,
            boxes: (0..=last).map(boxes).collect::<Result<_, _>>()?,
            refined,
        })
    }

    /// Boxes of objects after a layer, `[batch, objects, 4]`, around where the layer looked.
    fn boxes(&self, found: &Tensor, at: &Tensor, layer: usize) -> Result<Tensor, ModelError> {
        let boxes = self.boxes.get(layer).or(self.boxes.last());
        let boxes = boxes.ok_or_else(|| ModelError::MissingInput { name: "boxes".into() })?.forward(found)?;
        let moved = || -> Result<Tensor, TensorError> {
            let at = logits(at)?;
            boxes.add(&at.pad(-1, 0, 4 - at.dim(-1)?.min(4), 0.0)?)?.sigmoid()
        };
        moved().map_err(ModelError::at("boxes"))
    }
}

/// What makes one map of a stage's, or of the one before.
fn projection(
    loader: &Loader<'_>,
    spec: &DeformableSpec,
    level: usize,
) -> Result<(Convolution, GroupNorm), ModelError> {
    let (hidden, of_stage) = (spec.hidden, level < spec.stages.len());
    let width = spec.stages.get(level).or(spec.stages.last().filter(|_| level == spec.stages.len()));
    let inputs = width.map_or(hidden, |&stage| spec.backbone.stage_width(stage));
    let (op, taps) = if of_stage { (Op::new(2), 1) } else { (Op::new(2).stride(2).padding(1), 3) };
    let dims = [hidden, inputs, taps, taps];
    let convolution = Convolution::load(loader, &format!("projections.{level}.conv"), op, &dims, true)?;
    Ok((convolution, GroupNorm::load(loader, &format!("projections.{level}.norm"), hidden, 32, 1e-5)?))
}

/// What learned queries begin with.
fn learned(queries: &Tensor, points: &Linear, batch: usize) -> Result<Begun, TensorError> {
    let [queries, states] = queries.chunks::<2>(1)?;
    let dims = [batch, states.dim(0)?, states.dim(1)?];
    let each = |x: Tensor| x.unsqueeze(0)?.broadcast(&dims);
    let (queries, states) = (each(queries)?, each(states)?);
    let at = queries.linear(points)?.sigmoid()?;
    Ok(Begun { states, queries, at })
}

/// 1 for places of an image and 0 for padding, `[batch, places, 1]`, where there is padding.
fn shown_places(engine: &Engine, shown: &[Shown]) -> Result<Option<Tensor>, TensorError> {
    let batch = shown.first().map_or(0, |shown| shown.images.len());
    let images = (0..batch).flat_map(|image| shown.iter().flat_map(move |level| &level.images[image]));
    let values: Vec<f32> = images.map(|&shown| f32::from(u8::from(shown))).collect();
    if values.iter().all(|&shown| shown == 1.0) {
        return Ok(None);
    }
    let places = values.len() / batch.max(1);
    Tensor::new(engine, values, &[batch, places, 1]).map(Some)
}

/// Where each place lies in all maps, in parts of their width and height: `[batch, places, levels, 2]`.
fn own_points(engine: &Engine, shown: &[Shown]) -> Result<Tensor, TensorError> {
    let ratios: Vec<_> = shown.iter().map(Shown::ratios).collect();
    let batch = ratios.first().map_or(0, Vec::len);
    let mut values = Vec::new();
    for image in 0..batch {
        for (level, of) in shown.iter().zip(&ratios) {
            let ([height, width], [down, right]) = (level.size, of[image]);
            for place in 0..height * width {
                let (row, column) = ((place / width) as f32 + 0.5, (place % width) as f32 + 0.5);
                let (y, x) = (row / (down * height as f32), column / (right * width as f32));
                values.extend(ratios.iter().flat_map(|of| [x * of[image][1], y * of[image][0]]));
            }
        }
    }
    let places = values.len() / (2 * shown.len() * batch).max(1);
    Tensor::new(engine, values, &[batch, places, shown.len(), 2])
}

/// Points or boxes in parts of what is shown, as parts of each map: `[batch, objects, 2 or 4]` to `[batch, objects, levels,
/// 2 or 4]`.
fn seen_parts(at: &Tensor, shown: &[Shown]) -> Result<Tensor, TensorError> {
    let [batch, _, width] = at.sizes()?;
    let ratios: Vec<_> = shown.iter().map(Shown::ratios).collect();
    let of = |image: usize| {
        let level = move |of: &Vec<[f32; 2]>| (0..width).map(|at| of[image][1 - at % 2]).collect::<Vec<_>>();
        ratios.iter().flat_map(level)
    };
    let values: Vec<f32> = (0..batch).flat_map(of).collect();
    at.unsqueeze(2)?.mul(&Tensor::new(at.engine(), values, &[batch, 1, shown.len(), width])?)
}

/// What a sigmoid makes `x` of.
fn logits(x: &Tensor) -> Result<Tensor, TensorError> {
    let least = x.like(1e-5)?;
    let x = x.clamp(0.0, 1.0)?;
    x.max(&least)?.div(&x.affine(-1.0, 1.0)?.max(&least)?)?.log()
}
