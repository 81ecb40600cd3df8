//! Where the weights of a model lie in its files: rules as data, and the loader that follows them.

pub mod fp8;
pub mod stacked;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use accel_backends::files::ModelFiles;
use accel_backends::tensor::{Engine, Linear, Tensor, Weight};
use accel_backends::weights::{TensorIndex, TensorInfo, read_tensor};

use crate::ModelError;
use crate::share::{self, Share, Stacks};
use stacked::{Form, Part, Slice, slice_name};

/// A part of a model and its name in the files; each `{}` stands for a number, of a layer or an expert.
///
/// A rule names a module, `.weight` and `.bias` follow in both, or a whole tensor, or what several names begin with, where
/// both end in a dot. A rule from `*.` on renames the end of a name, whatever that begins with; the beginning then follows
/// the other rules. Of several rules for one name the first counts whose tensor is there: types have had more names than
/// one. A tensor that all experts of a layer share has a number less in the file than in the model.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The name in the model.
    pub to: &'static str,
    /// The name in the file.
    pub from: &'static str,
    /// What is done to the tensor.
    pub how: How,
}

/// What is done to a tensor when it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Nothing.
    AsIs,
    /// A matrix that the file has as `[inputs, outputs]`.
    Transposed,
    /// One is added to a weight, which the file has as the difference from one.
    AddOne,
    /// The file has two tensors as one, one after the other: the first of them.
    FirstHalf,
    /// The second of them.
    SecondHalf,
    /// The file has the tensors of all experts as one: some of the slice of one of them.
    Stacked(Slice),
}

impl Rule {
    /// A tensor of another name.
    pub const fn new(to: &'static str, from: &'static str) -> Self {
        Self { to, from, how: How::AsIs }
    }

    /// A matrix of another name that the file has transposed.
    pub const fn transposed(to: &'static str, from: &'static str) -> Self {
        Self { to, from, how: How::Transposed }
    }

    /// The first of two tensors that the file has as one, one after the other.
    pub const fn first_half(to: &'static str, from: &'static str) -> Self {
        Self { to, from, how: How::FirstHalf }
    }

    /// The second of two tensors that the file has as one.
    pub const fn second_half(to: &'static str, from: &'static str) -> Self {
        Self { to, from, how: How::SecondHalf }
    }

    /// An expert's part of a tensor that the file has for all experts of a layer.
    pub const fn stacked(to: &'static str, from: &'static str, form: Form, part: Part) -> Self {
        Self { to, from, how: How::Stacked(Slice { form, part }) }
    }

    /// A weight of another name that the file has less one.
    pub const fn add_one(to: &'static str, from: &'static str) -> Self {
        Self { to, from, how: How::AddOne }
    }
}

/// The rules of a type that shares another's names, its own first.
pub(crate) const fn joined<const N: usize>(own: &[Rule], others: &[Rule]) -> [Rule; N] {
    let mut all = [Rule::new("", ""); N];
    let mut place = 0;
    while place < N {
        all[place] = if place < own.len() { own[place] } else { others[place - own.len()] };
        place += 1;
    }
    all
}

/// The rules of one class of one model type in one format.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// What all names begin with in the file, where the model is part of another.
    pub prefix: &'static str,
    /// What the names of the stack begin with in the file.
    pub base: &'static str,
    /// The model without its head.
    pub stack: &'static [Rule],
    /// Its head.
    pub heads: &'static [Rule],
}

impl Rules {
    /// What a tensor of the file is called in the model: its rule, read backwards. Where the file has all experts of a layer
    /// in one tensor, the number of the expert is left out. A tensor without a rule keeps its name.
    pub(crate) fn name_in_model(&self, name: &str) -> String {
        // Scales belong to the weight that they scale.
        let blocks = name.strip_suffix(stacked::SCALES).map(|name| format!("{name}{}", stacked::BLOCKS));
        let name = blocks.as_deref().unwrap_or(name);
        let name = fp8::SCALES.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name);
        let name = name.strip_prefix(self.prefix).unwrap_or(name);
        let backwards = |rule: &Rule| Rule { to: rule.from, from: rule.to, how: rule.how };
        let of = |rules: &[Rule], name: &str| rules.iter().find_map(|rule| rename(&backwards(rule), name));
        let in_stack = name.strip_prefix(self.base).and_then(|name| of(self.stack, name));
        in_stack.or_else(|| of(self.heads, name)).unwrap_or_else(|| name.to_owned())
    }
}

/// Reads weights by their names in the model.
#[derive(Clone)]
pub struct Loader<'a> {
    /// The model's files.
    pub files: &'a dyn ModelFiles,
    /// Its tensors.
    pub index: &'a TensorIndex,
    /// Where they lie.
    pub rules: Rules,
    /// What will compute with them.
    pub engine: &'a Engine,
    /// What the names of this part of the model begin with; empty for the whole.
    pub part: String,
    /// What has been read, by its name in the files; all parts share it.
    read: Arc<Mutex<BTreeSet<String>>>,
    /// Which parts of the model are to be read; all, where that is not said.
    share: Option<Arc<(Share, Stacks)>>,
}

impl<'a> Loader<'a> {
    /// A loader of a whole model.
    pub fn new(files: &'a dyn ModelFiles, index: &'a TensorIndex, rules: Rules, engine: &'a Engine) -> Self {
        Self { files, index, rules, engine, part: String::new(), read: Arc::default(), share: None }
    }

    /// The loader of some parts of the model.
    #[must_use]
    pub(crate) fn sharing(self, share: Share, stacks: Stacks) -> Self {
        Self { share: Some(Arc::new((share, stacks))), ..self }
    }

    /// The number of a layer of this stack among all of the model.
    pub fn layer_number(&self, layer: usize) -> usize {
        layer + self.share.as_ref().map_or(0, |share| share.1.first_layer(&self.part))
    }

    /// Whether a layer of this stack is to be read.
    pub fn has_layer(&self, layer: usize) -> bool {
        let number = self.layer_number(layer);
        self.share.as_ref().is_none_or(|share| share.0.has(share::Part::Layer(number)))
    }

    /// Whether all experts of a layer of this stack are to be read.
    pub fn has_experts(&self, layer: usize, experts: usize) -> bool {
        let number = self.layer_number(layer);
        let all = |share: &Share| (0..experts).all(|expert| share.has(share::Part::Expert(number, expert)));
        self.share.as_ref().is_none_or(|share| all(&share.0))
    }

    /// The loader of a part: its names begin with `name` and a dot.
    #[must_use]
    pub fn part(&self, name: &str) -> Self {
        Self { part: format!("{}{name}.", self.part), ..self.clone() }
    }

    /// The loader of a model within this one, whose names in the file follow the first of some rules whose base is there.
    #[must_use]
    pub fn within(&self, rules: &[Rules]) -> Self {
        let begins = |rules: &Rules, name: &str| {
            name.strip_prefix(rules.prefix).is_some_and(|rest| rest.starts_with(rules.base))
        };
        let there = |rules: &&Rules| self.index.iter().any(|tensor| begins(rules, &tensor.name));
        let rules = rules.iter().find(there).or(rules.first()).copied().unwrap_or(self.rules);
        Self { rules, part: String::new(), ..self.clone() }
    }

    /// Refuses a file that has more of a part that is numbered than was read: a layer or an expert beyond those of the
    /// configuration, or a bias where it has none. Without them the model would be another than the file's.
    ///
    /// What else is left over says nothing: checkpoints hold heads of other classes, and buffers.
    ///
    /// # Errors
    ///
    /// When there is such a tensor.
    pub fn finish(&self) -> Result<(), ModelError> {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let Rules { prefix, base, stack, .. } = self.rules;
        let numbered = stack.iter().filter(|rule| rule.from.contains("{}") && !rule.from.ends_with('.'));
        // A rule, read backwards, tells the names in the file.
        let numbered: Vec<_> = numbered.map(|rule| Rule { to: rule.from, from: rule.to, how: rule.how }).collect();
        let of_stack = |name: &str| {
            let name = name.strip_prefix(prefix).and_then(|name| name.strip_prefix(base));
            name.is_some_and(|name| numbered.iter().any(|rule| rename(rule, name).is_some()))
        };
        let here = |tensor: &TensorInfo| {
            let parts =
                |share: &(Share, Stacks)| share.1.parts(&self.rules, tensor).iter().any(|(part, _)| share.0.has(*part));
            self.share.as_deref().is_none_or(parts)
        };
        // Of what experts share each slice is read by itself.
        let is_read = |tensor: &TensorInfo| {
            let mut slices = 0..tensor.dims.first().copied().unwrap_or(0);
            let has = |name: &str| read.contains(name);
            has(&tensor.name) || !slices.is_empty() && slices.all(|number| has(&slice_name(&tensor.name, number)))
        };
        let left = self.index.iter().find(|tensor| !is_read(tensor) && of_stack(&tensor.name) && here(tensor));
        left.map_or(Ok(()), |tensor| Err(ModelError::LeftOver { name: tensor.name.clone() }))
    }

    /// The full name of something in this part, for errors.
    pub fn name(&self, name: &str) -> String {
        format!("{}{name}", self.part)
    }

    /// A weight `[outputs, inputs, ..]`, as it is stored.
    ///
    /// # Errors
    ///
    /// When it is missing, of another shape, or cannot be read.
    pub fn weight(&self, name: &str, dims: &[usize]) -> Result<Tensor, ModelError> {
        self.tensor(&format!("{name}.weight"), dims)
    }

    /// A vector of `length`.
    ///
    /// # Errors
    ///
    /// When it is missing, of another shape, or cannot be read.
    pub fn vector(&self, name: &str, length: usize) -> Result<Tensor, ModelError> {
        self.weight(name, &[length])
    }

    /// A linear layer from `inputs` to `outputs`.
    ///
    /// # Errors
    ///
    /// When a tensor is missing, of another shape, or cannot be read.
    pub fn linear(&self, name: &str, outputs: usize, inputs: usize, bias: bool) -> Result<Linear, ModelError> {
        self.layer(name, &[outputs, inputs], bias)
    }

    /// A weight of any shape with perhaps a bias of its first dimension: a convolution `[outputs, inputs, taps..]`.
    ///
    /// # Errors
    ///
    /// When a tensor is missing, of another shape, or cannot be read.
    pub fn layer(&self, name: &str, dims: &[usize], bias: bool) -> Result<Linear, ModelError> {
        let weight = self.weight(name, dims)?;
        let bias = if bias { Some(self.tensor(&format!("{name}.bias"), &dims[..1])?) } else { None };
        Ok(Linear { weight, bias })
    }

    /// A linear layer without bias from all elements of `dims`, which the file has as a convolution.
    ///
    /// # Errors
    ///
    /// When it is missing, of another shape, or cannot be read.
    pub fn flattened(&self, name: &str, outputs: usize, dims: &[usize]) -> Result<Linear, ModelError> {
        let weight = self.weight(name, &[&[outputs], dims].concat())?;
        let flat = weight.as_stored().map(|weight| Tensor::stored(self.engine, Arc::new(weight.flattened())));
        Ok(Linear { weight: flat.unwrap_or(weight), bias: None })
    }

    /// Some rows of a matrix `[rows, columns]`, as they are stored; and of its bias. They are counted once the matrix is
    /// known to have them.
    ///
    /// # Errors
    ///
    /// When a tensor is missing, of another shape, or cannot be read.
    pub fn rows(
        &self,
        name: &str,
        dims: [usize; 2],
        picked: impl Iterator<Item = usize>,
        bias: bool,
    ) -> Result<Linear, ModelError> {
        let whole = self.layer(name, &dims, bias)?;
        let picked: Vec<usize> = picked.collect();
        let at = || ModelError::at(self.name(name));
        let weight = match whole.weight.as_stored() {
            Some(weight) => Tensor::stored(self.engine, Arc::new(weight.picked(&picked))),
            None => whole.weight.pick(0, &picked).map_err(at())?,
        };
        let bias = whole.bias.map(|bias| bias.pick(0, &picked)).transpose().map_err(at())?;
        Ok(Linear { weight, bias })
    }

    /// A tensor by its whole name.
    ///
    /// # Errors
    ///
    /// When it is missing, of another shape, or cannot be read.
    pub fn tensor(&self, name: &str, dims: &[usize]) -> Result<Tensor, ModelError> {
        let (from, how) = self.find(name);
        let found = self.index.get(&from).ok_or_else(|| ModelError::MissingTensor { name: self.name(name), from })?;
        let stored_dims: Vec<usize> = match how {
            How::Stacked(slice) => return self.slice(name, found, slice, Some(dims)),
            How::Transposed => dims.iter().rev().copied().collect(),
            How::FirstHalf | How::SecondHalf => {
                dims.iter().enumerate().map(|(axis, &size)| if axis == 0 { 2 * size } else { size }).collect()
            }
            _ => dims.to_vec(),
        };
        if found.dims != stored_dims {
            let found = found.dims.clone();
            return Err(ModelError::TensorShape { name: self.name(name), expected: stored_dims, found });
        }
        self.read(name, found, how)
    }

    /// A tensor by its whole name, of whatever shape.
    ///
    /// # Errors
    ///
    /// When it is missing or cannot be read.
    pub fn any_tensor(&self, name: &str) -> Result<Tensor, ModelError> {
        let (from, how) = self.find(name);
        let found = self.index.get(&from).ok_or_else(|| ModelError::MissingTensor { name: self.name(name), from })?;
        self.read(name, found, how)
    }

    /// Whether the file has a tensor, by its whole name in the model.
    pub fn has(&self, name: &str) -> bool {
        self.index.get(&self.find(name).0).is_some()
    }

    fn read(&self, name: &str, tensor: &TensorInfo, how: How) -> Result<Tensor, ModelError> {
        if let How::Stacked(slice) = how {
            return self.slice(name, tensor, slice, None);
        }
        let at = || ModelError::at(self.name(name));
        let bytes = self.bytes(tensor)?;
        let weight = if fp8::is_fp8(tensor.dtype) {
            Weight::from_floats(&tensor.dims, &self.scaled(name, tensor, &bytes)?)
        } else {
            Weight::new(&tensor.name, tensor.dtype, &tensor.dims, bytes).map_err(at())?
        };
        let stored = Tensor::stored(self.engine, Arc::new(weight));
        // Vectors are small and go through operations that want floats.
        let dense = || Tensor::new(self.engine, stored.to_vec()?, stored.dims());
        match how {
            How::AsIs | How::Transposed if tensor.dims.len() < 2 => dense(),
            How::AsIs | How::Stacked(_) => Ok(stored.clone()),
            How::AddOne => dense().and_then(|dense| dense.shift(1.0)),
            How::FirstHalf | How::SecondHalf => {
                let half = tensor.dims.first().map_or(0, |rows| rows / 2);
                let first = if how == How::FirstHalf { 0 } else { half };
                if tensor.dims.len() < 2 {
                    dense().and_then(|dense| dense.narrow(0, first, half))
                } else {
                    let rows: Vec<usize> = (first..first + half).collect();
                    let picked = stored.as_stored().map(|weight| weight.picked(&rows));
                    Ok(picked.map_or(stored.clone(), |picked| Tensor::stored(self.engine, Arc::new(picked))))
                }
            }
            How::Transposed => {
                let turned = dense().and_then(|dense| dense.transpose(0, 1)).and_then(|turned| {
                    let (dims, values) = (turned.dims().to_vec(), turned.to_vec()?);
                    Ok(Tensor::stored(self.engine, Arc::new(Weight::from_floats(&dims, &values))))
                });
                return turned.map_err(at());
            }
        }
        .map_err(at())
    }

    fn bytes(&self, tensor: &TensorInfo) -> Result<Vec<u8>, ModelError> {
        let bytes = read_tensor(self.files, tensor)?;
        self.read.lock().unwrap_or_else(PoisonError::into_inner).insert(tensor.name.clone());
        Ok(bytes)
    }

    /// 8-bit floats times their scales, where the file has any.
    fn scaled(&self, name: &str, tensor: &TensorInfo, bytes: &[u8]) -> Result<Vec<f32>, ModelError> {
        let mut values = fp8::floats(tensor.dtype, bytes);
        let scales = fp8::SCALES.iter().find_map(|ending| self.index.get(&format!("{}{ending}", tensor.name)));
        if let Some(scales) = scales {
            let at = || ModelError::at(self.name(name));
            let count = scales.dims.iter().product();
            let stored = Weight::new(&scales.name, scales.dtype, &[count], self.bytes(scales)?).map_err(at())?;
            let factors = Tensor::stored(self.engine, Arc::new(stored)).to_vec().map_err(at())?;
            fp8::scale(&scales.name, &tensor.dims, &mut values, (&scales.dims, &factors))?;
        }
        Ok(values)
    }

    /// The name in the file, and what is done to the tensor: by the first rule for it whose tensor is there, or the first
    /// of all. A name without a rule is its own.
    fn find(&self, name: &str) -> (String, How) {
        let name = self.name(name);
        let Rules { prefix, base, .. } = self.rules;
        let mut candidates = self.renamed(&name, How::AsIs);
        for rule in self.rules.stack.iter().chain(self.rules.heads) {
            if let Some(ended) = rename_end(rule, &name) {
                candidates.extend(self.renamed(&ended, rule.how));
                candidates.push((format!("{prefix}{base}{ended}"), rule.how));
            }
        }
        let there = candidates.iter().position(|(from, _)| self.index.get(from).is_some());
        if candidates.is_empty() {
            (format!("{prefix}{name}"), How::AsIs)
        } else {
            candidates.swap_remove(there.unwrap_or(0))
        }
    }

    /// All names that rules of whole names give.
    fn renamed(&self, name: &str, how: How) -> Vec<(String, How)> {
        let Rules { prefix, base, .. } = self.rules;
        let how_of = |rule: &Rule| if rule.how == How::AsIs { how } else { rule.how };
        let stack = self.rules.stack.iter();
        let stack = stack.filter_map(|rule| Some((format!("{prefix}{base}{}", rename(rule, name)?), how_of(rule))));
        let heads = self.rules.heads.iter();
        let heads = heads.filter_map(|rule| Some((format!("{prefix}{}", rename(rule, name)?), how_of(rule))));
        stack.chain(heads).collect()
    }
}

/// The name that a rule of ends makes of a name; the beginning stays.
fn rename_end(rule: &Rule, name: &str) -> Option<String> {
    let ending = Rule { to: rule.to.strip_prefix("*.")?, from: rule.from.strip_prefix("*.")?, how: rule.how };
    let starts = std::iter::once(0).chain(name.match_indices('.').map(|(dot, _)| dot + 1));
    starts.into_iter().find_map(|start| Some(format!("{}{}", &name[..start], rename(&ending, &name[start..])?)))
}

/// The name in the file that a rule gives to a name in the model.
fn rename(rule: &Rule, name: &str) -> Option<String> {
    let (mut rest, mut numbers) = (name, Vec::new());
    let mut pieces = rule.to.split("{}");
    rest = rest.strip_prefix(pieces.next()?)?;
    for piece in pieces {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 {
            return None;
        }
        numbers.push(&rest[..digits]);
        rest = rest[digits..].strip_prefix(piece)?;
    }
    let prefix = rule.to.is_empty() || rule.to.ends_with('.');
    if !prefix && !rest.is_empty() && !matches!(rest, ".weight" | ".bias") {
        return None;
    }
    let mut from = String::new();
    let mut numbers = numbers.into_iter();
    for (place, piece) in rule.from.split("{}").enumerate() {
        if place > 0 {
            from += numbers.next().unwrap_or_default();
        }
        from += piece;
    }
    Some(from + rest)
}
