//! One definition, used in several ways: token by token, in a ragged batch, in two stages, and with experts elsewhere.
//! Each gives the same bits as a whole sequence read at once and alone.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use accel_backends::files::LocalFiles;
use accel_backends::tensor::{Engine, Tensor};
use accel_backends::weights;
use accel_conformance::case::Case;
use accel_models::cache::{Row, State};
use accel_models::family::decoder::Decoder;
use accel_models::layers::embed::Tokens;
use accel_models::layers::moe::{Experts, LocalExperts};
use accel_models::model::Model;
use accel_models::rules::Loader;
use accel_models::spec::{FfnSpec, Spec};
use accel_models::{ModelError, arch};

const VOCABULARY: u32 = 90;

/// A decoder of text that the project keeps a case of.
struct Kept {
    name: String,
    directory: tempfile::TempDir,
}

impl Kept {
    /// All of them.
    fn all() -> Vec<Self> {
        let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/conformance");
        let mut paths: Vec<PathBuf> = std::fs::read_dir(cases).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let kept = |path: &PathBuf| {
            let directory = tempfile::tempdir().unwrap();
            let case = Case::read(path).unwrap();
            case.write_model(directory.path()).unwrap();
            Self { name: case.name, directory }
        };
        let all: Vec<Self> = paths.iter().map(kept).collect();
        all.into_iter().filter(|kept| matches!(kept.spec(), Spec::Decoder(_)) && kept.name.contains("LM")).collect()
    }

    fn spec(&self) -> Spec {
        let files = LocalFiles::open(self.directory.path()).unwrap();
        arch::describe(&files, &weights::index(&files).unwrap()).unwrap().spec
    }

    fn with_loader<T>(&self, engine: &Engine, work: impl FnOnce(&Loader<'_>, Spec) -> T) -> T {
        let files = LocalFiles::open(self.directory.path()).unwrap();
        let index = weights::index(&files).unwrap();
        let model = arch::describe(&files, &index).unwrap();
        work(&Loader::new(&files, &index, model.rules, engine), model.spec)
    }

    fn decoder(&self, engine: &Engine) -> Decoder {
        let model = self.with_loader(engine, |loader, spec| Model::load(loader, spec).unwrap());
        let Model::Decoder(decoder) = model else { panic!("{}: no decoder", self.name) };
        *decoder
    }

    /// The layers that have experts.
    fn mixtures(&self) -> Vec<usize> {
        let Spec::Decoder(spec) = self.spec() else { return Vec::new() };
        let layers = spec.stack.layers.iter().enumerate();
        layers.filter(|(_, layer)| matches!(layer.ffn, FfnSpec::Experts(_))).map(|(number, _)| number).collect()
    }
}

fn tokens(seed: u32, length: usize) -> Vec<u32> {
    (0..length as u32).map(|place| (place * 7 + seed * 13 + place * place) % VOCABULARY).collect()
}

/// Logits after every token of one sequence, read at once and alone, in bits.
fn alone(decoder: &Decoder, engine: &Engine, ids: &[u32]) -> Vec<u32> {
    let row = Row { len: ids.len(), past: 0, slot: 0, horizon: ids.len() };
    let wanted: Vec<usize> = (0..ids.len()).collect();
    bits(&decoder.forward(engine, ids, &[row], &wanted, &mut decoder.state()).unwrap().unwrap())
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.to_vec().unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
fn token_by_token_gives_the_same_bits() {
    let engine = Engine::cpu(1).unwrap();
    for kept in Kept::all() {
        let decoder = kept.decoder(&engine);
        let ids = tokens(1, 12);
        let whole = alone(&decoder, &engine, &ids);
        for first in [1, 5] {
            let (mut state, mut past, mut all) = (decoder.state(), 0, Vec::new());
            while past < ids.len() {
                let len = if past == 0 { first } else { 1 };
                let row = Row { len, past, slot: 0, horizon: ids.len() };
                let wanted: Vec<usize> = (0..len).collect();
                let part = &ids[past..past + len];
                all.extend(bits(&decoder.forward(&engine, part, &[row], &wanted, &mut state).unwrap().unwrap()));
                past += len;
            }
            assert_eq!(all, whole, "{}: beginning with {first}", kept.name);
        }
    }
}

/// Three sequences of unequal lengths, read in unequal pieces together, one of them in a slot that another had.
#[test]
fn a_ragged_batch_gives_the_bits_of_each_sequence_alone() {
    let engine = Engine::cpu(2).unwrap();
    for kept in Kept::all() {
        let decoder = kept.decoder(&engine);
        let sequences = [tokens(1, 11), tokens(2, 4), tokens(3, 7)];
        let mut state = decoder.state();
        let used = Row { len: 5, past: 0, slot: 4, horizon: 5 };
        decoder.forward(&engine, &tokens(9, 5), &[used], &[], &mut state).unwrap();
        state.clear(4);
        let slots = [2, 0, 4];
        let steps: [[usize; 3]; 3] = [[3, 4, 1], [1, 0, 4], [7, 0, 2]];
        let (mut past, mut answers) = ([0; 3], [Vec::new(), Vec::new(), Vec::new()]);
        for step in steps {
            let (mut ids, mut rows, mut of) = (Vec::new(), Vec::new(), Vec::new());
            for (number, len) in step.into_iter().enumerate().filter(|(_, len)| *len > 0) {
                let horizon = sequences[number].len();
                rows.push(Row { len, past: past[number], slot: slots[number], horizon });
                ids.extend_from_slice(&sequences[number][past[number]..past[number] + len]);
                of.extend(std::iter::repeat_n(number, len));
                past[number] += len;
            }
            let wanted: Vec<usize> = (0..ids.len()).collect();
            let logits = bits(&decoder.forward(&engine, &ids, &rows, &wanted, &mut state).unwrap().unwrap());
            let width = logits.len() / ids.len();
            for (number, row) in of.into_iter().zip(logits.chunks(width)) {
                answers[number].extend_from_slice(row);
            }
        }
        for (sequence, answer) in sequences.iter().zip(&answers) {
            assert!(*answer == alone(&decoder, &engine, sequence), "{}", kept.name);
        }
    }
}

/// Two stages with a state each, which only know their own layers' keys and values.
#[test]
fn two_stages_give_the_same_bits() {
    let engine = Engine::cpu(1).unwrap();
    for kept in Kept::all() {
        let decoder = kept.decoder(&engine);
        let ids = tokens(4, 9);
        let whole = alone(&decoder, &engine, &ids);
        let middle = decoder.depth() / 2;
        let mut states: [State; 2] = [decoder.state(), decoder.state()];
        let mut answer = Vec::new();
        for (past, len) in [(0, 6), (6, 1), (7, 2)] {
            let rows = [Row { len, past, slot: 0, horizon: ids.len() }];
            let known: Vec<i64> = ids[past..past + len].iter().map(|&id| id.into()).collect();
            let tensor = Tensor::whole(&engine, known.clone(), &[len]).unwrap();
            let x = decoder.embed(Tokens { ids: &tensor, known: &known, types: None }, &rows).unwrap();
            let x = decoder.layers(0..middle, x, &rows, &mut states[0]).unwrap();
            // What travels between peers is plain numbers.
            let x = Tensor::new(&engine, x.to_vec().unwrap(), x.dims()).unwrap();
            let x = decoder.layers(middle..decoder.depth(), x, &rows, &mut states[1]).unwrap();
            answer.extend(bits(&decoder.head(&x, &(0..len).collect::<Vec<_>>()).unwrap()));
        }
        assert_eq!(answer, whole, "{}", kept.name);
    }
}

/// Experts in another process: this test again, told by the environment whose experts, and where to connect to.
#[derive(Debug)]
struct Elsewhere {
    process: Child,
    stream: Mutex<TcpStream>,
    engine: Engine,
}

const TEST: &str = "experts_of_another_process_give_the_same_bits";
const ROLE: &str = "ACCEL_TEST_EXPERTS";

impl Elsewhere {
    fn start(kept: &Kept, engine: &Engine, layer: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let role = format!("{} {layer} {}", listener.local_addr().unwrap(), kept.directory.path().display());
        let mut command = Command::new(std::env::current_exe().unwrap());
        let process = command.args(["--exact", TEST]).env(ROLE, role).stdout(Stdio::null()).spawn().unwrap();
        let stream = Mutex::new(listener.accept().unwrap().0);
        Self { process, stream, engine: engine.clone() }
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // Without its other end the process ends by itself.
        self.stream.get_mut().unwrap().shutdown(Shutdown::Both).unwrap();
        assert!(self.process.wait().unwrap().success());
    }
}

impl Experts for Elsewhere {
    fn forward(&self, _layer: usize, x: &Tensor, places: &Tensor) -> Result<Tensor, ModelError> {
        let mut stream = self.stream.lock().unwrap();
        let [tokens, hidden] = x.sizes().unwrap();
        let [_, chosen] = places.sizes().unwrap();
        write(&mut stream, &[tokens as f32, chosen as f32]);
        write(&mut stream, &x.to_vec().unwrap());
        write(&mut stream, &places.to_whole().unwrap().into_iter().map(|place| place as f32).collect::<Vec<_>>());
        let answer = read(&mut stream, tokens * chosen * hidden).unwrap();
        Ok(Tensor::new(&self.engine, answer, &[tokens, chosen, hidden]).unwrap())
    }
}

fn write(stream: &mut TcpStream, values: &[f32]) {
    stream.write_all(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>()).unwrap();
}

/// Nothing where the other end has gone.
fn read(stream: &mut TcpStream, count: usize) -> Option<Vec<f32>> {
    let mut bytes = vec![0; 4 * count];
    stream.read_exact(&mut bytes).ok()?;
    Some(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

/// Works the experts of one layer out until the other end goes.
fn serve(role: &str) {
    let [address, layer, directory] = role.splitn(3, ' ').collect::<Vec<_>>()[..] else { panic!("{role}") };
    let (layer, engine) = (layer.parse::<usize>().unwrap(), Engine::cpu(1).unwrap());
    let files = LocalFiles::open(Path::new(directory)).unwrap();
    let index = weights::index(&files).unwrap();
    let model = arch::describe(&files, &index).unwrap();
    let Spec::Decoder(spec) = model.spec else { panic!("no decoder") };
    let FfnSpec::Experts(moe) = &spec.stack.layers[layer].ffn else { panic!("no experts") };
    let (loader, hidden) = (Loader::new(&files, &index, model.rules, &engine), spec.stack.hidden);
    let experts = LocalExperts::load(&loader, &format!("layers.{layer}.moe"), moe, hidden).unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    while let Some(sizes) = read(&mut stream, 2) {
        let (tokens, chosen) = (sizes[0] as usize, sizes[1] as usize);
        let x = Tensor::new(&engine, read(&mut stream, tokens * hidden).unwrap(), &[tokens, hidden]).unwrap();
        let places = read(&mut stream, tokens * chosen).unwrap().into_iter().map(|place| place as i64).collect();
        let places = Tensor::whole(&engine, places, &[tokens, chosen]).unwrap();
        write(&mut stream, &experts.forward(layer, &x, &places).unwrap().to_vec().unwrap());
    }
}

#[test]
fn experts_of_another_process_give_the_same_bits() {
    if let Ok(role) = std::env::var(ROLE) {
        return serve(&role);
    }
    let engine = Engine::cpu(1).unwrap();
    let mut layers = 0;
    for kept in Kept::all() {
        let mixtures = kept.mixtures();
        if mixtures.is_empty() {
            continue;
        }
        let ids = tokens(5, 8);
        let whole = alone(&kept.decoder(&engine), &engine, &ids);
        let mut decoder = kept.decoder(&engine);
        for layer in mixtures {
            decoder.set_experts(layer, Box::new(Elsewhere::start(&kept, &engine, layer)));
            layers += 1;
        }
        assert!(alone(&decoder, &engine, &ids) == whole, "{}", kept.name);
    }
    assert!(layers > 1);
}
