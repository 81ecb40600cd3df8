//! Encoders, alone and with a decoder that sees their states.

use accel_backends::tensor::{Engine, Tensor};
use accel_models::cache::{Row, State};
use accel_models::layers::attention::Source;
use accel_models::layers::embed::Tokens;
use accel_models::model::Model;
use accel_models::spec::Spec;
use accel_models::stack::{Reading, Stack};

use crate::kept::{Kept, bits, tokens};

/// Runs a part of a model for each that the project keeps: its encoder, and its decoder where it has one.
fn each(work: impl Fn(&str, &Engine, &Stack, Option<&Stack>)) {
    let engine = Engine::cpu(1).unwrap();
    let (mut encoders, mut decoders) = (0, 0);
    for kept in Kept::all(|spec| matches!(spec, Spec::Encoder(_) | Spec::EncoderDecoder(_))) {
        match kept.model(&engine) {
            // Those that read one way and say what comes next are decoders.
            Model::Encoder(encoder) if !encoder.stack().spec().causal => {
                work(&kept.name, &engine, encoder.stack(), None);
                encoders += 1;
            }
            Model::EncoderDecoder(model) => {
                let mut stacks = model.stacks();
                work(&kept.name, &engine, stacks.next().unwrap(), stacks.next());
                decoders += 1;
            }
            _ => {}
        }
    }
    assert!(encoders > 1 && decoders > 1);
}

/// What layers read: states of tokens, or, where a model hears, some states.
fn first(engine: &Engine, stack: &Stack, ids: &[u32], rows: &[Row]) -> Tensor {
    if stack.spec().embed.vocabulary > 0 {
        let known: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
        let tensor = Tensor::whole(engine, known.clone(), &[ids.len()]).unwrap();
        return stack.embed(Tokens { ids: &tensor, known: &known, types: None }, rows).unwrap();
    }
    let hidden = stack.spec().hidden;
    let state = |&id: &u32| (0..hidden).map(move |place| ((id as usize * hidden + place) as f32).sin());
    Tensor::new(engine, ids.iter().flat_map(state).collect(), &[ids.len(), hidden]).unwrap()
}

/// Reads rows at once: the states after the last norm.
fn read(
    engine: &Engine,
    stack: &Stack,
    ids: &[u32],
    rows: &[Row],
    source: Option<&Source>,
    mut state: Option<&mut State>,
) -> Tensor {
    let x = first(engine, stack, ids, rows);
    let depth = stack.spec().layers.len();
    let x = stack.layers(0..depth, x, &Reading { rows, absent: &[], source }, state.as_deref_mut()).unwrap();
    if let Some(state) = state {
        state.advance(rows);
    }
    stack.finish(&x).unwrap()
}

/// What a decoder sees of some sequences.
fn source(engine: &Engine, encoder: &Stack, sequences: &[&[u32]]) -> Source {
    let lengths: Vec<usize> = sequences.iter().map(|ids| ids.len()).collect();
    let states = read(engine, encoder, &sequences.concat(), &Row::whole(lengths.clone()), None, None);
    Source { states, lengths, absent: Vec::new() }
}

#[test]
fn a_decoder_that_sees_states_gives_the_same_bits_token_by_token() {
    each(|name, engine, encoder, decoder| {
        let Some(decoder) = decoder else { return };
        let (seen, ids) = (source(engine, encoder, &[&tokens(1, 7)]), tokens(2, 6));
        let whole = bits(&read(engine, decoder, &ids, &Row::whole([ids.len()]), Some(&seen), None));
        let (mut state, mut all) = (State::new(decoder.spec().layers.len()), Vec::new());
        for (past, id) in ids.iter().enumerate() {
            let row = Row { len: 1, past, slot: 0, horizon: ids.len() };
            // What is made of the encoder's states is kept with the first token.
            let seen = (past == 0).then_some(&seen);
            all.extend(bits(&read(engine, decoder, &[*id], &[row], seen, Some(&mut state))));
        }
        assert!(all == whole, "{name}");
    });
}

#[test]
fn a_ragged_batch_gives_the_bits_of_each_sequence_alone() {
    each(|name, engine, encoder, decoder| {
        let sequences = [tokens(1, 9), tokens(2, 4), tokens(3, 6)];
        let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let together = source(engine, encoder, &sequences);
        let alone: Vec<Source> = sequences.iter().map(|ids| source(engine, encoder, &[ids])).collect();
        let each: Vec<u32> = alone.iter().flat_map(|source| bits(&source.states)).collect();
        assert!(bits(&together.states) == each, "{name}: encoder");
        let Some(decoder) = decoder else { return };
        let written = [tokens(4, 2), tokens(5, 7), tokens(6, 1)];
        let rows = Row::whole(written.iter().map(Vec::len));
        let together = bits(&read(engine, decoder, &written.concat(), &rows, Some(&together), None));
        let each = written.iter().zip(&alone);
        let each =
            each.flat_map(|(ids, seen)| bits(&read(engine, decoder, ids, &Row::whole([ids.len()]), Some(seen), None)));
        assert!(each.eq(together), "{name}: decoder");
    });
}

/// What travels between peers is plain numbers.
fn sent(engine: &Engine, x: &Tensor) -> Tensor {
    Tensor::new(engine, x.to_vec().unwrap(), x.dims()).unwrap()
}

#[test]
fn two_stages_give_the_same_bits() {
    each(|name, engine, encoder, decoder| {
        let (read_ids, written) = (tokens(1, 7), tokens(2, 6));
        let whole = source(engine, encoder, &[&read_ids]);
        let halves = |stack: &Stack, x: Tensor, rows: &[Row], source, states: Option<&mut [State; 2]>| {
            let (depth, reading) = (stack.spec().layers.len(), Reading { rows, absent: &[], source });
            let [one, two] = states.map_or([None, None], |[one, two]| [Some(one), Some(two)]);
            let x = stack.layers(0..depth / 2, x, &reading, one).unwrap();
            let x = stack.layers(depth / 2..depth, sent(engine, &x), &reading, two).unwrap();
            bits(&stack.finish(&x).unwrap())
        };
        let rows = Row::whole([read_ids.len()]);
        let x = first(engine, encoder, &read_ids, &rows);
        assert!(halves(encoder, x, &rows, None, None) == bits(&whole.states), "{name}: encoder");
        let Some(decoder) = decoder else { return };
        let depth = decoder.spec().layers.len();
        let at_once = bits(&read(engine, decoder, &written, &Row::whole([written.len()]), Some(&whole), None));
        let (mut states, mut all) = ([State::new(depth), State::new(depth)], Vec::new());
        for (past, len) in [(0, 4), (4, 1), (5, 1)] {
            let rows = [Row { len, past, slot: 0, horizon: written.len() }];
            let x = first(engine, decoder, &written[past..past + len], &rows);
            let seen = (past == 0).then_some(&whole);
            all.extend(halves(decoder, x, &rows, seen, Some(&mut states)));
            states.iter_mut().for_each(|state| state.advance(&rows));
        }
        assert!(all == at_once, "{name}: decoder");
    });
}
