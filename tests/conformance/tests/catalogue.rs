//! `docs/models.md` says what the registry and the kept cases say. To write it anew:
//! `ACCEL_UPDATE=1 tests/run -E 'binary(catalogue)'`.

#![expect(clippy::unwrap_used, reason = "a test that fails should say where")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use accel_backends::files::LocalFiles;
use accel_backends::weights;
use accel_conformance::case::Case;
use accel_models::arch::{self, Architecture};
use accel_models::spec::Spec;

const HEAD: &str = "\
# Models

Every model type that accel runs, by kind: the tasks that its classes do as jobs of a swarm (`accel-cli run --task`), and
the classes that are checked against Hugging Face's implementation in every run of the tests. Each of these cases is run
eagerly, traced and interpreted, and as an ONNX model in ONNX Runtime; classes marked \u{2020} generate, token by token,
and are checked in that too. Classes with a case of their own are in bold.

This page is written by a test from the registry and the cases. How to add a type:
[ARCHITECTURE.md](../ARCHITECTURE.md#add-a-model-type-in-fifteen-minutes).
";

fn page() -> String {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/conformance");
    let cases = std::fs::read_dir(directory).unwrap().map(|entry| Case::read(&entry.unwrap().path()).unwrap());
    let mut checked: BTreeMap<(String, String), bool> = BTreeMap::new();
    let mut specs: BTreeMap<String, Spec> = BTreeMap::new();
    for case in cases {
        *checked.entry((case.model_type.clone(), case.class.clone())).or_default() |= case.generate.is_some();
        // Other classes may be of another family: an encoder alone is.
        if !specs.contains_key(&case.model_type) || of_first_class(&case) {
            specs.insert(case.model_type.clone(), spec(&case));
        }
    }
    let mut kinds: BTreeMap<Architecture, Vec<&arch::HuggingFace>> = BTreeMap::new();
    for arch in arch::ALL {
        kinds.entry(arch.architecture).or_default().push(&arch.hugging_face);
    }
    let mut page = HEAD.to_owned();
    write!(page, "\n{} model types, {} cases of classes.\n", arch::ALL.len(), checked.len()).unwrap();
    for (kind, mut types) in kinds {
        types.sort_by_key(|of| of.model_type);
        write!(page, "\n## {}\n\n| type | tasks | classes |\n|---|---|---|\n", kind.name()).unwrap();
        for of in types {
            let tasks: BTreeSet<&str> = of
                .classes
                .iter()
                .flat_map(|class| accel_pipelines::tasks(&specs[of.model_type], class.head))
                .map(|task| task.name())
                .collect();
            let tasks = tasks.into_iter().collect::<Vec<_>>().join(", ");
            let class = |class: &arch::Class| match checked.get(&(of.model_type.to_owned(), class.name.to_owned())) {
                None => class.name.to_owned(),
                Some(generates) => format!("**{}**{}", class.name, if *generates { "\u{2020}" } else { "" }),
            };
            let classes = of.classes.iter().map(class).collect::<Vec<_>>().join(", ");
            writeln!(
                page,
                "| {} | {} | {classes} |",
                of.model_type,
                if tasks.is_empty() { "\u{2013}" } else { &tasks }
            )
            .unwrap();
        }
    }
    page
}

/// Whether a case is of the class that its type's checkpoints are of when they name none.
fn of_first_class(case: &Case) -> bool {
    let found = arch::ALL.iter().find(|arch| arch.hugging_face.model_type == case.model_type);
    found.and_then(|arch| arch.hugging_face.classes.first()).is_some_and(|class| class.name == case.class)
}

/// What a case's model is made of, which tells its family.
fn spec(case: &Case) -> Spec {
    let directory = tempfile::tempdir().unwrap();
    case.write_model(directory.path()).unwrap();
    let files = LocalFiles::open(directory.path()).unwrap();
    arch::describe(&files, &weights::index(&files).unwrap()).unwrap().spec
}

#[test]
fn the_page_of_models_is_what_the_registry_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/models.md");
    let page = page();
    if std::env::var_os("ACCEL_UPDATE").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let found = std::fs::read_to_string(&path).expect("docs/models.md");
    assert!(found == page, "docs/models.md is out of date: write it with ACCEL_UPDATE=1");
}
