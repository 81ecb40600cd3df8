//! Models as wholes, asked by the names of their inputs: those that see, hear, and read several things at once.

use std::collections::BTreeSet;

use accel_backends::tensor::{Engine, Kind, Tensor};
use accel_conformance::inputs;
use accel_models::cache::Row;
use accel_models::model::{Begun, Inputs, Model};
use accel_models::spec::Spec;
use accel_models::stack::{Reading, Stack};

use crate::kept::{Kept, bits};

/// Tokens that are written one by one.
const STEPS: usize = 4;

/// All but the decoders of text, which have tests of their own.
fn wholes() -> Vec<Kept> {
    Kept::all(|spec| !matches!(spec, Spec::Decoder(_)))
}

fn sequences(engine: &Engine, ids: &[Vec<i64>]) -> Tensor {
    Tensor::whole(engine, ids.concat(), &[ids.len(), ids[0].len()]).unwrap()
}

/// The likeliest token of each sequence.
fn likeliest(logits: &Tensor) -> Vec<i64> {
    let width = logits.dim(-1).unwrap();
    let likeliest = |row: &[f32]| (0..width).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as i64;
    logits.to_vec().unwrap().chunks(width).map(likeliest).collect()
}

/// What writes about pictures, sounds or documents, token by token, and all of it read at once.
#[test]
fn token_by_token_gives_the_bits_of_a_whole_sequence() {
    let engine = Engine::cpu(1).unwrap();
    let mut families = BTreeSet::new();
    for kept in wholes() {
        let model = kept.model(&engine);
        let (family, written) = match &model {
            Model::EncoderDecoder(_) => ("encoder-decoder", "decoder_input_ids"),
            Model::VisionLanguage(_) => ("vision-language", "input_ids"),
            Model::Multimodal(_) => ("multimodal", "input_ids"),
            Model::Retrieval(_) => ("retrieval", "decoder_input_ids"),
            _ => continue,
        };
        let Some(generated) = &kept.case.generate else { continue };
        // The mask of the reference is all ones.
        let wanted = |name: &str| name != "attention_mask" && generated.inputs.iter().any(|one| one == name);
        let asked = || inputs(&kept.case, &engine, wanted).unwrap();
        let Begun { mut state, sequences: mut ids, logits } = model.begin(&asked()).unwrap();
        let mut steps = vec![logits];
        for _ in 0..STEPS {
            let next = likeliest(steps.last().unwrap());
            ids.iter_mut().zip(&next).for_each(|(ids, id)| ids.push(*id));
            steps.push(model.next(&next, &mut state).unwrap());
        }
        let mut whole = asked();
        whole.insert(written, sequences(&engine, &ids));
        let outputs = model.forward(&whole).unwrap();
        let (_, logits) = outputs.into_iter().find(|(name, _)| name == "logits").unwrap();
        let first = ids[0].len() - STEPS - 1;
        for (step, found) in steps.iter().enumerate() {
            let at_once = logits.at(1, first + step).unwrap();
            assert!(bits(found) == bits(&at_once), "{}: step {step}", kept.name);
        }
        families.insert(family);
    }
    assert_eq!(families.len(), 4, "{families:?}");
}

/// The part of a tensor that belongs to one of `count` things that are asked at once.
fn share(name: &str, x: &Tensor, count: usize, one: usize) -> Option<Tensor> {
    // What a codec says of a sound is in parts that follow one another.
    let axis = usize::from(name == "audio_codes");
    let rows = x.dims().get(axis).copied().filter(|rows| rows.is_multiple_of(count))?;
    let each = rows / count;
    Some(x.pick(axis as isize, &(one * each..(one + 1) * each).collect::<Vec<_>>()).unwrap())
}

/// Inputs that all have in common.
const COMMON: [&str; 2] = ["img_ids", "txt_ids"];

/// Answers about all of them.
const ABOUT_ALL: [&str; 3] = ["logits_per_image", "logits_per_text", "codevector_perplexity"];

/// Things that are asked at once are answered as each alone.
#[test]
fn a_batch_gives_the_bits_of_each_alone() {
    let engine = Engine::cpu(1).unwrap();
    let mut types = BTreeSet::new();
    for kept in wholes() {
        let model = kept.model(&engine);
        let together = inputs(&kept.case, &engine, |_| true).unwrap();
        let names = || kept.case.inputs.iter().map(|input| input.name.as_str());
        let rows = |name: &str| together.optional(name).and_then(|x| x.dims().first().copied()).unwrap_or(1);
        let count = names().find(|name| !COMMON.contains(name)).map_or(1, rows);
        // Pictures that stand among the tokens of some sequences only have no batch of their own, nor have those that are
        // compared with all texts.
        let compared = together.number("use_itm_head") == Some(0.0);
        if count == 1 || compared || names().any(|name| name.ends_with("_grid_thw") && rows(name) != count) {
            continue;
        }
        let answers = model.forward(&together).unwrap();
        for one in 0..count {
            let mut alone = Inputs::default();
            for name in names() {
                let x = together.tensor(name).unwrap();
                let own = share(name, x, count, one).filter(|_| !COMMON.contains(&name));
                alone.insert(name, own.unwrap_or_else(|| x.clone()));
            }
            for name in kept.case.scalar_inputs.keys() {
                if let Some(number) = together.number(name) {
                    alone.insert_number(name, number);
                }
            }
            let alone = model.forward(&alone).unwrap_or_else(|error| panic!("{}: {error}", kept.name));
            assert_eq!(alone.len(), answers.len(), "{}", kept.name);
            for ((name, all), (_, alone)) in answers.iter().zip(&alone) {
                if ABOUT_ALL.contains(&name.as_str()) {
                    continue;
                }
                let own = share(name, all, count, one).unwrap_or_else(|| panic!("{}: {name}", kept.name));
                assert_eq!(own.dims(), alone.dims(), "{}: {name} of {one}", kept.name);
                let same = match own.kind() {
                    Kind::Whole => own.to_whole().unwrap() == alone.to_whole().unwrap(),
                    Kind::Float => bits(&own) == bits(alone),
                };
                assert!(same, "{}: {name} of {one}", kept.name);
            }
        }
        types.insert(kept.case.model_type.clone());
    }
    assert!(types.len() > 30, "{types:?}");
}

/// States of any kind: `[rows, hidden]`.
fn states(engine: &Engine, rows: usize, hidden: usize) -> Tensor {
    Tensor::new(engine, (0..rows * hidden).map(|place| (place as f32 * 0.7).sin()).collect(), &[rows, hidden]).unwrap()
}

/// The layers of what sees, hears, reads and writes in two stages, of which the second knows numbers alone.
#[test]
fn two_stages_give_the_same_bits() {
    let engine = Engine::cpu(1).unwrap();
    let mut types = BTreeSet::new();
    for kept in wholes() {
        let model = kept.model(&engine);
        let crosses = |stack: &&Stack| stack.spec().layers.iter().any(|layer| layer.cross.is_some());
        for stack in model.stacks().into_iter().filter(|stack| !crosses(stack)) {
            let (depth, rows) = (stack.spec().layers.len(), Row::whole([6, 3]));
            let reading = Reading { rows: &rows, absent: &[], source: None };
            let x = || states(&engine, 9, stack.spec().hidden);
            let run = |range, x| stack.layers(range, x, &reading, None).unwrap();
            let whole = run(0..depth, x());
            let half = run(0..depth / 2, x());
            let half = Tensor::new(&engine, half.to_vec().unwrap(), half.dims()).unwrap();
            assert!(bits(&run(depth / 2..depth, half)) == bits(&whole), "{}", kept.name);
            types.insert(kept.case.model_type.clone());
        }
    }
    assert!(types.len() > 20, "{types:?}");
}
