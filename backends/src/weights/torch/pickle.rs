//! Reads a pickle of tensors without running it.
//!
//! The machine has the instructions that say what a dictionary of tensors is, and knows the names that stand for tensors,
//! storages and types. A name that it does not know is an error at once, before anything is made of it. Values lie in one
//! list and point to each other by number, so that no nesting, however deep, takes stack. Format: `Lib/pickletools.py`
//! of Python; meaning: `torch/_utils.py`.

use std::collections::HashMap;

use super::super::{DIMS_MAX, Dtype, WeightsError};

/// Instructions of a pickle: some 25 for a tensor, of which a file has some thousand.
const STEPS_MAX: usize = 1 << 22;

/// A pickle, and where it lies.
pub(super) struct Pickle<'a> {
    pub(super) file: &'a str,
    pub(super) offset: u64,
    pub(super) text: &'a [u8],
}

/// What a pickle says of a tensor.
#[derive(Clone, Debug)]
pub(super) struct Tensor<'a> {
    /// The name of its storage.
    pub storage: &'a str,
    pub dtype: Dtype,
    /// Elements of the storage before its own.
    pub offset: u64,
    pub dims: Vec<u64>,
    pub strides: Vec<u64>,
}

impl Tensor<'_> {
    /// Whether its elements lie one after the other in the order of its dimensions.
    pub(super) fn is_contiguous(&self) -> bool {
        let mut next = 1_u64;
        let is_empty = self.dims.contains(&0);
        is_empty
            || self.dims.len() == self.strides.len()
                && self.dims.iter().zip(&self.strides).rev().all(|(&dim, &stride)| {
                    let fits = dim == 1 || stride == next;
                    next = next.saturating_mul(dim);
                    fits
                })
    }
}

/// A value, by its place in the list of values.
type Ref = usize;

#[derive(Debug)]
enum Value<'a> {
    None,
    Bool,
    Float,
    Integer(i64),
    Text(&'a str),
    Tuple(Vec<Ref>),
    List(Vec<Ref>),
    Dictionary(Vec<(Ref, Ref)>),
    Global(Global),
    /// Its type where it has one, and its name.
    Storage(Option<Dtype>, &'a str),
    /// Apart, for few values are tensors.
    Tensor(Box<Tensor<'a>>),
}

impl Value<'_> {
    fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool => "a truth value",
            Self::Float | Self::Integer(_) => "a number",
            Self::Text(_) => "a text",
            Self::Tuple(_) | Self::List(_) => "a list",
            Self::Dictionary(_) => "a dictionary",
            Self::Global(_) => "a type or function",
            Self::Storage(..) => "a storage",
            Self::Tensor(_) => "a tensor",
        }
    }
}

/// A name that a pickle may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Global {
    /// A tensor of a storage that has a type.
    Tensor,
    /// A tensor of bytes, with its type.
    TypedTensor,
    Parameter,
    OrderedDictionary,
    Storage(Option<Dtype>),
    Type(Dtype),
}

fn global(module: &str, name: &str) -> Option<Global> {
    let storage = |dtype| Some(Global::Storage(Some(dtype)));
    match (module, name) {
        ("torch._utils", "_rebuild_tensor_v2") => Some(Global::Tensor),
        ("torch._utils", "_rebuild_tensor_v3") => Some(Global::TypedTensor),
        ("torch._utils", "_rebuild_parameter") => Some(Global::Parameter),
        ("collections", "OrderedDict") => Some(Global::OrderedDictionary),
        ("torch.storage" | "torch", "UntypedStorage") => Some(Global::Storage(None)),
        ("torch", "FloatStorage") => storage(Dtype::F32),
        ("torch", "HalfStorage") => storage(Dtype::F16),
        ("torch", "BFloat16Storage") => storage(Dtype::BF16),
        ("torch", "DoubleStorage") => storage(Dtype::F64),
        ("torch", "BoolStorage") => storage(Dtype::Bool),
        ("torch", "ByteStorage") => storage(Dtype::U8),
        ("torch", "CharStorage") => storage(Dtype::I8),
        ("torch", "ShortStorage") => storage(Dtype::I16),
        ("torch", "IntStorage") => storage(Dtype::I32),
        ("torch", "LongStorage") => storage(Dtype::I64),
        ("torch", "float32") => Some(Global::Type(Dtype::F32)),
        ("torch", "float16") => Some(Global::Type(Dtype::F16)),
        ("torch", "bfloat16") => Some(Global::Type(Dtype::BF16)),
        ("torch", "float64") => Some(Global::Type(Dtype::F64)),
        ("torch", "float8_e4m3fn") => Some(Global::Type(Dtype::F8_E4M3)),
        ("torch", "float8_e5m2") => Some(Global::Type(Dtype::F8_E5M2)),
        ("torch", "bool") => Some(Global::Type(Dtype::Bool)),
        ("torch", "uint8") => Some(Global::Type(Dtype::U8)),
        ("torch", "uint16") => Some(Global::Type(Dtype::U16)),
        ("torch", "uint32") => Some(Global::Type(Dtype::U32)),
        ("torch", "uint64") => Some(Global::Type(Dtype::U64)),
        ("torch", "int8") => Some(Global::Type(Dtype::I8)),
        ("torch", "int16") => Some(Global::Type(Dtype::I16)),
        ("torch", "int32") => Some(Global::Type(Dtype::I32)),
        ("torch", "int64") => Some(Global::Type(Dtype::I64)),
        _ => None,
    }
}

impl<'a> Pickle<'a> {
    /// The tensors that the pickle is a dictionary of, in its order.
    ///
    /// # Errors
    /// When it is anything else.
    pub(super) fn tensors(&self) -> Result<Vec<(&'a str, Tensor<'a>)>, WeightsError> {
        let mut machine = Machine {
            pickle: self,
            place: 0,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        let root = machine.run()?;
        let Value::Dictionary(pairs) = &machine.values[root] else {
            let found = machine.values[root].kind();
            return Err(self.fault(0, format!("is {found}; expected a dictionary of tensors")));
        };
        let pair = |&(key, value): &(Ref, Ref)| match (&machine.values[key], &machine.values[value]) {
            (&Value::Text(name), Value::Tensor(tensor)) => Ok((name, Tensor::clone(tensor))),
            (Value::Text(name), other) => {
                let name: String = name.chars().take(100).collect();
                Err(self.fault(0, format!("has {} as {name}; expected a tensor", other.kind())))
            }
            (other, _) => Err(self.fault(0, format!("has {} as a name", other.kind()))),
        };
        pairs.iter().map(pair).collect()
    }

    fn fault(&self, place: usize, found: impl Into<String>) -> WeightsError {
        let (file, offset) = (self.file.to_owned(), self.offset + place as u64);
        WeightsError::Pickle { file, offset, found: found.into() }
    }
}

struct Machine<'p, 'a> {
    pickle: &'p Pickle<'a>,
    place: usize,
    values: Vec<Value<'a>>,
    stack: Vec<Ref>,
    /// How high the stack was at each mark.
    marks: Vec<usize>,
    memo: HashMap<u64, Ref>,
}

impl<'a> Machine<'_, 'a> {
    fn fault(&self, found: impl Into<String>) -> WeightsError {
        self.pickle.fault(self.place, found)
    }

    /// Follows the instructions to the end, and gives what is left.
    fn run(&mut self) -> Result<Ref, WeightsError> {
        for _ in 0..STEPS_MAX {
            let [code] = self.take()?;
            match code {
                b'.' => return self.pop(),
                // The version of the format, and how the writer has cut it.
                0x80 => drop(self.take::<1>()?),
                0x95 => drop(self.take::<8>()?),
                b'(' => self.marks.push(self.stack.len()),
                b'N' => self.push(Value::None),
                0x88 | 0x89 => self.push(Value::Bool),
                b'G' => {
                    self.take::<8>()?;
                    self.push(Value::Float);
                }
                b'K' => self.integer::<1>(false)?,
                b'M' => self.integer::<2>(false)?,
                b'J' => self.integer::<4>(true)?,
                0x8a => self.long_integer()?,
                0x8c => self.text::<1>()?,
                b'X' => self.text::<4>()?,
                b')' => self.push(Value::Tuple(Vec::new())),
                0x85..=0x87 => self.tuple(usize::from(code - 0x84))?,
                b't' => {
                    let items = self.above_mark()?;
                    self.push(Value::Tuple(items));
                }
                b']' => self.push(Value::List(Vec::new())),
                b'}' => self.push(Value::Dictionary(Vec::new())),
                b'a' => self.append(1)?,
                b'e' => self.append_marked()?,
                b's' => self.insert_one()?,
                b'u' => self.insert_marked()?,
                b'q' => {
                    let [key] = self.take()?;
                    self.remember(key.into())?;
                }
                b'r' => {
                    let key = u32::from_le_bytes(self.take()?);
                    self.remember(key.into())?;
                }
                0x94 => self.remember(self.memo.len() as u64)?,
                b'h' => {
                    let [key] = self.take()?;
                    self.recall(key.into())?;
                }
                b'j' => {
                    let key = u32::from_le_bytes(self.take()?);
                    self.recall(key.into())?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.global(module, name)?;
                }
                0x93 => self.global_of_stack()?,
                b'Q' => self.storage()?,
                b'R' => self.call()?,
                b'b' => self.set_state()?,
                _ => return Err(self.fault(format!("has the instruction {code:#04x}, which checkpoints do not need"))),
            }
        }
        Err(self.fault(format!("has over {STEPS_MAX} instructions")))
    }

    fn push(&mut self, value: Value<'a>) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    /// The topmost value above the last mark.
    fn pop(&mut self) -> Result<Ref, WeightsError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(self.fault("takes more from its stack than there is"));
        }
        self.stack.pop().ok_or_else(|| self.fault("takes more from its stack than there is"))
    }

    fn above_mark(&mut self) -> Result<Vec<Ref>, WeightsError> {
        let mark = self.marks.pop().ok_or_else(|| self.fault("has no mark where it needs one"))?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    /// The value that others go into; it stays.
    fn top(&mut self) -> Result<&mut Value<'a>, WeightsError> {
        let top = self.pop()?;
        self.stack.push(top);
        Ok(&mut self.values[top])
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], WeightsError> {
        let end = self.place.checked_add(count);
        let text = end.and_then(|end| self.pickle.text.get(self.place..end));
        let text = text.ok_or_else(|| self.fault("ends in the middle of an instruction"))?;
        self.place += count;
        Ok(text)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], WeightsError> {
        let mut taken = [0; N];
        taken.copy_from_slice(self.bytes(N)?);
        Ok(taken)
    }

    fn utf8(&self, text: &'a [u8]) -> Result<&'a str, WeightsError> {
        std::str::from_utf8(text).map_err(|_| self.fault("has a text that is not UTF-8"))
    }

    fn text<const N: usize>(&mut self) -> Result<(), WeightsError> {
        let length = self.take::<N>()?.iter().rev().fold(0_usize, |length, byte| length << 8 | usize::from(*byte));
        let text = self.bytes(length)?;
        let text = self.utf8(text)?;
        self.push(Value::Text(text));
        Ok(())
    }

    fn line(&mut self) -> Result<&'a str, WeightsError> {
        let rest = self.pickle.text.get(self.place..).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == b'\n');
        let text = self.bytes(end.ok_or_else(|| self.fault("ends in the middle of a name"))?)?;
        self.place += 1;
        self.utf8(text)
    }

    fn integer<const N: usize>(&mut self, signed: bool) -> Result<(), WeightsError> {
        let taken = self.take::<N>()?;
        self.push(Value::Integer(little(&taken, signed)));
        Ok(())
    }

    fn long_integer(&mut self) -> Result<(), WeightsError> {
        let [length] = self.take()?;
        let taken = self.bytes(length.into())?;
        if taken.len() > 8 {
            return Err(self.fault("has a number of over eight bytes"));
        }
        self.push(Value::Integer(little(taken, true)));
        Ok(())
    }

    fn tuple(&mut self, count: usize) -> Result<(), WeightsError> {
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Value::Tuple(items));
        Ok(())
    }

    fn append(&mut self, count: usize) -> Result<(), WeightsError> {
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(self.pop()?);
        }
        self.extend(items)
    }

    fn append_marked(&mut self) -> Result<(), WeightsError> {
        let items = self.above_mark()?;
        self.extend(items)
    }

    fn extend(&mut self, items: Vec<Ref>) -> Result<(), WeightsError> {
        match self.top()? {
            Value::List(list) => list.extend(items),
            other => {
                let kind = other.kind();
                return Err(self.fault(format!("adds to {kind} as if it were a list")));
            }
        }
        Ok(())
    }

    fn insert_one(&mut self) -> Result<(), WeightsError> {
        let (value, key) = (self.pop()?, self.pop()?);
        self.insert(vec![key, value])
    }

    fn insert_marked(&mut self) -> Result<(), WeightsError> {
        let items = self.above_mark()?;
        self.insert(items)
    }

    fn insert(&mut self, items: Vec<Ref>) -> Result<(), WeightsError> {
        let (pairs, []) = items.as_chunks::<2>() else {
            return Err(self.fault("has a name without a value"));
        };
        match self.top()? {
            Value::Dictionary(entries) => entries.extend(pairs.iter().map(|&[key, value]| (key, value))),
            other => {
                let kind = other.kind();
                return Err(self.fault(format!("adds to {kind} as if it were a dictionary")));
            }
        }
        Ok(())
    }

    fn remember(&mut self, key: u64) -> Result<(), WeightsError> {
        let top = self.pop()?;
        self.stack.push(top);
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<(), WeightsError> {
        let value = self.memo.get(&key).copied();
        self.stack.push(value.ok_or_else(|| self.fault(format!("recalls {key}, which it has not stored")))?);
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), WeightsError> {
        let shown = |text: &str| text.chars().take(100).collect::<String>();
        let unknown = || self.fault(format!("names {}.{}, which is no part of a tensor", shown(module), shown(name)));
        let global = global(module, name).ok_or_else(unknown)?;
        self.push(Value::Global(global));
        Ok(())
    }

    fn global_of_stack(&mut self) -> Result<(), WeightsError> {
        let (name, module) = (self.pop()?, self.pop()?);
        match (&self.values[module], &self.values[name]) {
            (&Value::Text(module), &Value::Text(name)) => self.global(module, name),
            _ => Err(self.fault("names something by what is no text")),
        }
    }

    /// A storage: the word, its type, its name, where it was, and how many elements it has.
    fn storage(&mut self) -> Result<(), WeightsError> {
        let id = self.pop()?;
        let parts = match &self.values[id] {
            Value::Tuple(parts) => parts.as_slice(),
            _ => &[],
        };
        let part = |place: usize| parts.get(place).map(|&part| &self.values[part]);
        match (part(0), part(1), part(2)) {
            (Some(&Value::Text("storage")), Some(&Value::Global(Global::Storage(dtype))), Some(&Value::Text(name))) => {
                self.push(Value::Storage(dtype, name));
                Ok(())
            }
            _ => Err(self.fault("refers to something outside that is no storage")),
        }
    }

    fn call(&mut self) -> Result<(), WeightsError> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (Value::Tuple(arguments), &Value::Global(function)) = (&self.values[arguments], &self.values[function])
        else {
            let kind = self.values[function].kind();
            return Err(self.fault(format!("calls {kind}")));
        };
        let argument = |place: usize| arguments.get(place).map(|&argument| &self.values[argument]);
        let made = match function {
            Global::OrderedDictionary if arguments.is_empty() => Some(Value::Dictionary(Vec::new())),
            Global::Tensor => match argument(0) {
                Some(Value::Storage(Some(dtype), name)) => self.tensor(*dtype, name, arguments),
                _ => None,
            },
            Global::TypedTensor => match (argument(0), argument(6)) {
                (Some(Value::Storage(_, name)), Some(&Value::Global(Global::Type(dtype)))) => {
                    self.tensor(dtype, name, arguments)
                }
                _ => None,
            },
            Global::Parameter => match argument(0) {
                Some(Value::Tensor(tensor)) => Some(Value::Tensor(tensor.clone())),
                _ => None,
            },
            _ => None,
        };
        let made =
            made.ok_or_else(|| self.fault(format!("calls {function:?} with arguments that it does not take")))?;
        self.push(made);
        Ok(())
    }

    fn tensor(&self, dtype: Dtype, storage: &'a str, arguments: &[Ref]) -> Option<Value<'a>> {
        let whole = |value: &Ref| match self.values[*value] {
            Value::Integer(number) => u64::try_from(number).ok(),
            _ => None,
        };
        let list = |value: &Ref| match &self.values[*value] {
            // Bounded here, for many tensors may recall one long list.
            Value::Tuple(items) if items.len() <= DIMS_MAX => items.iter().map(whole).collect::<Option<Vec<_>>>(),
            _ => None,
        };
        let offset = whole(arguments.get(1)?)?;
        let (dims, strides) = (list(arguments.get(2)?)?, list(arguments.get(3)?)?);
        Some(Value::Tensor(Box::new(Tensor { storage, dtype, offset, dims, strides })))
    }

    /// A dictionary of tensors carries the versions of its modules, which say nothing of tensors.
    fn set_state(&mut self) -> Result<(), WeightsError> {
        self.pop()?;
        match self.top()? {
            Value::Dictionary(_) => Ok(()),
            other => {
                let kind = other.kind();
                Err(self.fault(format!("gives a state to {kind}")))
            }
        }
    }
}

/// A little-endian number of up to eight bytes.
fn little(bytes: &[u8], signed: bool) -> i64 {
    let number = bytes.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    let unused = 64 - 8 * bytes.len().clamp(1, 8);
    let wide = number << unused;
    if signed { wide.cast_signed() >> unused } else { (wide >> unused).cast_signed() }
}
