//! Decoders of text.

use accel_backends::tensor::{Engine, Tensor};
use accel_models::cache::{Row, State};
use accel_models::family::decoder::Decoder;
use accel_models::layers::embed::Tokens;

use crate::kept::{Kept, bits, tokens};

/// Logits after every token of one sequence, read at once and alone, in bits.
pub fn alone(decoder: &Decoder, engine: &Engine, ids: &[u32]) -> Vec<u32> {
    let row = Row { len: ids.len(), past: 0, slot: 0, horizon: ids.len() };
    let wanted: Vec<usize> = (0..ids.len()).collect();
    bits(&decoder.forward(engine, ids, &[row], &wanted, &mut decoder.state()).unwrap().unwrap())
}

#[test]
fn token_by_token_gives_the_same_bits() {
    let engine = Engine::cpu(1).unwrap();
    for kept in Kept::decoders() {
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
    for kept in Kept::decoders() {
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
    for kept in Kept::decoders() {
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
