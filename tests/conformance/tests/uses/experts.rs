//! Experts in another process, each process reading no other part of the model than its own.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use accel_backends::files::{Extent, FileInfo, LocalFiles, ModelFiles};
use accel_backends::tensor::{Engine, Tensor};
use accel_models::ModelError;
use accel_models::layers::mlp::Mlp;
use accel_models::layers::moe::Experts;
use accel_models::model::{Inputs, Model};
use accel_models::share::{Anatomy, Part, Parts, Share, mixtures};
use accel_models::usage::ExpertUsage;

use crate::kept::{Kept, bits, tokens};

/// The files of a model of which only a share may be read.
pub struct Only {
    files: LocalFiles,
    forbidden: Vec<Extent>,
}

impl Only {
    /// The parts of a model, of which only those of a share can be read.
    pub fn open(directory: &Path, engine: &Engine, share: &Share) -> Parts {
        let open = || LocalFiles::open(directory).unwrap();
        let whole = Parts::open(Arc::new(open()), engine.clone()).unwrap();
        let anatomy: &Anatomy = whole.anatomy();
        let others = anatomy.parts().filter(|&part| !share.has(part));
        let forbidden = others.flat_map(|part| anatomy.extents(part)).cloned().collect();
        Parts::open(Arc::new(Self { files: open(), forbidden }), engine.clone()).unwrap()
    }
}

impl ModelFiles for Only {
    fn files(&self) -> &[FileInfo] {
        self.files.files()
    }

    fn read_at(&self, file: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset + buffer.len() as u64;
        let touches =
            |extent: &&Extent| extent.file == file && offset < extent.offset + extent.bytes && extent.offset < end;
        match self.forbidden.iter().find(touches) {
            Some(extent) => Err(io::Error::other(format!("{extent:?} is no part of the share"))),
            None => self.files.read_at(file, offset, buffer),
        }
    }
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

/// Some experts by layer and number.
type Held = BTreeMap<(usize, usize), Mlp>;

/// The experts of a model whose number leaves `rest` when halved, and the parts that they were read from.
fn half(directory: &Path, engine: &Engine, rest: usize, mut share: Share) -> (Parts, Held) {
    let whole = Parts::open(Arc::new(LocalFiles::open(directory).unwrap()), engine.clone()).unwrap();
    for (layer, moe) in mixtures(&whole.description().spec) {
        (0..moe.experts)
            .filter(|expert| expert % 2 == rest)
            .for_each(|expert| share.insert(Part::Expert(layer, expert)));
    }
    let parts = Only::open(directory, engine, &share);
    let experts = share.experts.iter().map(|&(layer, expert)| ((layer, expert), parts.expert(layer, expert).unwrap()));
    let experts = experts.collect();
    (parts, experts)
}

/// Experts of even numbers here, and the others in another process: this test again, told by the environment which model,
/// and where to connect to.
#[derive(Debug)]
struct Elsewhere {
    process: Child,
    stream: Mutex<TcpStream>,
    here: Held,
    /// How many rows each expert worked out.
    rows: Mutex<BTreeMap<(usize, usize), u64>>,
    engine: Engine,
}

const TEST: &str = "experts_of_another_process_give_the_same_bits";
const ROLE: &str = "ACCEL_TEST_EXPERTS";

impl Elsewhere {
    fn start(directory: &Path, engine: &Engine, here: Held) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let role = format!("{} {}", listener.local_addr().unwrap(), directory.display());
        let mut command = Command::new(std::env::current_exe().unwrap());
        let process = command
            .args(["--exact", &format!("experts::{TEST}")])
            .env(ROLE, role)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let stream = Mutex::new(listener.accept().unwrap().0);
        Self { process, stream, here, rows: Mutex::default(), engine: engine.clone() }
    }

    fn row(&self, layer: usize, expert: usize, x: &Tensor) -> Vec<f32> {
        *self.rows.lock().unwrap().entry((layer, expert)).or_default() += 1;
        if let Some(here) = self.here.get(&(layer, expert)) {
            return here.forward(x).unwrap().to_vec().unwrap();
        }
        let mut stream = self.stream.lock().unwrap();
        let x = x.to_vec().unwrap();
        write(&mut stream, &[layer as f32, expert as f32, x.len() as f32]);
        write(&mut stream, &x);
        read(&mut stream, x.len()).unwrap()
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
    fn forward(&self, layer: usize, x: &Tensor, places: &Tensor) -> Result<Tensor, ModelError> {
        let [tokens, hidden] = x.sizes().unwrap();
        let [_, chosen] = places.sizes().unwrap();
        let rows = places
            .to_whole()
            .unwrap()
            .into_iter()
            .enumerate()
            .flat_map(|(slot, expert)| self.row(layer, expert as usize, &x.narrow(0, slot / chosen, 1).unwrap()));
        Ok(Tensor::new(&self.engine, rows.collect(), &[tokens, chosen, hidden]).unwrap())
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

/// Works out the experts of odd numbers until the other end goes.
fn serve(role: &str) {
    let (address, directory) = role.split_once(' ').unwrap();
    let engine = Engine::cpu(1).unwrap();
    let (_parts, experts) = half(Path::new(directory), &engine, 1, Share::default());
    let mut stream = TcpStream::connect(address).unwrap();
    while let Some(call) = read(&mut stream, 3) {
        let [layer, expert, hidden] = [0, 1, 2].map(|place| call[place] as usize);
        let x = Tensor::new(&engine, read(&mut stream, hidden).unwrap(), &[1, hidden]).unwrap();
        write(&mut stream, &experts[&(layer, expert)].forward(&x).unwrap().to_vec().unwrap());
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
        let spec = kept.spec();
        let mut model = kept.model(&engine);
        let whole = answer(&model, &engine);
        let usage = Arc::new(ExpertUsage::of(&spec).unwrap());
        model.watch_experts(&usage);
        assert!(answer(&model, &engine) == whole, "{}: watched", kept.name);
        layers += mixtures(&spec).len();
        let depth = accel_models::share::stacks(&spec).iter().map(|(_, stack)| stack.layers.len()).sum();
        let dense = Share { ends: true, layers: (0..depth).collect(), ..Share::default() };
        let (parts, here) = half(kept.directory.path(), &engine, 0, dense.clone());
        let loader = parts.loader(Some(&dense));
        let mut model = Model::load(&loader, spec).unwrap();
        loader.finish().unwrap();
        let elsewhere = Arc::new(Elsewhere::start(kept.directory.path(), &engine, here));
        model.set_experts(&(elsewhere.clone() as Arc<dyn Experts>));
        let spread = Arc::new(ExpertUsage::of(&kept.spec()).unwrap());
        model.watch_experts(&spread);
        assert!(answer(&model, &engine) == whole, "{}", kept.name);
        // What was counted is what was worked out, wherever that is.
        let rows = elsewhere.rows.lock().unwrap();
        for layer in spread.layers() {
            let (number, tokens) = (layer.layer(), layer.tokens());
            let worked = |expert| rows.get(&(number, expert)).copied().unwrap_or(0);
            let worked: Vec<u64> = (0..layer.experts()).map(worked).collect();
            assert_eq!((tokens, layer.routed()), (8, &worked[..]), "{}: layer {number}", kept.name);
        }
        assert_eq!(usage.layers(), spread.layers(), "{}", kept.name);
    }
    assert!(layers > 1);
}
