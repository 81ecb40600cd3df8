//! Experts of which all are in one tensor: each is read by itself, and is what transformers makes of it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::path::Path;
use std::sync::Mutex;

use accel_backends::files::{FileInfo, LocalFiles, ModelFiles};
use accel_backends::tensor::Engine;
use accel_backends::weights::{self, TensorIndex};
use accel_models::ModelError;
use accel_models::rules::stacked::{Form, Part};
use accel_models::rules::{Loader, Rule, Rules};

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/stacked-experts");
const TENSORS: &str = "model.layers.0.mlp.experts.gate_up_proj";
const EXPERTS: usize = 3;
const OUTPUTS: usize = 8;
const INPUTS: usize = 64;

const STACK: &[Rule] = &[
    Rule::stacked("packed.even.{}.{}", "layers.{}.mlp.experts.gate_up_proj_blocks", Form::Mxfp4, Part::Even),
    Rule::stacked("packed.odd.{}.{}", "layers.{}.mlp.experts.gate_up_proj_blocks", Form::Mxfp4, Part::Odd),
    Rule::stacked("turned.whole.{}.{}", "layers.{}.mlp.experts.gate_up_proj", Form::Transposed, Part::Whole),
    Rule::stacked("turned.even.{}.{}", "layers.{}.mlp.experts.gate_up_proj", Form::Transposed, Part::Even),
    Rule::stacked("turned.odd.{}.{}", "layers.{}.mlp.experts.gate_up_proj", Form::Transposed, Part::Odd),
    Rule::stacked("turned.second.{}.{}", "layers.{}.mlp.experts.gate_up_proj", Form::Transposed, Part::SecondHalf),
    Rule::stacked("plain.whole.{}.{}", "layers.{}.mlp.experts.gate_up_proj", Form::AsIs, Part::Whole),
    Rule::stacked("plain.first.{}.{}", "layers.{}.mlp.experts.gate_up_proj", Form::AsIs, Part::FirstHalf),
    Rule::stacked("plain.second.{}.{}", "layers.{}.mlp.experts.gate_up_proj", Form::AsIs, Part::SecondHalf),
    Rule::stacked("bias.odd.{}.{}", "layers.{}.mlp.experts.gate_up_proj_bias", Form::AsIs, Part::Odd),
    Rule::stacked("bias.first.{}.{}", "layers.{}.mlp.experts.gate_up_proj_bias", Form::AsIs, Part::FirstHalf),
];

/// Files that remember what was read of them.
struct Watched {
    files: LocalFiles,
    read: Mutex<Vec<(u64, u64)>>,
}

impl ModelFiles for Watched {
    fn files(&self) -> &[FileInfo] {
        self.files.files()
    }

    fn read_at(&self, file: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read.lock().unwrap().push((offset, buffer.len() as u64));
        self.files.read_at(file, offset, buffer)
    }
}

struct Experts {
    files: Watched,
    index: TensorIndex,
    engine: Engine,
}

impl Experts {
    fn open() -> Self {
        let files = LocalFiles::open(Path::new(DIRECTORY)).unwrap();
        let index = weights::index(&files).unwrap();
        Self { files: Watched { files, read: Mutex::default() }, index, engine: Engine::cpu(1).unwrap() }
    }

    fn loader(&self) -> Loader<'_> {
        let rules = Rules { prefix: "", base: "model.", stack: STACK, heads: &[] };
        Loader::new(&self.files, &self.index, rules, &self.engine)
    }

    fn read(&self, name: &str, dims: &[usize]) -> Vec<f32> {
        let tensor = self.loader().tensor(name, dims).unwrap();
        assert_eq!(tensor.dims(), dims, "{name}");
        tensor.to_vec().unwrap()
    }

    /// What was read since this was asked last.
    fn ranges(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.files.read.lock().unwrap())
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn four_bits_are_the_numbers_that_transformers_makes_of_them() {
    let experts = Experts::open();
    let mut infinite = 0;
    for number in 0..EXPERTS {
        for part in ["even", "odd"] {
            let [packed, turned] = ["packed", "turned"]
                .map(|form| experts.read(&format!("{form}.{part}.0.{number}"), &[OUTPUTS / 2, INPUTS]));
            assert_eq!(bits(&packed), bits(&turned), "{part} of {number}");
            infinite += packed.iter().filter(|value| !value.is_finite()).count();
        }
    }
    assert!(infinite > 0, "the largest exponents are there");
}

#[test]
fn parts_are_those_of_the_slice() {
    let experts = Experts::open();
    for number in 0..EXPERTS {
        // The file's own order: each input, and of each all outputs.
        let lying = experts.read(&format!("plain.whole.0.{number}"), &[INPUTS, OUTPUTS]);
        let turned: Vec<f32> = (0..OUTPUTS)
            .flat_map(|output| (0..INPUTS).map(move |input| input * OUTPUTS + output))
            .map(|at| lying[at])
            .collect();
        let read = |name: &str, dims: &[usize]| experts.read(&format!("{name}.0.{number}"), dims);
        assert_eq!(bits(&read("turned.whole", &[OUTPUTS, INPUTS])), bits(&turned));
        let rows = |picked: fn(usize) -> bool| -> Vec<f32> {
            turned
                .chunks(INPUTS)
                .enumerate()
                .filter(|(row, _)| picked(*row))
                .flat_map(|(_, row)| row)
                .copied()
                .collect()
        };
        assert_eq!(bits(&read("turned.even", &[OUTPUTS / 2, INPUTS])), bits(&rows(|row| row % 2 == 0)));
        assert_eq!(bits(&read("turned.odd", &[OUTPUTS / 2, INPUTS])), bits(&rows(|row| row % 2 == 1)));
        assert_eq!(bits(&read("turned.second", &[OUTPUTS / 2, INPUTS])), bits(&rows(|row| row >= OUTPUTS / 2)));
        let half = lying.len() / 2;
        assert_eq!(bits(&read("plain.first", &[INPUTS / 2, OUTPUTS])), bits(&lying[..half]));
        assert_eq!(bits(&read("plain.second", &[INPUTS / 2, OUTPUTS])), bits(&lying[half..]));
        let (first, odd) = (read("bias.first", &[OUTPUTS / 2]), read("bias.odd", &[OUTPUTS / 2]));
        assert_eq!([first[1], first[3]], [odd[0], odd[1]]);
    }
}

#[test]
fn only_the_bytes_of_the_expert_are_read() {
    let experts = Experts::open();
    let range = |name: &str, part: u64, parts: u64| {
        let tensor = experts.index.get(name).unwrap();
        let bytes = tensor.bytes / parts;
        (tensor.offset + part * bytes, bytes)
    };
    let all = EXPERTS as u64;
    experts.read("turned.odd.0.1", &[OUTPUTS / 2, INPUTS]);
    assert_eq!(experts.ranges(), [range(TENSORS, 1, all)]);
    experts.read("plain.second.0.2", &[INPUTS / 2, OUTPUTS]);
    assert_eq!(experts.ranges(), [range(TENSORS, 5, 2 * all)]);
    experts.read("packed.even.0.2", &[OUTPUTS / 2, INPUTS]);
    let [blocks, scales] = ["_blocks", "_scales"].map(|end| range(&format!("{TENSORS}{end}"), 2, all));
    assert_eq!(experts.ranges(), [blocks, scales]);
}

#[test]
fn what_is_not_read_of_all_experts_is_left_over() {
    let experts = Experts::open();
    let loader = experts.loader();
    let left = |loader: &Loader<'_>| match loader.finish() {
        Err(ModelError::LeftOver { name }) => Some(name),
        other => other.map(|()| None).unwrap(),
    };
    assert_eq!(left(&loader).as_deref(), Some(TENSORS));
    for number in 0..EXPERTS {
        assert!(left(&loader).is_some(), "{number} experts of {EXPERTS}");
        loader.tensor(&format!("turned.even.0.{number}"), &[OUTPUTS / 2, INPUTS]).unwrap();
        loader.tensor(&format!("packed.even.0.{number}"), &[OUTPUTS / 2, INPUTS]).unwrap();
        loader.tensor(&format!("bias.odd.0.{number}"), &[OUTPUTS / 2]).unwrap();
    }
    assert_eq!(left(&loader), None);
}

#[test]
fn slices_that_are_not_there_are_named() {
    let experts = Experts::open();
    let loader = experts.loader();
    let fault = |name: &str, dims: &[usize]| loader.tensor(name, dims).unwrap_err().to_string();
    assert_eq!(fault("turned.even.0.3", &[4, 64]), "turned.even.0.3: expected [4, 64, 8], found [3, 64, 8]");
    assert_eq!(fault("turned.even.0.0", &[4, 32]), "turned.even.0.0: expected [3, 32, 8], found [3, 64, 8]");
    assert_eq!(fault("packed.even.0.0", &[4, 96]), "packed.even.0.0: expected [3, 8, 3, 16], found [3, 8, 2, 16]");
    assert_eq!(fault("packed.even.0.0", &[4, 65]), "packed.even.0.0: expected [3, 8, 0, 16], found [3, 8, 2, 16]");
    assert_eq!(fault("bias.odd.0.0", &[5]), "bias.odd.0.0: expected [3, 10], found [3, 8]");
}
