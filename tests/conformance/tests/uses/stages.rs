//! Half of each stack's layers as a stage, which reads no other part of the model than its own, and is sent plain numbers.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use accel_backends::tensor::{Engine, Tensor};
use accel_models::ModelError;
use accel_models::cache::State;
use accel_models::layers::attention::Source;
use accel_models::model::{Inputs, Model};
use accel_models::share::{Part, Parts, Share, mixtures, stacks};
use accel_models::spec::Spec;
use accel_models::spec::encoder_decoder::SourceSpec;
use accel_models::stack::{Layers, Reading};
use accel_models::stage::{Done, Sequences, Stage, StagePass};
use accel_models::usage::ExpertUsage;

use crate::experts::Only;
use crate::kept::{Kept, bits, tokens};

/// Some layers of a stack, counted in it.
#[derive(Debug)]
struct Half {
    layers: Arc<Mutex<Layers>>,
    /// The number of the stack's first layer in the model.
    first: usize,
    range: Range<usize>,
}

#[derive(Debug)]
struct HalfState {
    layers: Arc<Mutex<Layers>>,
    first: usize,
    range: Range<usize>,
    state: State,
}

impl Stage for Half {
    fn begin(&self) -> Box<dyn Sequences> {
        let state = self.layers.lock().unwrap().state();
        let (layers, first, range) = (self.layers.clone(), self.first, self.range.clone());
        Box::new(HalfState { layers, first, range, state })
    }
}

/// As it comes from another machine.
fn sent(x: &Tensor) -> Tensor {
    Tensor::new(x.engine(), x.to_vec().unwrap(), x.dims()).unwrap()
}

impl Sequences for HalfState {
    fn send(&mut self, pass: StagePass, done: Done) {
        let source = pass.source.map(|source| Source { states: sent(&source.states), ..source });
        let reading = Reading { rows: &pass.rows, absent: &pass.absent, source: source.as_ref() };
        if pass.keeps {
            pass.rows.iter().zip(&pass.absent).for_each(|(row, absent)| self.state.hide(row.slot, absent.clone()));
        }
        let state = pass.keeps.then_some(&mut self.state);
        let mut layers = self.layers.lock().unwrap();
        layers.watch_experts(self.first, pass.routed.as_ref());
        let made = layers.forward(self.range.clone(), sent(&pass.x), &reading, None, state);
        done(made.map(|made| sent(&made.pick(0, &pass.wanted).unwrap())));
    }

    fn clear(&mut self, slot: usize) {
        self.state.clear(slot);
    }

    fn reorder(&mut self, from: &[usize]) {
        self.state.reorder(from);
    }
}

/// Layers with all their experts.
fn share_of(spec: &Spec, layers: Range<usize>) -> Share {
    let mut share = Share::default();
    for (layer, moe) in mixtures(spec).into_iter().filter(|(layer, _)| layers.contains(layer)) {
        (0..moe.experts).for_each(|expert| share.insert(Part::Expert(layer, expert)));
    }
    layers.for_each(|layer| share.insert(Part::Layer(layer)));
    share
}

/// What a model answers about two sequences, and what it then says comes next while they change places.
fn answers(model: &Model, engine: &Engine) -> Result<Vec<Vec<u32>>, ModelError> {
    let whole = |seed| {
        let ids = tokens(seed, 8).into_iter().chain(tokens(seed + 1, 8)).map(i64::from).collect();
        Tensor::whole(engine, ids, &[2, 8]).unwrap()
    };
    let mut inputs = Inputs::default();
    inputs.insert("input_ids", whole(5));
    inputs.insert_number("decoder_start_token_id", 1.0);
    let mut begun = model.begin(&inputs)?;
    let mut answers = vec![bits(&begun.logits)];
    for from in [[0, 1], [1, 0], [1, 1]] {
        begun.state.reorder(&from);
        answers.push(bits(&model.next(&[3, 4], &mut begun.state)?));
    }
    let mut inputs = Inputs::default();
    inputs.insert("input_ids", whole(7));
    if matches!(model, Model::EncoderDecoder(_)) {
        inputs.insert("decoder_input_ids", whole(9));
    }
    let mask = [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1].to_vec();
    inputs.insert("attention_mask", Tensor::whole(engine, mask, &[2, 8]).unwrap());
    let logits = |(name, logits): &(String, Tensor)| (name == "logits").then(|| bits(logits));
    answers.extend(model.forward(&inputs)?.iter().filter_map(logits));
    Ok(answers)
}

#[test]
fn stages_that_have_their_own_layers_alone_give_the_same_bits() {
    let engine = Engine::cpu(1).unwrap();
    let reads_tokens = |spec: &Spec| match spec {
        Spec::Decoder(_) => true,
        Spec::EncoderDecoder(spec) => matches!(spec.source, SourceSpec::Tokens) && spec.decoder.is_some(),
        _ => false,
    };
    let mut models = 0;
    for kept in Kept::all(reads_tokens) {
        let (name, spec) = (&kept.name, kept.spec());
        let usage = || ExpertUsage::of(&kept.spec()).map(Arc::new);
        let (of_whole, of_halves) = (usage(), usage());
        let mut model = kept.model(&engine);
        of_whole.iter().for_each(|usage| model.watch_experts(usage));
        let whole = match answers(&model, &engine) {
            Ok(whole) => whole,
            // Models that generate are the ones that are split.
            Err(ModelError::Unsupported { .. } | ModelError::MissingInput { .. }) => continue,
            Err(error) => panic!("{name}: {error}"),
        };
        let (mut own, mut stages, mut first) = (Share { ends: true, ..Share::default() }, Vec::new(), 0);
        for (_, stack) in stacks(&spec) {
            let (middle, end) = (first + stack.layers.len() / 2, first + stack.layers.len());
            let here = share_of(&spec, first..middle);
            own.layers.extend(here.layers);
            own.experts.extend(here.experts);
            let there = share_of(&spec, middle..end);
            let parts = Only::open(kept.directory.path(), &engine, &there);
            let (layers, of_stack) = parts.layers(&there).unwrap();
            assert_eq!(of_stack, first..end);
            let half = Half { layers: Arc::new(Mutex::new(layers)), first, range: middle - first..end - first };
            stages.push((middle..end, Arc::new(half)));
            first = end;
        }
        let parts: Parts = Only::open(kept.directory.path(), &engine, &own);
        let loader = parts.loader(Some(&own));
        let mut model = Model::load(&loader, spec).unwrap();
        loader.finish().unwrap();
        for (range, stage) in stages {
            model.set_stage(range, stage).unwrap();
        }
        of_halves.iter().for_each(|usage| model.watch_experts(usage));
        assert!(answers(&model, &engine).unwrap() == whole, "{name}");
        let counted = |usage: Option<Arc<ExpertUsage>>| usage.map(|usage| usage.layers());
        assert_eq!(counted(of_whole), counted(of_halves), "{name}: what routers chose");
        models += 1;
    }
    assert!(models > 20, "{models} models");
}
