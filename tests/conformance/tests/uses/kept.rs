//! The models that the project keeps cases of.

use std::path::{Path, PathBuf};

use accel_backends::files::LocalFiles;
use accel_backends::tensor::{Engine, Tensor};
use accel_backends::weights;
use accel_conformance::case::Case;
use accel_models::arch;
use accel_models::family::decoder::Decoder;
use accel_models::model::Model;
use accel_models::rules::Loader;
use accel_models::spec::Spec;

const VOCABULARY: u32 = 40;

/// A model that the project keeps a case of.
pub struct Kept {
    pub name: String,
    pub case: Case,
    pub directory: tempfile::TempDir,
}

impl Kept {
    /// All whose spec is one that is wanted.
    pub fn all(wanted: impl Fn(&Spec) -> bool) -> Vec<Self> {
        let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/conformance");
        let mut paths: Vec<PathBuf> = std::fs::read_dir(cases).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let kept = |path: &PathBuf| {
            let directory = tempfile::tempdir().unwrap();
            let case = Case::read(path).unwrap();
            case.write_model(directory.path()).unwrap();
            Self { name: case.name.clone(), case, directory }
        };
        let all: Vec<Self> = paths.iter().map(kept).collect();
        all.into_iter().filter(|kept| wanted(&kept.spec())).collect()
    }

    /// The decoders of text that say what comes next.
    pub fn decoders() -> Vec<Self> {
        let decoders = Self::all(|spec| matches!(spec, Spec::Decoder(_)));
        decoders.into_iter().filter(|kept| kept.name.contains("LM")).collect()
    }

    pub fn spec(&self) -> Spec {
        let files = LocalFiles::open(self.directory.path()).unwrap();
        arch::describe(&files, &weights::index(&files).unwrap()).unwrap().spec
    }

    pub fn with_loader<T>(&self, engine: &Engine, work: impl FnOnce(&Loader<'_>, Spec) -> T) -> T {
        let files = LocalFiles::open(self.directory.path()).unwrap();
        let index = weights::index(&files).unwrap();
        let model = arch::describe(&files, &index).unwrap();
        work(&Loader::new(&files, &index, model.rules, engine), model.spec)
    }

    pub fn model(&self, engine: &Engine) -> Model {
        self.with_loader(engine, |loader, spec| Model::load(loader, spec).unwrap())
    }

    pub fn decoder(&self, engine: &Engine) -> Decoder {
        let Model::Decoder(decoder) = self.model(engine) else { panic!("{}: no decoder", self.name) };
        *decoder
    }
}

/// Some tokens of any vocabulary.
pub fn tokens(seed: u32, length: usize) -> Vec<u32> {
    (0..length as u32).map(|place| (place * 7 + seed * 13 + place * place) % VOCABULARY).collect()
}

pub fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.to_vec().unwrap().into_iter().map(f32::to_bits).collect()
}
