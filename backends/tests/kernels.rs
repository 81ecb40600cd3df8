//! Kernels: exact against the formats' own dequantisation, and the same bits however the work is cut.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::borrow::Cow;
use std::sync::Arc;

use accel_backends::tensor::{
    Activation, Angles, AttentionShape, Engine, Keys, KeysValues, Linear, PAGE, QueryRow, RopeStyle, Tensor, Weight,
};
use accel_backends::weights::Dtype;
use candle_core::Device;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};

/// Numbers between -1 and 1 that look random and are always the same.
fn noise(seed: u64, length: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..length).map(|_| next()).collect()
}

const QUANTISED: [(Dtype, GgmlDType); 10] = [
    (Dtype::Q4_0, GgmlDType::Q4_0),
    (Dtype::Q4_1, GgmlDType::Q4_1),
    (Dtype::Q5_0, GgmlDType::Q5_0),
    (Dtype::Q5_1, GgmlDType::Q5_1),
    (Dtype::Q8_0, GgmlDType::Q8_0),
    (Dtype::Q2_K, GgmlDType::Q2K),
    (Dtype::Q3_K, GgmlDType::Q3K),
    (Dtype::Q4_K, GgmlDType::Q4K),
    (Dtype::Q5_K, GgmlDType::Q5K),
    (Dtype::Q6_K, GgmlDType::Q6K),
];

/// A quantised matrix, and its values as candle unpacks them.
fn quantised(dtype: Dtype, ggml: GgmlDType, rows: usize, columns: usize) -> (Weight, Vec<f32>) {
    let values = candle_core::Tensor::from_vec(noise(3, rows * columns), (rows, columns), &Device::Cpu).unwrap();
    let packed = QTensor::quantize(&values, ggml).unwrap();
    let bytes = packed.data().unwrap().into_owned();
    let storage = QStorage::from_data(Cow::Borrowed(&bytes), &Device::Cpu, ggml).unwrap();
    let reference = QTensor::new(storage, (rows, columns)).unwrap().dequantize(&Device::Cpu).unwrap();
    let weight = Weight::new("w", dtype, &[rows, columns], bytes).unwrap();
    (weight, reference.flatten_all().unwrap().to_vec1().unwrap())
}

/// A matrix of 4-bit floats in blocks of 32 that share an exponent, and its values.
fn mxfp4(rows: usize, columns: usize) -> (Weight, Vec<f32>) {
    let (mut bytes, mut values) = (Vec::new(), Vec::new());
    for (block, numbers) in noise(7, rows * columns).chunks(32).enumerate() {
        let exponent = 118 + block % 12;
        let sizes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        let codes: Vec<u8> = numbers.iter().map(|number| ((number + 1.0) * 7.99) as u8).collect();
        bytes.push(exponent as u8);
        bytes.extend((0..16).map(|place| codes[place] | codes[place + 16] << 4));
        values.extend(codes.iter().map(|&code| {
            let size = sizes[usize::from(code % 8)] * 2f32.powi(exponent as i32 - 127);
            if code < 8 { size } else { -size }
        }));
    }
    (Weight::new("w", Dtype::MXFP4, &[rows, columns], bytes).unwrap(), values)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn engines() -> [Engine; 4] {
    [Engine::cpu(1).unwrap(), Engine::cpu(3).unwrap(), Engine::portable(1).unwrap(), Engine::portable(2).unwrap()]
}

/// Every format, with a width that ends inside a stretch and rows that end inside a tile.
fn weights() -> Vec<(Weight, Vec<f32>)> {
    let mut all: Vec<_> = QUANTISED.into_iter().map(|(dtype, ggml)| quantised(dtype, ggml, 45, 1024)).collect();
    for (dtype, columns) in [(Dtype::F32, 37), (Dtype::F16, 45), (Dtype::BF16, 1001)] {
        let values = noise(5, 19 * columns);
        let bytes = match dtype {
            Dtype::F16 => values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect(),
            Dtype::BF16 => values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        };
        let stored = values.iter().map(|&value| match dtype {
            Dtype::F16 => half::f16::from_f32(value).to_f32(),
            Dtype::BF16 => half::bf16::from_f32(value).to_f32(),
            _ => value,
        });
        all.push((Weight::new("w", dtype, &[19, columns], bytes).unwrap(), stored.collect()));
    }
    all.push(mxfp4(45, 1024));
    all
}

#[test]
fn every_format_is_unpacked_exactly() {
    for engine in engines() {
        for (weight, reference) in weights() {
            assert_eq!(
                bits(&Tensor::stored(&engine, weight.clone().into()).to_vec().unwrap()),
                bits(&reference),
                "{}",
                weight.dtype()
            );
        }
    }
}

#[test]
fn a_product_is_right_and_the_same_for_every_cut() {
    let engines = engines();
    for (weight, reference) in weights() {
        let (rows, columns, tokens) = (weight.rows(), weight.columns(), 8);
        let (dtype, weight) = (weight.dtype(), Arc::new(weight));
        let x = noise(7, tokens * columns);
        let run = |engine: &Engine, first: usize, count: usize| {
            let part = x[first * columns..(first + count) * columns].to_vec();
            let bias = Some(Tensor::new(engine, noise(9, rows), &[rows]).unwrap());
            let layer = Linear { weight: Tensor::stored(engine, weight.clone()), bias };
            Tensor::new(engine, part, &[count, columns]).unwrap().linear(&layer).unwrap().to_vec().unwrap()
        };
        let whole = run(&engines[0], 0, tokens);
        for (place, value) in whole.iter().enumerate() {
            let (token, row) = (place / rows, place % rows);
            let products =
                (0..columns).map(|k| f64::from(x[token * columns + k]) * f64::from(reference[row * columns + k]));
            let expected = products.sum::<f64>() + f64::from(noise(9, rows)[row]);
            assert!((f64::from(*value) - expected).abs() < 1e-4, "{}: {value} {expected}", dtype);
        }
        for engine in &engines {
            assert_eq!(bits(&run(engine, 0, tokens)), bits(&whole), "{}", dtype);
            for (first, count) in [(0, 1), (3, 1), (2, 2), (1, 5), (7, 1)] {
                let part = run(engine, first, count);
                assert_eq!(bits(&part), bits(&whole[first * rows..(first + count) * rows]), "{}", dtype);
            }
        }
    }
}

#[test]
fn attention_is_right_and_the_same_for_every_cut() {
    let (tokens, past) = (150, 20);
    let first_block = [true; 64];
    let scattered: Vec<bool> = (0..tokens).map(|key| key % 5 == 1 || (64..128).contains(&key)).collect();
    for (head, window, absent) in [
        (8, None, &[][..]),
        (12, Some(70), &[]),
        (64, None, &[]),
        (8, None, &first_block),
        (12, Some(70), &scattered),
        (64, None, &scattered),
    ] {
        let shape = AttentionShape { kv_heads: 2, scale: 0.3, window, ..AttentionShape::plain(4, head) };
        let (keys, values) = (noise(1, tokens * 2 * head), noise(2, tokens * 2 * head));
        let q = noise(3, (tokens - past) * 4 * head);
        let run = |engine: &Engine, first: usize, count: usize, kept: usize| {
            let held = kept * 2 * head;
            // In pages, and in one piece.
            fn pages(held: &[f32], page: usize) -> Keys<'_> {
                Keys::Pages(held.chunks(page).collect())
            }
            let page = PAGE * 2 * head;
            let paged = first.is_multiple_of(2);
            let kept = KeysValues {
                keys: if paged { pages(&keys[..held], page) } else { Keys::Whole(&keys[..held]) },
                values: if paged { pages(&values[..held], page) } else { Keys::Whole(&values[..held]) },
                absent: &absent[..absent.len().min(kept)],
                bias: None,
                queries: count,
                length: kept,
            };
            let query = |place: usize| {
                let position = past + first + place;
                let seen = window.map_or(0, |window| (position + 1).saturating_sub(window));
                QueryRow { sequence: 0, row: place, first: seen, end: position + 1 }
            };
            let queries: Vec<_> = (0..count).map(query).collect();
            let q = q[first * 4 * head..(first + count) * 4 * head].to_vec();
            let q = Tensor::new(engine, q, &[count, 4 * head]).unwrap();
            q.attention_paged(&shape, &queries, &[kept], None).unwrap().to_vec().unwrap()
        };
        let engines = engines();
        let whole = run(&engines[0], 0, tokens - past, tokens);
        for place in (0..whole.len()).step_by(37) {
            let (query, column) = (place / (4 * head), place % (4 * head));
            let (position, from) = (past + query, column / head / 2 * head);
            let first = window.map_or(0, |window| (position + 1_usize).saturating_sub(window));
            let q = &q[query * 4 * head + column / head * head..][..head];
            let score = |key: usize| -> f64 {
                (0..head).map(|i| f64::from(q[i]) * f64::from(keys[key * 2 * head + from + i])).sum::<f64>() * 0.3
            };
            let seen = || (first..=position).filter(|&key| !absent.get(key).is_some_and(|&absent| absent));
            let weights: Vec<f64> = seen().map(|key| score(key).exp()).collect();
            let value = |key: usize| f64::from(values[key * 2 * head + from + column % head]);
            let sum: f64 = weights.iter().zip(seen()).map(|(weight, key)| weight * value(key)).sum();
            // Who sees nothing takes the mean of all.
            let mean = (0..tokens).map(value).sum::<f64>() / tokens as f64;
            let expected = if weights.is_empty() { mean } else { sum / weights.iter().sum::<f64>() };
            assert!((f64::from(whole[place]) - expected).abs() < 1e-5, "{} {expected}", whole[place]);
        }
        let sees = |query: usize| {
            let position = past + query;
            let first = window.map_or(0, |window| (position + 1_usize).saturating_sub(window));
            (first..=position).any(|key| !absent.get(key).is_some_and(|&absent| absent))
        };
        for engine in &engines {
            assert_eq!(bits(&run(engine, 0, tokens - past, tokens)), bits(&whole));
            for (first, count) in [(0, 1), (43, 2), (44, 1), (100, 30), (129, 1)] {
                let part = run(engine, first, count, past + first + count);
                // The mean of all depends on how many there are, and nobody looks at what stands there.
                for query in (first..first + count).filter(|&query| sees(query)) {
                    let own = &part[(query - first) * 4 * head..][..4 * head];
                    assert_eq!(bits(own), bits(&whole[query * 4 * head..][..4 * head]));
                }
            }
        }
    }
}

#[test]
fn elementwise_operations_are_right_and_the_same_everywhere() {
    let gate: Vec<f32> = noise(1, 9001).iter().map(|x| x * 120.0).chain([0.0, -0.0, 1e30, -1e30]).collect();
    let up = noise(2, gate.len());
    let tensor = |engine: &Engine, values: &[f32]| Tensor::new(engine, values.to_vec(), &[1, values.len()]).unwrap();
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let gelu = |x: f64| 0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2));
    for (activation, reference) in [(Activation::Silu, &silu as &dyn Fn(f64) -> f64), (Activation::Gelu, &gelu)] {
        let run =
            |engine: &Engine| tensor(engine, &gate).gated(activation, &tensor(engine, &up)).unwrap().to_vec().unwrap();
        let whole = run(&Engine::cpu(1).unwrap());
        for ((out, gate), up) in whole.iter().zip(&gate).zip(&up) {
            let expected = reference(f64::from(*gate)) * f64::from(*up);
            let error = (f64::from(*out) - expected).abs();
            // 1 + erf cancels far below zero, in the reference too.
            let cancelled = if activation == Activation::Gelu { 1e-7 * f64::from(*gate).abs() } else { 0.0 };
            assert!(error <= 2e-6 * expected.abs() + cancelled + 1e-30, "{gate}: {out} {expected}");
        }
        engines().iter().for_each(|engine| assert_eq!(bits(&run(engine)), bits(&whole)));
    }
    let run = |engine: &Engine| {
        let x = Tensor::new(engine, noise(3, 3 * 45), &[3, 45]).unwrap();
        let weight = Tensor::new(engine, noise(4, 45), &[45]).unwrap();
        let rms = x.rms_norm(Some(&weight), 1e-5).unwrap().to_vec().unwrap();
        [rms, x.layer_norm(Some(&weight), Some(&weight), 1e-5).unwrap().to_vec().unwrap()].concat()
    };
    engines().iter().for_each(|engine| assert_eq!(bits(&run(engine)), bits(&run(&Engine::cpu(1).unwrap()))));
}

#[test]
fn arithmetic_on_many_numbers_pairs_them_as_on_few() {
    // More numbers than candle works on by itself, and rows that no part of the work ends with.
    let dims = [3, 47, 611];
    let (a, count) = (noise(5, dims.iter().product()), dims.iter().product::<usize>());
    type Second = fn([usize; 3]) -> usize;
    let pairings: [(&[usize], Second); 7] = [
        (&dims, |[i, j, k]| (i * 47 + j) * 611 + k),
        (&[611], |[_, _, k]| k),
        (&[1, 47, 611], |[_, j, k]| j * 611 + k),
        (&[3, 47, 1], |[i, j, _]| i * 47 + j),
        (&[1], |_| 0),
        // Those that candle stretches.
        (&[3, 1, 611], |[i, _, k]| i * 611 + k),
        (&[47, 1], |[_, j, _]| j),
    ];
    for engine in engines() {
        let x = Tensor::new(&engine, a.clone(), &dims).unwrap();
        for (of_b, second) in pairings {
            let b = noise(9, of_b.iter().product());
            let y = Tensor::new(&engine, b.clone(), of_b).unwrap();
            let place = |at: usize| [at / (47 * 611), at / 611 % 47, at % 611];
            let expected = |op: fn(f32, f32) -> f32| -> Vec<u32> {
                (0..count).map(|at| op(a[at], b[second(place(at))]).to_bits()).collect()
            };
            let made = [x.add(&y), x.sub(&y), x.mul(&y), x.div(&y)].map(|made| bits(&made.unwrap().to_vec().unwrap()));
            let right = [|a, b| a + b, |a, b| a - b, |a, b| a * b, |a, b| a / b].map(expected);
            assert!(made == right, "{of_b:?}");
        }
    }
}

#[test]
fn both_styles_of_rope_turn_by_the_same_angles() {
    let engine = Engine::cpu(1).unwrap();
    let row = |values: &[f32]| Tensor::new(&engine, values.to_vec(), &[1, values.len()]).unwrap();
    let angles = Angles { cos: row(&[0.8, 0.6]), sin: row(&[0.6, -0.8]) };
    let x = row(&[1.0, 2.0, 3.0, 4.0]);
    let halves = x.rope(&angles, 4, RopeStyle::Halves).unwrap().to_vec().unwrap();
    let x = row(&[1.0, 3.0, 2.0, 4.0]);
    let pairs = x.rope(&angles, 4, RopeStyle::Pairs).unwrap().to_vec().unwrap();
    assert_eq!([halves[0], halves[2], halves[1], halves[3]], pairs[..]);
    assert!((halves[0] - (0.8 - 1.8)).abs() < 1e-6 && (halves[2] - (2.4 + 0.6)).abs() < 1e-6);
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let engine = Engine::cpu(1).unwrap();
    let error = Weight::new("w", Dtype::Q4_0, &[2, 33], vec![0; 36]).unwrap_err().to_string();
    assert!(error.contains("w: "), "{error}");
    let error = Weight::new("w", Dtype::IQ1_S, &[256], vec![0; 50]).unwrap_err().to_string();
    assert_eq!(error, "w: no kernel computes with IQ1_S");
    let weight = Arc::new(Weight::new("w", Dtype::F32, &[2, 3], vec![0; 24]).unwrap());
    let weight = Tensor::stored(&engine, weight);
    let x = Tensor::new(&engine, vec![0.0; 4], &[1, 4]).unwrap();
    let error = x.linear(&Linear { weight: weight.clone(), bias: None }).unwrap_err().to_string();
    assert_eq!(error, "linear: expected [.., k] and weights of [n, k], found [1, 4] [2, 3]");
    let error = weight.embedding(&Tensor::whole(&engine, vec![1, 2], &[2]).unwrap()).unwrap_err().to_string();
    assert_eq!(error, "gather: 2 is outside the table of 2");
}
