//! The parts that a model can be split into, where their bytes lie, and which of them one machine has.
//!
//! A model that fits no single machine is spread over several: layers on different machines, and the experts of a layer.
//! Each machine reads the tensors of its own parts and no others. Layers are counted through all stacks of a model, those
//! of an encoder before those of its decoder.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use accel_backends::files::{Extent, ModelFiles};
use accel_backends::tensor::Engine;
use accel_backends::weights::{self, TensorIndex, TensorInfo};

use crate::ModelError;
use crate::arch::{self, Description};
use crate::layers::mlp::Mlp;
use crate::rules::stacked::slice_of;
use crate::rules::{Loader, Rules};
use crate::spec::{FfnSpec, MoeSpec, Spec, StackSpec};
use crate::stack::Layers;

/// What the names of a layer's experts begin with, before their numbers.
const EXPERTS: &str = "moe.experts.";
/// The same where a tensor has all of them, and their number is left out.
const ALL_EXPERTS: &str = "moe.experts..";

/// A part of a model: what one machine may have while another has the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// What every machine with layers needs: tables of positions and distances.
    Common,
    /// What is before the first layer of a stack and after the last: embeddings, a norm, heads.
    Ends,
    /// A layer without its experts.
    Layer(usize),
    /// An expert, by its layer and number.
    Expert(usize, usize),
}

/// The parts of a model that are in one place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Whether what is before and after the layers is here.
    pub ends: bool,
    /// The layers that are here, without their experts.
    pub layers: BTreeSet<usize>,
    /// The experts that are here, by layer and number.
    pub experts: BTreeSet<(usize, usize)>,
}

impl Share {
    /// Whether a part is here.
    pub fn has(&self, part: Part) -> bool {
        match part {
            Part::Common => self.ends || !self.layers.is_empty(),
            Part::Ends => self.ends,
            Part::Layer(layer) => self.layers.contains(&layer),
            Part::Expert(layer, expert) => self.experts.contains(&(layer, expert)),
        }
    }

    /// Adds a part.
    pub fn insert(&mut self, part: Part) {
        match part {
            Part::Common => {}
            Part::Ends => self.ends = true,
            Part::Layer(layer) => {
                self.layers.insert(layer);
            }
            Part::Expert(layer, expert) => {
                self.experts.insert((layer, expert));
            }
        }
    }
}

/// Which bytes each part of a model is made of.
#[derive(Clone, Debug, Default)]
pub struct Anatomy {
    parts: BTreeMap<Part, Vec<Extent>>,
}

impl Anatomy {
    /// The parts of a model whose tensors lie as the rules say.
    fn of(stacks: &Stacks, rules: &Rules, index: &TensorIndex) -> Self {
        let mut parts: BTreeMap<Part, Vec<Extent>> = BTreeMap::new();
        for tensor in index.iter() {
            for (part, extent) in stacks.parts(rules, tensor) {
                parts.entry(part).or_default().push(extent);
            }
        }
        Self { parts }
    }

    /// All parts.
    pub fn parts(&self) -> impl Iterator<Item = Part> {
        self.parts.keys().copied()
    }

    /// Bytes of a part; none of one that the model does not have.
    pub fn bytes(&self, part: Part) -> u64 {
        self.extents(part).iter().map(|extent| extent.bytes).sum()
    }

    /// Where a part lies.
    pub fn extents(&self, part: Part) -> &[Extent] {
        self.parts.get(&part).map_or(&[], Vec::as_slice)
    }

    /// Where all parts of a share lie.
    pub fn share_extents(&self, share: &Share) -> Vec<Extent> {
        self.parts().filter(|&part| share.has(part)).flat_map(|part| self.extents(part)).cloned().collect()
    }

    /// Bytes of all parts of a share.
    pub fn share_bytes(&self, share: &Share) -> u64 {
        self.parts().filter(|&part| share.has(part)).map(|part| self.bytes(part)).sum()
    }
}

/// The stacks of a model as they are counted.
#[derive(Clone, Debug)]
pub(crate) struct Stacks {
    /// What the names of each begin with, and the number of its first layer.
    stacks: Vec<(&'static str, usize)>,
}

impl Stacks {
    fn of(spec: &Spec) -> Self {
        let mut first = 0;
        let stacks = stacks(spec).into_iter().map(|(name, stack)| {
            let begins = first;
            first += stack.layers.len();
            (name, begins)
        });
        Self { stacks: stacks.collect() }
    }

    /// The number of a stack's first layer.
    pub(crate) fn first_layer(&self, name: &str) -> usize {
        self.stacks.iter().find(|(known, _)| *known == name).map_or(0, |(_, first)| *first)
    }

    /// The stack of a layer, and the number of that stack's first.
    fn of_layer(&self, layer: usize) -> Option<(&'static str, usize)> {
        self.stacks.iter().rev().find(|(_, first)| *first <= layer).copied()
    }

    /// The part that a tensor belongs to, by its name in the model.
    fn part(&self, name: &str) -> Part {
        let stack = self.stacks.iter().find_map(|(stack, first)| Some((name.strip_prefix(stack)?, *first)));
        let (name, first) = stack.unwrap_or((name, 0));
        let Some((layer, rest)) = name.strip_prefix("layers.").and_then(numbered) else {
            let ends =
                ["embed", "positions", "types", "final_norm", "head."].iter().any(|begins| name.starts_with(begins));
            return if ends { Part::Ends } else { Part::Common };
        };
        match rest.strip_prefix(EXPERTS).and_then(numbered) {
            Some((expert, _)) => Part::Expert(first + layer, expert),
            None => Part::Layer(first + layer),
        }
    }

    /// The parts that have bytes of a tensor of the file, and which.
    pub(crate) fn parts(&self, rules: &Rules, tensor: &TensorInfo) -> Vec<(Part, Extent)> {
        let extent = |of: &TensorInfo| Extent { file: of.file.clone(), offset: of.offset, bytes: of.bytes };
        let name = rules.name_in_model(&tensor.name);
        let Some((before, after)) = name.split_once(ALL_EXPERTS) else {
            return vec![(self.part(&name), extent(tensor))];
        };
        let slices =
            (0..).map_while(|number| Some((number, slice_of(tensor, number).filter(|slice| slice.bytes > 0)?)));
        let part = |number: usize| self.part(&format!("{before}{EXPERTS}{number}.{after}"));
        slices.map(|(number, slice)| (part(number), extent(&slice))).collect()
    }
}

/// The number that a name begins with, and what follows its dot.
fn numbered(name: &str) -> Option<(usize, &str)> {
    let (number, rest) = name.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

/// The stacks that a model can be split by, each with what its names begin with; none of a model that stays in one place.
pub fn stacks(spec: &Spec) -> Vec<(&'static str, &StackSpec)> {
    match spec {
        Spec::Decoder(spec) => vec![("", &spec.stack)],
        Spec::EncoderDecoder(spec) => {
            let decoder = spec.decoder.as_ref().map(|decoder| ("decoder.", decoder));
            [("encoder.", &spec.encoder)].into_iter().chain(decoder).collect()
        }
        _ => Vec::new(),
    }
}

/// The mixtures of experts of a model, by layer.
pub fn mixtures(spec: &Spec) -> BTreeMap<usize, &MoeSpec> {
    let layers = stacks(spec).into_iter().flat_map(|(_, stack)| &stack.layers);
    let mixtures = layers.enumerate().filter_map(|(number, layer)| match &layer.ffn {
        FfnSpec::Experts(moe) => Some((number, &**moe)),
        _ => None,
    });
    mixtures.collect()
}

/// A model whose parts are read each by itself, when it is wanted.
pub struct Parts {
    files: Arc<dyn ModelFiles>,
    index: TensorIndex,
    description: Description,
    stacks: Stacks,
    anatomy: Anatomy,
    engine: Engine,
}

impl Parts {
    /// Reads what a model is and where its tensors lie, and none of them.
    ///
    /// # Errors
    ///
    /// When the files are not a model, or one that is not supported.
    pub fn open(files: Arc<dyn ModelFiles>, engine: Engine) -> Result<Self, ModelError> {
        let index = weights::index(&*files)?;
        let description = arch::describe(&*files, &index)?;
        let stacks = Stacks::of(&description.spec);
        let anatomy = Anatomy::of(&stacks, &description.rules, &index);
        Ok(Self { files, index, description, stacks, anatomy, engine })
    }

    /// The files.
    pub fn files(&self) -> &Arc<dyn ModelFiles> {
        &self.files
    }

    /// The tensors.
    pub fn index(&self) -> &TensorIndex {
        &self.index
    }

    /// What the model is.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Which bytes each part is made of.
    pub fn anatomy(&self) -> &Anatomy {
        &self.anatomy
    }

    /// What computes with what is read.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// A loader of the parts of a share, or of all.
    pub fn loader(&self, share: Option<&Share>) -> Loader<'_> {
        let loader = Loader::new(&*self.files, &self.index, self.description.rules, &self.engine);
        match share {
            Some(share) => loader.sharing(share.clone(), self.stacks.clone()),
            None => loader,
        }
    }

    /// Reads one expert.
    ///
    /// # Errors
    ///
    /// When the model has no such expert, or its tensors cannot be read.
    pub fn expert(&self, layer: usize, expert: usize) -> Result<Mlp, ModelError> {
        let spec = &self.description.spec;
        let missing = || ModelError::State {
            place: "experts",
            expected: "an expert of the model".into(),
            found: format!("expert {expert} of layer {layer}"),
        };
        let moe = mixtures(spec).remove(&layer).filter(|moe| expert < moe.experts).ok_or_else(missing)?;
        let (stack, first) = self.stacks.of_layer(layer).ok_or_else(missing)?;
        let whole = self.loader(None);
        let loader = if stack.is_empty() { whole } else { whole.part(stack.trim_end_matches('.')) };
        let hidden = stacks(spec).into_iter().find(|(name, _)| *name == stack).ok_or_else(missing)?.1.hidden;
        Mlp::load(&loader, &format!("layers.{}.moe.experts.{expert}", layer - first), &moe.expert, hidden)
    }
}

impl Parts {
    /// Reads the layers of a share that a stack has, and no other part of the stack; with the range of all the layers of
    /// that stack. Layers are counted through all stacks.
    ///
    /// # Errors
    ///
    /// When no stack has them, or their tensors cannot be read.
    pub fn layers(&self, share: &Share) -> Result<(Layers, Range<usize>), ModelError> {
        let missing = || ModelError::State {
            place: "layers",
            expected: "layers of one stack of the model".into(),
            found: format!("{:?}", share.layers),
        };
        let (name, first) = share.layers.first().and_then(|&layer| self.stacks.of_layer(layer)).ok_or_else(missing)?;
        let stack = stacks(&self.description.spec).into_iter().find(|(known, _)| *known == name).ok_or_else(missing)?.1;
        let all = first..first + stack.layers.len();
        if !share.layers.iter().all(|layer| all.contains(layer)) {
            return Err(missing());
        }
        let whole = self.loader(Some(share));
        let loader = if name.is_empty() { whole } else { whole.part(name.trim_end_matches('.')) };
        Ok((Layers::load(&loader, stack.clone())?, all))
    }
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("class", &self.description.class).finish_non_exhaustive()
    }
}
