//! Weights that are stored in another way.

use accel_backends::tensor::Engine;
use accel_models::rules::fp8;
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize_to_file};

use crate::decoders::alone;
use crate::kept::{Kept, tokens};

/// A tensor of a file: its name, type, shape and bytes.
type Entry = (String, Dtype, Vec<usize>, Vec<u8>);

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// What a decoder says of whose tensors some others are made.
fn answer(kept: &Kept, engine: &Engine, change: impl Fn(&str, &[usize]) -> Option<Vec<Entry>>) -> Vec<u32> {
    let path = kept.directory.path().join("model.safetensors");
    let file = std::fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let same = |name: &str, view: &TensorView<'_>| {
        vec![(name.to_owned(), view.dtype(), view.shape().to_vec(), view.data().to_vec())]
    };
    let changed: Vec<Entry> = tensors
        .iter()
        .flat_map(|(name, view)| change(name, view.shape()).unwrap_or_else(|| same(name, &view)))
        .collect();
    let views = changed
        .iter()
        .map(|(name, dtype, shape, data)| (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap()));
    let stored = tempfile::NamedTempFile::new_in(kept.directory.path()).unwrap();
    serialize_to_file(views, None, stored.path()).unwrap();
    stored.persist(&path).unwrap();
    let answer = alone(&kept.decoder(engine), engine, &tokens(1, 6));
    std::fs::write(&path, file).unwrap();
    answer
}

/// A matrix of 8-bit floats with a scale for each row, or their products.
fn eighths(name: &str, shape: &[usize], products: bool) -> Option<Vec<Entry>> {
    let &[rows, columns] = shape else { return None };
    if !name.ends_with("_proj.weight") {
        return None;
    }
    // Any numbers but the one that is none.
    let codes: Vec<u8> =
        (0..rows * columns).map(|place| (place * 37 % 0x7f) as u8 | ((place % 2) << 7) as u8).collect();
    let scales: Vec<f32> = (0..rows).map(|row| (row as f32 + 1.0) / 4096.0).collect();
    if !products {
        return Some(vec![
            (format!("{name}_scale"), Dtype::F32, vec![rows, 1], bytes_of(&scales)),
            (name.to_owned(), Dtype::F8_E4M3, shape.to_vec(), codes),
        ]);
    }
    let mut values = fp8::floats(accel_backends::weights::Dtype::F8_E4M3, &codes);
    for (row, scale) in values.chunks_mut(columns).zip(&scales) {
        row.iter_mut().for_each(|value| *value *= scale);
    }
    Some(vec![(name.to_owned(), Dtype::F32, shape.to_vec(), bytes_of(&values))])
}

/// Matrices of all experts as 4-bit floats in blocks with exponents, or their values, which lie the other way.
fn fourths(name: &str, shape: &[usize], values: bool) -> Option<Vec<Entry>> {
    let &[experts, inputs, outputs] = shape else { return None };
    let block = 32;
    let blocks = experts * outputs * inputs / block;
    let byte = |place: usize| (place * 37 % 251) as u8;
    let exponent = |block: usize| 118 + (block % 7) as u8;
    if !values {
        let dims = vec![experts, outputs, inputs / block, block / 2];
        return Some(vec![
            (format!("{name}_scales"), Dtype::U8, dims[..3].to_vec(), (0..blocks).map(exponent).collect()),
            (format!("{name}_blocks"), Dtype::U8, dims, (0..blocks * block / 2).map(byte).collect()),
        ]);
    }
    let value = |expert: usize, input: usize, output: usize| {
        let place = (expert * outputs + output) * inputs + input;
        let code = byte(place / 2) >> (4 * (place % 2)) & 15;
        let size = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][usize::from(code & 7)];
        let size = size * 2f32.powi(i32::from(exponent(place / block)) - 127);
        if code < 8 { size } else { -size }
    };
    let places = (0..experts * inputs * outputs)
        .map(|place| (place / outputs / inputs, place / outputs % inputs, place % outputs));
    let values: Vec<f32> = places.map(|(expert, input, output)| value(expert, input, output)).collect();
    Some(vec![(name.to_owned(), Dtype::F32, shape.to_vec(), bytes_of(&values))])
}

#[test]
fn eight_bit_floats_with_scales_are_their_products() {
    let engine = Engine::cpu(1).unwrap();
    let mut models = 0;
    for kept in Kept::decoders().iter().filter(|kept| kept.name.starts_with("llama__")) {
        let plain = alone(&kept.decoder(&engine), &engine, &tokens(1, 6));
        let [eighths, products] =
            [false, true].map(|products| answer(kept, &engine, |name, shape| eighths(name, shape, products)));
        assert!(eighths == products && eighths != plain, "{}", kept.name);
        models += 1;
    }
    assert!(models > 1);
}

#[test]
fn four_bit_floats_of_all_experts_are_their_values() {
    let engine = Engine::cpu(1).unwrap();
    let mut models = 0;
    for kept in Kept::decoders().iter().filter(|kept| kept.name.starts_with("gpt_oss__")) {
        let plain = alone(&kept.decoder(&engine), &engine, &tokens(1, 6));
        let [fourths, values] =
            [false, true].map(|values| answer(kept, &engine, |name, shape| fourths(name, shape, values)));
        assert!(fourths == values && fourths != plain, "{}", kept.name);
        models += 1;
    }
    assert!(models > 0);
}
