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

/// What a decoder says whose matrices are 8-bit floats with a scale for each row, or their products.
fn answer(kept: &Kept, engine: &Engine, products: bool) -> Vec<u32> {
    let path = kept.directory.path().join("model.safetensors");
    let file = std::fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let mut changed: Vec<Entry> = Vec::new();
    for (name, view) in tensors.iter() {
        let shape = view.shape().to_vec();
        if !name.ends_with("_proj.weight") {
            changed.push((name.to_owned(), view.dtype(), shape, view.data().to_vec()));
            continue;
        }
        // Any numbers but the one that is none.
        let codes: Vec<u8> =
            (0..shape[0] * shape[1]).map(|place| (place * 37 % 0x7f) as u8 | ((place % 2) << 7) as u8).collect();
        let scales: Vec<f32> = (0..shape[0]).map(|row| (row as f32 + 1.0) / 4096.0).collect();
        if products {
            let mut values = fp8::floats(accel_backends::weights::Dtype::F8_E4M3, &codes);
            for (row, scale) in values.chunks_mut(shape[1]).zip(&scales) {
                row.iter_mut().for_each(|value| *value *= scale);
            }
            changed.push((name.to_owned(), Dtype::F32, shape, bytes_of(&values)));
        } else {
            changed.push((format!("{name}_scale"), Dtype::F32, vec![shape[0], 1], bytes_of(&scales)));
            changed.push((name.to_owned(), Dtype::F8_E4M3, shape, codes));
        }
    }
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

#[test]
fn eight_bit_floats_with_scales_are_their_products() {
    let engine = Engine::cpu(1).unwrap();
    let mut models = 0;
    for kept in Kept::decoders().iter().filter(|kept| kept.name.starts_with("llama__")) {
        let plain = alone(&kept.decoder(&engine), &engine, &tokens(1, 6));
        let [eighths, products] = [false, true].map(|products| answer(kept, &engine, products));
        assert!(eighths == products && eighths != plain, "{}", kept.name);
        models += 1;
    }
    assert!(models > 1);
}
