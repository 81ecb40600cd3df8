//! What attention does with one block of keys and values.

use std::ops::Range;

use crate::cpu::activation::exp;
use crate::cpu::lanes::{LANES, Lanes};

/// Keys in a block; part of the arithmetic.
pub const BLOCK: usize = 64;

/// What one head of a query has seen so far.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// The largest score.
    pub largest: f32,
    /// The sum of the weights.
    pub total: f32,
}

/// The products of some queries with the keys of a block that they see, scaled: `[queries, keys of the block]`.
#[inline(always)]
pub fn products<L: Lanes, const N: usize, const K: usize>(
    q: [&[f32]; N],
    keys: &[f32],
    stride: usize,
    seen: &Range<usize>,
    scale: f32,
    scores: &mut [[f32; BLOCK]; N],
) {
    let head = q[0].len();
    let (vectors, rest) = (head / LANES, head % LANES);
    let last = seen.end - 1;
    assert!(keys.len() >= last * stride + head && q.iter().all(|q| q.len() == head), "the keys of a block");
    for key in seen.clone().step_by(LANES) {
        let mut totals = [[L::splat(0.0); LANES]; N];
        for part in (0..LANES).step_by(K) {
            let mut sums = [[L::splat(0.0); K]; N];
            // SAFETY: `last` is the largest place, and its key ends inside `keys`, as do all queries; checked above.
            unsafe {
                let mut rows = [std::ptr::null::<f32>(); K];
                for (number, row) in rows.iter_mut().enumerate() {
                    *row = keys.as_ptr().add((key + part + number).min(last) * stride);
                }
                for vector in 0..vectors {
                    let mut inputs = [L::splat(0.0); N];
                    for (input, q) in inputs.iter_mut().zip(q) {
                        *input = L::load(q.as_ptr().add(vector * LANES));
                    }
                    for (number, row) in rows.into_iter().enumerate() {
                        let key = L::load(row.add(vector * LANES));
                        for (sums, input) in sums.iter_mut().zip(inputs) {
                            sums[number] = input.mul_add(key, sums[number]);
                        }
                    }
                }
                if rest > 0 {
                    for (sums, q) in sums.iter_mut().zip(q) {
                        let input = padded::<L>(q.as_ptr().add(vectors * LANES), rest);
                        for (sum, row) in sums.iter_mut().zip(rows) {
                            *sum = input.mul_add(padded::<L>(row.add(vectors * LANES), rest), *sum);
                        }
                    }
                }
            }
            for (totals, sums) in totals.iter_mut().zip(sums) {
                totals[part..part + K].copy_from_slice(&sums);
            }
        }
        for (totals, scores) in totals.into_iter().zip(scores.iter_mut()) {
            let scaled = L::sums(totals).mul(L::splat(scale)).to_array();
            let count = LANES.min(seen.end - key);
            scores[key..key + count].copy_from_slice(&scaled[..count]);
        }
    }
}

/// Fewer floats than lanes, and zeros after them.
///
/// # Safety
///
/// `from` must be valid for reading `count` floats.
#[inline(always)]
unsafe fn padded<L: Lanes>(from: *const f32, count: usize) -> L {
    let mut lanes = [0.0; LANES];
    // SAFETY: the caller promises `count` readable floats; `lanes` is eight.
    unsafe {
        for (place, lane) in lanes.iter_mut().enumerate().take(count) {
            *lane = from.add(place).read();
        }
        L::load(lanes.as_ptr())
    }
}

/// Makes weights of scores, and answers what becomes of the sums before.
#[inline(always)]
pub fn weigh<L: Lanes>(scores: &mut [f32; BLOCK], progress: &mut Progress) -> f32 {
    let Progress { largest, total } = *progress;
    let mut most = L::splat(f32::NEG_INFINITY);
    for lanes in scores.as_chunks::<LANES>().0 {
        // SAFETY: `lanes` is eight floats.
        most = most.max(unsafe { L::load(lanes.as_ptr()) });
    }
    // NaN is in its weight too, and so reaches the result, where it is found.
    let most = most.to_array().into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b });
    let next = if largest > most { largest } else { most };
    let keep = exp(L::splat(largest.max(-1e30) - next)).to_array()[0] * f32::from(u8::from(total != 0.0));
    let mut sum = L::splat(0.0);
    for lanes in scores.as_chunks_mut::<LANES>().0 {
        // A place that is not seen has the score -inf, and must weigh nothing at all.
        let unseen = lanes.map(|score| score == f32::NEG_INFINITY);
        // SAFETY: `lanes` is eight floats.
        unsafe { exp(L::load(lanes.as_ptr()).add(L::splat(-next))).store(lanes.as_mut_ptr()) };
        lanes.iter_mut().zip(unseen).filter(|(_, unseen)| *unseen).for_each(|(weight, _)| *weight = 0.0);
        // SAFETY: `lanes` is eight floats.
        sum = sum.add(unsafe { L::load(lanes.as_ptr()) });
    }
    *progress = Progress { largest: next, total: total * keep + sum.sum() };
    keep
}

/// `sums = sums * keep + weights * values` for some lines, key by key.
///
/// sums: `[lines, elements, padded to whole vectors]`; values: `[places of the block, stride]`, from its first element.
#[inline(always)]
pub fn accumulate<L: Lanes, const N: usize>(
    sums: &mut [f32],
    keep: [f32; N],
    weights: &[[f32; BLOCK]; N],
    present: &[u8],
    values: &[f32],
    stride: usize,
    elements: usize,
) {
    let (vectors, width) = (elements / LANES, elements.next_multiple_of(LANES));
    let last = present.iter().copied().max().map_or(0, usize::from);
    assert!(last < BLOCK && values.len() >= last * stride + elements, "the values of a block");
    assert!(sums.len() >= N * width, "the sums of a block");
    let mut first = 0;
    while first < vectors {
        // As many vectors as registers hold, and each time about as many.
        let left = vectors - first;
        let count = left.div_ceil(left.div_ceil(6));
        let from = first * LANES;
        // SAFETY: `count` vectors from here on are within `elements`, which all values and sums have, as checked above.
        unsafe {
            let (sums, values) = (sums.as_mut_ptr().add(from), values.as_ptr().add(from));
            match count {
                1 => add::<L, N, 1>(sums, width, keep, weights, present, values, stride),
                2 => add::<L, N, 2>(sums, width, keep, weights, present, values, stride),
                3 => add::<L, N, 3>(sums, width, keep, weights, present, values, stride),
                4 => add::<L, N, 4>(sums, width, keep, weights, present, values, stride),
                5 => add::<L, N, 5>(sums, width, keep, weights, present, values, stride),
                _ => add::<L, N, 6>(sums, width, keep, weights, present, values, stride),
            }
        }
        first += count;
    }
    let rest = elements % LANES;
    if rest == 0 {
        return;
    }
    for (number, weights) in weights.iter().enumerate() {
        let sums = &mut sums[number * width + vectors * LANES..][..LANES];
        // SAFETY: `sums` is eight floats, and each value has `elements`, as checked above.
        unsafe {
            let mut sum = L::load(sums.as_ptr()).mul(L::splat(keep[number]));
            for &key in present {
                let value = padded::<L>(values.as_ptr().add(usize::from(key) * stride + vectors * LANES), rest);
                sum = value.mul_add(L::splat(weights[usize::from(key)]), sum);
            }
            sum.store(sums.as_mut_ptr());
        }
    }
}

/// The same for `V` vectors of each line, which stay in registers.
///
/// # Safety
///
/// `sums` must be valid for `V` vectors of each line, and `values` for as many of each key that is present.
#[inline(always)]
unsafe fn add<L: Lanes, const N: usize, const V: usize>(
    sums: *mut f32,
    width: usize,
    keep: [f32; N],
    weights: &[[f32; BLOCK]; N],
    present: &[u8],
    values: *const f32,
    stride: usize,
) {
    // SAFETY: the caller's promise covers all accesses below.
    unsafe {
        let mut totals = [[L::splat(0.0); V]; N];
        for (number, totals) in totals.iter_mut().enumerate() {
            for (vector, total) in totals.iter_mut().enumerate() {
                *total = L::load(sums.add(number * width + vector * LANES)).mul(L::splat(keep[number]));
            }
        }
        for &key in present {
            let value = values.add(usize::from(key) * stride);
            let mut factors = [L::splat(0.0); N];
            for (factor, weights) in factors.iter_mut().zip(weights) {
                *factor = L::splat(weights[usize::from(key)]);
            }
            for vector in 0..V {
                let value = L::load(value.add(vector * LANES));
                for (totals, factor) in totals.iter_mut().zip(factors) {
                    totals[vector] = value.mul_add(factor, totals[vector]);
                }
            }
        }
        for (number, totals) in totals.into_iter().enumerate() {
            for (vector, total) in totals.into_iter().enumerate() {
                total.store(sums.add(number * width + vector * LANES));
            }
        }
    }
}
