//! Experts in another process.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use accel_backends::files::LocalFiles;
use accel_backends::tensor::{Engine, Tensor};
use accel_backends::weights;
use accel_models::layers::moe::{Experts, LocalExperts};
use accel_models::model::{Inputs, Model};
use accel_models::rules::Loader;
use accel_models::spec::{FfnSpec, Spec, StackSpec};
use accel_models::{ModelError, arch};

use crate::kept::{Kept, bits, tokens};

/// A layer that has experts: the number of its stack, and its own.
type Place = (usize, usize);

/// What a model is made of, and what its parts are called.
fn stacks(spec: &Spec) -> Vec<(&'static str, &StackSpec)> {
    match spec {
        Spec::Decoder(spec) => vec![("", &spec.stack)],
        Spec::EncoderDecoder(spec) => {
            let decoder = spec.decoder.as_ref().map(|decoder| ("decoder", decoder));
            [("encoder", &spec.encoder)].into_iter().chain(decoder).collect()
        }
        _ => Vec::new(),
    }
}

fn mixtures(spec: &Spec) -> Vec<Place> {
    let stacks = stacks(spec).into_iter().enumerate();
    let layers = stacks.flat_map(|(stack, (_, spec))| {
        let layers = spec.layers.iter().enumerate();
        layers.filter(|(_, layer)| matches!(layer.ffn, FfnSpec::Experts(_))).map(move |(layer, _)| (stack, layer))
    });
    layers.collect()
}

/// All that a model answers about some tokens, in bits.
fn answer(model: &Model, engine: &Engine) -> Vec<Vec<u32>> {
    let whole = |seed| Tensor::whole(engine, tokens(seed, 8).into_iter().map(i64::from).collect(), &[1, 8]).unwrap();
    let mut inputs = Inputs::default();
    inputs.insert("input_ids", whole(5));
    if matches!(model, Model::EncoderDecoder(_)) {
        inputs.insert("decoder_input_ids", whole(6));
    }
    let mut answers = Vec::new();
    for (name, tensor) in model.forward(&inputs).unwrap() {
        if name.contains("logits") || name.contains("hidden") {
            answers.push(bits(&tensor));
        }
    }
    assert!(!answers.is_empty());
    answers
}

fn set_experts(model: &mut Model, (stack, layer): Place, experts: Elsewhere) {
    match model {
        Model::Decoder(decoder) => decoder.set_experts(layer, Box::new(experts)),
        Model::EncoderDecoder(model) => {
            model.stacks_mut().nth(stack).unwrap().set_experts(layer, Box::new(experts));
        }
        _ => panic!("no model with experts"),
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
    fn start(kept: &Kept, engine: &Engine, (stack, layer): Place) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let role = format!("{} {stack} {layer} {}", listener.local_addr().unwrap(), kept.directory.path().display());
        let mut command = Command::new(std::env::current_exe().unwrap());
        let process = command
            .args(["--exact", &format!("experts::{TEST}")])
            .env(ROLE, role)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
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
    let [address, stack, layer, directory] = role.splitn(4, ' ').collect::<Vec<_>>()[..] else { panic!("{role}") };
    let (stack, layer): Place = (stack.parse().unwrap(), layer.parse().unwrap());
    let engine = Engine::cpu(1).unwrap();
    let files = LocalFiles::open(Path::new(directory)).unwrap();
    let index = weights::index(&files).unwrap();
    let model = arch::describe(&files, &index).unwrap();
    let stacks = stacks(&model.spec);
    let (part, spec) = stacks[stack];
    let FfnSpec::Experts(moe) = &spec.layers[layer].ffn else { panic!("no experts") };
    let loader = Loader::new(&files, &index, model.rules, &engine);
    let loader = if part.is_empty() { loader } else { loader.part(part) };
    let experts = LocalExperts::load(&loader, &format!("layers.{layer}.moe"), moe, spec.hidden).unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    while let Some(sizes) = read(&mut stream, 2) {
        let (tokens, chosen) = (sizes[0] as usize, sizes[1] as usize);
        let x = Tensor::new(&engine, read(&mut stream, tokens * spec.hidden).unwrap(), &[tokens, spec.hidden]).unwrap();
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
    for kept in Kept::all(|spec| !mixtures(spec).is_empty()) {
        let mut model = kept.model(&engine);
        let whole = answer(&model, &engine);
        for place in mixtures(&kept.spec()) {
            set_experts(&mut model, place, Elsewhere::start(&kept, &engine, place));
            layers += 1;
        }
        assert!(answer(&model, &engine) == whole, "{}", kept.name);
    }
    assert!(layers > 1);
}
