//! Reads configurations key by key, and names the key in every error.
//!
//! One reader serves `config.json` and the metadata of GGUF files, so that both are held to the same checks.

use std::io;

use accel_backends::files::{ModelFiles, read_small};
use accel_backends::weights::gguf::{Metadata, Value as GgufValue};
use serde_json::{Map, Value};

/// A configuration; the largest have label lists of thousands of names.
const CONFIG_BYTES_MAX: u64 = 8 << 20;
const CONFIG_FILE: &str = "config.json";

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be had.
    #[error("{file}: {source}")]
    Read {
        /// The file.
        file: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There is no configuration.
    #[error("the model has no {CONFIG_FILE}; it is needed beside safetensors")]
    NoFile,
    /// The file is no JSON object.
    #[error("{file}: expected a JSON object: {reason}")]
    Syntax {
        /// The file.
        file: String,
        /// Why not.
        reason: String,
    },
    /// A key is not there.
    #[error("{path}: expected {expected}, found nothing")]
    Missing {
        /// File and key.
        path: String,
        /// What should be there.
        expected: &'static str,
    },
    /// A key has a value of another kind.
    #[error("{path}: expected {expected}, found {found}")]
    Mistyped {
        /// File and key.
        path: String,
        /// What should be there.
        expected: String,
        /// What is.
        found: String,
    },
}

/// A configuration, or a section of one.
#[derive(Debug, Default)]
pub struct Config {
    path: String,
    values: Map<String, Value>,
}

impl Config {
    /// Reads `config.json`.
    ///
    /// # Errors
    ///
    /// When it is not there, too large, or no JSON object.
    pub fn read(files: &dyn ModelFiles) -> Result<Self, ConfigError> {
        Self::read_optional(files, CONFIG_FILE)?.ok_or(ConfigError::NoFile)
    }

    /// Reads a configuration of another name.
    ///
    /// # Errors
    ///
    /// When it is not there, too large, or no JSON object.
    pub fn read_named(files: &dyn ModelFiles, file: &str) -> Result<Self, ConfigError> {
        let missing = || ConfigError::Read { file: file.to_owned(), source: io::ErrorKind::NotFound.into() };
        Self::read_optional(files, file)?.ok_or_else(missing)
    }

    /// Reads a configuration that may be left out.
    ///
    /// # Errors
    ///
    /// When it is too large, or no JSON object.
    pub fn read_optional(files: &dyn ModelFiles, file: &str) -> Result<Option<Self>, ConfigError> {
        let text = read_small(files, file, CONFIG_BYTES_MAX)
            .map_err(|source| ConfigError::Read { file: file.to_owned(), source })?;
        text.map(|text| Self::parse(file, &text)).transpose()
    }

    /// Reads the text of a configuration.
    ///
    /// # Errors
    ///
    /// When it is no JSON object.
    pub fn parse(file: &str, text: &[u8]) -> Result<Self, ConfigError> {
        let values = serde_json::from_slice(text).or_else(|error| match strict(text) {
            Some(text) => serde_json::from_slice(&text),
            None => Err(error),
        });
        let syntax =
            |error: serde_json::Error| ConfigError::Syntax { file: file.to_owned(), reason: error.to_string() };
        Ok(Self { path: file.to_owned(), values: values.map_err(syntax)? })
    }

    /// The metadata of a GGUF file, without its lists.
    pub fn from_gguf(metadata: &Metadata) -> Self {
        let scalar = |value: &GgufValue| {
            Some(match value {
                GgufValue::Unsigned(number) => Value::from(*number),
                GgufValue::Signed(number) => Value::from(*number),
                GgufValue::Float(number) => Value::from(*number),
                GgufValue::Bool(truth) => Value::from(*truth),
                GgufValue::Text(text) => Value::from(text.as_str()),
                _ => return None,
            })
        };
        let values = metadata.iter().filter_map(|(key, value)| Some((key.to_owned(), scalar(value)?))).collect();
        Self { path: "GGUF metadata".into(), values }
    }

    /// The place of a key, for errors.
    pub fn path(&self, key: &str) -> String {
        format!("{}: {key}", self.path)
    }

    /// Whether a key has a value other than null.
    pub fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// A size: a positive whole number of at most 2^31.
    ///
    /// # Errors
    ///
    /// When it is missing or mistyped.
    pub fn size(&self, key: &str) -> Result<usize, ConfigError> {
        self.required(key, "a positive whole number", Self::optional_size)
    }

    /// A size that may be left out.
    ///
    /// # Errors
    ///
    /// When it is mistyped.
    pub fn optional_size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let size = |value: &Value| value.as_u64().filter(|size| (1..=1 << 31).contains(size)).map(|size| size as usize);
        self.optional(key, "a positive whole number", size)
    }

    /// A number of parts of which there may be none, at most 2^31; may be left out.
    ///
    /// # Errors
    ///
    /// When it is mistyped.
    pub fn optional_count(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let count = |value: &Value| value.as_u64().filter(|&count| count <= 1 << 31).map(|count| count as usize);
        self.optional(key, "a whole number of 0 or more", count)
    }

    /// A size under one of two keys, the first of which counts: checkpoints of one type use both.
    ///
    /// # Errors
    ///
    /// When both are missing, or it is mistyped.
    pub fn either_size(&self, keys: [&str; 2]) -> Result<usize, ConfigError> {
        self.optional_size(keys[0])?.map_or_else(|| self.size(keys[1]), Ok)
    }

    /// A number.
    ///
    /// # Errors
    ///
    /// When it is missing or mistyped.
    pub fn number(&self, key: &str) -> Result<f64, ConfigError> {
        self.required(key, "a number", Self::optional_number)
    }

    /// A number that may be left out.
    ///
    /// # Errors
    ///
    /// When it is mistyped.
    pub fn optional_number(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.optional(key, "a number", float)
    }

    /// A whole number of any sign that may be left out, such as the id of a token.
    ///
    /// # Errors
    ///
    /// When it is mistyped.
    pub fn optional_integer(&self, key: &str) -> Result<Option<i64>, ConfigError> {
        self.optional(key, "a whole number", Value::as_i64)
    }

    /// A list of so many numbers.
    ///
    /// # Errors
    ///
    /// When it is missing, mistyped or of another length.
    pub fn numbers(&self, key: &str, length: usize) -> Result<Vec<f64>, ConfigError> {
        let numbers = |value: &Value| value.as_array()?.iter().map(float).collect::<Option<Vec<_>>>();
        let read = |config: &Self, key: &str| config.optional(key, "a list of numbers", numbers);
        let numbers = self.required(key, "a list of numbers", read)?;
        if numbers.len() == length { Ok(numbers) } else { Err(self.wrong(key, format!("{length} numbers"))) }
    }

    /// A list of sizes that may be left out; one size stands for a list of itself.
    ///
    /// # Errors
    ///
    /// When it is mistyped.
    pub fn optional_sizes(&self, key: &str) -> Result<Option<Vec<usize>>, ConfigError> {
        let size = |value: &Value| value.as_u64().filter(|size| (1..=1 << 31).contains(size)).map(|size| size as usize);
        let sizes = |value: &Value| match value.as_array() {
            Some(sizes) => sizes.iter().map(size).collect::<Option<Vec<_>>>(),
            None => Some(vec![size(value)?]),
        };
        self.optional(key, "a list of positive whole numbers", sizes)
    }

    /// A size of each of some parts: a list of so many, or one for all.
    ///
    /// # Errors
    ///
    /// When it is mistyped or of another length.
    pub fn sizes_of(&self, key: &str, parts: usize, default: usize) -> Result<Vec<usize>, ConfigError> {
        match self.optional_sizes(key)?.unwrap_or_else(|| vec![default]) {
            sizes if sizes.len() == parts => Ok(sizes),
            sizes if sizes.len() == 1 && !self.is_list(key) => Ok(vec![sizes[0]; parts]),
            _ => Err(self.wrong(key, format!("{parts} sizes"))),
        }
    }

    /// A truth of each of some parts: a list of so many, or one for all.
    ///
    /// # Errors
    ///
    /// When it is mistyped or of another length.
    pub fn truths_of(&self, key: &str, parts: usize, default: bool) -> Result<Vec<bool>, ConfigError> {
        let truths = |value: &Value| match value.as_array() {
            Some(truths) => truths.iter().map(Value::as_bool).collect::<Option<Vec<_>>>(),
            None => Some(vec![value.as_bool()?; parts]),
        };
        let truths = self.optional(key, "a list of truths", truths)?.unwrap_or_else(|| vec![default; parts]);
        if truths.len() == parts { Ok(truths) } else { Err(self.wrong(key, format!("{parts} truths"))) }
    }

    /// A list whose elements are sizes or lists of sizes, which may be left out.
    ///
    /// # Errors
    ///
    /// When it is mistyped.
    pub fn nested_sizes(&self, key: &str) -> Result<Option<Vec<Vec<usize>>>, ConfigError> {
        let size = |value: &Value| value.as_u64().filter(|size| (1..=1 << 31).contains(size)).map(|size| size as usize);
        let sizes = |value: &Value| match value.as_array() {
            Some(sizes) => sizes.iter().map(size).collect::<Option<Vec<_>>>(),
            None => Some(vec![size(value)?]),
        };
        self.optional(key, "a list of sizes or of lists of them", |value| value.as_array()?.iter().map(sizes).collect())
    }

    /// A list of places or numbers of parts, counted from 0; empty when it is left out.
    ///
    /// # Errors
    ///
    /// When it is mistyped.
    pub fn places(&self, key: &str) -> Result<Vec<usize>, ConfigError> {
        let place = |value: &Value| value.as_u64().filter(|&place| place <= 1 << 31).map(|place| place as usize);
        let places = |value: &Value| value.as_array()?.iter().map(place).collect::<Option<Vec<_>>>();
        Ok(self.optional(key, "a list of whole numbers", places)?.unwrap_or_default())
    }

    /// Whether a key is there and null.
    pub fn is_null(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(Value::is_null)
    }

    /// Whether a key has a list.
    pub fn is_list(&self, key: &str) -> bool {
        self.value(key).is_some_and(Value::is_array)
    }

    /// Height and width: two sizes, or one for both; may be left out.
    ///
    /// # Errors
    ///
    /// When it is mistyped.
    pub fn optional_area(&self, key: &str) -> Result<Option<[usize; 2]>, ConfigError> {
        if self.value(key).is_some_and(Value::is_array) {
            let area = self.optional_sizes(key)?.and_then(|sizes| <[usize; 2]>::try_from(sizes).ok());
            return area.map(Some).ok_or_else(|| self.wrong(key, "two positive whole numbers"));
        }
        Ok(self.optional_size(key)?.map(|size| [size; 2]))
    }

    /// A list of whole numbers of any sign that may be left out.
    ///
    /// # Errors
    ///
    /// When it is mistyped.
    pub fn optional_integers(&self, key: &str) -> Result<Option<Vec<i64>>, ConfigError> {
        let integers = |value: &Value| value.as_array()?.iter().map(Value::as_i64).collect::<Option<Vec<_>>>();
        self.optional(key, "a list of whole numbers", integers)
    }

    /// A list of numbers that may be left out.
    ///
    /// # Errors
    ///
    /// When it is mistyped.
    pub fn optional_numbers(&self, key: &str) -> Result<Option<Vec<f64>>, ConfigError> {
        let numbers = |value: &Value| value.as_array()?.iter().map(Value::as_f64).collect::<Option<Vec<_>>>();
        self.optional(key, "a list of numbers", numbers)
    }

    /// A truth value, with what holds when it is left out.
    ///
    /// # Errors
    ///
    /// When it is mistyped.
    pub fn truth_or(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        Ok(self.optional(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    /// A text.
    ///
    /// # Errors
    ///
    /// When it is missing or mistyped.
    pub fn text(&self, key: &str) -> Result<String, ConfigError> {
        self.required(key, "a text", Self::optional_text)
    }

    /// A text that may be left out.
    ///
    /// # Errors
    ///
    /// When it is mistyped.
    pub fn optional_text(&self, key: &str) -> Result<Option<String>, ConfigError> {
        self.optional(key, "a text", |value| value.as_str().map(str::to_owned))
    }

    /// A list of texts; empty when it is left out.
    ///
    /// # Errors
    ///
    /// When it is mistyped.
    pub fn texts(&self, key: &str) -> Result<Vec<String>, ConfigError> {
        let texts = |value: &Value| {
            value.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        };
        Ok(self.optional(key, "a list of texts", texts)?.unwrap_or_default())
    }

    /// Two texts, such as a library and a class of it; none where they are left out, null, or two nulls.
    ///
    /// # Errors
    ///
    /// When it is mistyped.
    pub fn optional_pair(&self, key: &str) -> Result<Option<[String; 2]>, ConfigError> {
        let nothing = |value: &Value| value.as_array().is_some_and(|pair| pair.iter().all(Value::is_null));
        if self.value(key).is_some_and(nothing) {
            return Ok(None);
        }
        let text = |value: &Value| value.as_str().map(str::to_owned);
        self.optional(key, "two texts", |value| match value.as_array()?.as_slice() {
            [first, second] => Some([text(first)?, text(second)?]),
            _ => None,
        })
    }

    /// A section that may be left out.
    ///
    /// # Errors
    ///
    /// When it is mistyped.
    pub fn section(&self, key: &str) -> Result<Option<Self>, ConfigError> {
        let values = self.optional(key, "an object", |value| value.as_object().cloned())?;
        Ok(values.map(|values| Self { path: self.path(key), values }))
    }

    /// Its keys.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// How many keys it has.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether it has no keys.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// An error about the value of a key.
    pub fn wrong(&self, key: &str, expected: impl Into<String>) -> ConfigError {
        let found = self.value(key).map_or_else(|| "nothing".into(), Value::to_string);
        let found = found.chars().take(80).collect();
        ConfigError::Mistyped { path: self.path(key), expected: expected.into(), found }
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    fn required<T>(
        &self,
        key: &str,
        expected: &'static str,
        read: impl Fn(&Self, &str) -> Result<Option<T>, ConfigError>,
    ) -> Result<T, ConfigError> {
        read(self, key)?.ok_or_else(|| ConfigError::Missing { path: self.path(key), expected })
    }

    fn optional<T>(
        &self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        self.value(key).map(|value| read(value).ok_or_else(|| self.wrong(key, expected))).transpose()
    }
}

/// The literals of Python's `json` that JSON has not, and what stands for them: for infinity a number from [`INFINITE`]
/// on, and for what is no number something that is none.
const LITERALS: [(&[u8], &[u8]); 3] = [(b"-Infinity", b"-1e305"), (b"Infinity", b"1e305"), (b"NaN", b"[\"NaN\"]")];

/// Numbers from here on are infinite: no configuration means one of them.
const INFINITE: f64 = 1e300;

/// The text with JSON in place of such literals, where it has any. Nothing within quotes is touched, and what stands for
/// them can be no key, so that a text which was wrong elsewhere stays wrong.
fn strict(text: &[u8]) -> Option<Vec<u8>> {
    let (mut out, mut rest, mut quoted, mut found) = (Vec::with_capacity(text.len()), text, false, false);
    while let [byte, after @ ..] = rest {
        let literal = LITERALS.iter().find(|(literal, _)| !quoted && rest.starts_with(literal));
        rest = match (literal, after) {
            (Some((literal, json)), _) => {
                // A longer word or number is not the literal, and is left for the parser to refuse.
                let end = &rest[literal.len()..];
                let more = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.+-".contains(byte);
                let whole = !end.first().is_some_and(more) && !out.last().is_some_and(more);
                out.extend_from_slice(if whole { json } else { literal });
                found |= whole;
                end
            }
            (None, [escaped, after @ ..]) if quoted && *byte == b'\\' => {
                out.extend([*byte, *escaped]);
                after
            }
            _ => {
                quoted ^= *byte == b'"';
                out.push(*byte);
                after
            }
        };
    }
    found.then_some(out)
}

/// A number, which may be infinite.
fn float(value: &Value) -> Option<f64> {
    value.as_f64().map(|number| if number.abs() >= INFINITE { f64::INFINITY.copysign(number) } else { number })
}
