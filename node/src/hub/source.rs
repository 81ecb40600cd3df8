//! How a model of the hub is named: `hf://org/name[@revision][:QUANT]`.

use std::fmt;
use std::str::FromStr;

use accel_protocol::ModelName;

use super::error::HubError;

/// How a name of the hub may begin; the longer ones are what Ollama's clients write.
const PREFIXES: [&str; 5] = ["hf://", "https://hf.co/", "https://huggingface.co/", "hf.co/", "huggingface.co/"];
/// An owner, a name, or a part of a revision.
const PART_BYTES: usize = 96;
/// The branch that a model is taken from where nothing else is said.
const MAIN: &str = "main";

/// A model of the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubModel {
    /// Owner and name, with a `/` between.
    pub repository: String,
    /// A branch, tag or commit, where one is asked for.
    pub revision: Option<String>,
    /// Which of the repository's GGUF files, in capitals.
    pub quant: Option<String>,
}

impl HubModel {
    /// Whether a text names a model of the hub, well or badly.
    pub fn is_meant(text: &str) -> bool {
        rest(text).is_some()
    }

    /// The revision to ask for.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }

    /// What the model is called here: `org/name`, with the revision as a third part, and with `:QUANT`.
    ///
    /// # Errors
    /// `Name` when that is too long.
    pub fn name(&self) -> Result<ModelName, HubError> {
        let Self { repository, revision, quant } = self;
        let revision = revision.iter().map(|revision| format!("/{revision}"));
        let quant = quant.iter().map(|quant| format!(":{quant}"));
        let name: String = [repository.clone()].into_iter().chain(revision).chain(quant).collect();
        name.parse().map_err(|_| HubError::Name { found: name })
    }
}

fn rest(text: &str) -> Option<&str> {
    PREFIXES.iter().find_map(|prefix| text.strip_prefix(prefix))
}

impl FromStr for HubModel {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || HubError::Name { found: text.chars().take(200).collect() };
        let rest = rest(text).ok_or_else(wrong)?;
        let (path, quant) = rest.split_once(':').map_or((rest, None), |(path, quant)| (path, Some(quant)));
        let (repository, revision) =
            path.split_once('@').map_or((path, None), |(repository, revision)| (repository, Some(revision)));
        let (owner, name) = repository.split_once('/').ok_or_else(wrong)?;
        let plain = is_plain(owner)
            && is_plain(name)
            && revision.is_none_or(|revision| revision.split('/').all(is_plain))
            && quant.is_none_or(is_plain);
        if !plain {
            return Err(wrong());
        }
        let quant = quant.map(str::to_ascii_uppercase);
        let model = Self {
            repository: repository.to_owned(),
            revision: revision.map(str::to_owned),
            // Ollama's word for a model of which nothing else is said.
            quant: quant.filter(|quant| quant != "LATEST"),
        };
        // What cannot be named here is refused before anything is downloaded.
        model.name()?;
        Ok(model)
    }
}

fn is_plain(part: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=PART_BYTES).contains(&part.len()) && !part.starts_with('.') && part.chars().all(plain)
}

impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf://{}", self.repository)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        match &self.quant {
            Some(quant) => write!(f, ":{quant}"),
            None => Ok(()),
        }
    }
}
