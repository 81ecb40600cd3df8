//! Products of activations with stored weights.
//!
//! Eight rows of weights go through a stretch of `k` that fits the first-level cache, for a chunk of tokens whose own
//! stretch fits the second. Weights that are floats are unpacked on their way into registers; those in blocks are unpacked
//! first, or, for a single token, in registers too. The sums in progress wait in a scratch between stretches, lane by lane,
//! so that stretches do not show in the result.

use crate::tensor::Weight;

use super::Cpu;
use super::lanes::{Kernel, LANES, Lanes};
use super::pool::Scratch;
use super::unpack::{Bf16, F16, F32, Floats, Format32, Mxfp4, Q4_0, Q4_1, Q8_0, unpack};
use crate::weights::Dtype;

/// Rows that are unpacked together: eight sums hide the latency of fused multiply-add for a single token.
const ROWS: usize = 8;
/// Elements of `k` unpacked at once: eight rows of them take 24 KiB. Blocks of every format end here.
const STRETCH: usize = 768;
/// Tokens at most whose stretch of activations stays in the second-level cache while all rows of a part go through it:
/// 288 KiB.
const TOKENS: usize = 96;
/// Tokens at most for which it costs less to unpack floats again and again than to write them to the scratch.
const FEW: usize = 48;
/// Tokens that share the registers.
const TILE_TOKENS: usize = 3;
/// Rows of one part of the work.
const PART_ROWS: usize = 32;

/// One product: `out = x * weight^T + bias`.
#[derive(Debug)]
pub struct Product<'a> {
    /// `[n, k]`
    pub weight: &'a Weight,
    /// `[n]`
    pub bias: Option<&'a [f32]>,
    /// `[tokens, n]`
    pub out: &'a mut [f32],
}

impl Cpu {
    /// Several products of one `x`: `[tokens, k]`, computed in one go.
    ///
    /// The caller has checked the shapes.
    pub fn linear(&self, x: &[f32], tokens: usize, products: &mut [Product<'_>]) {
        let Some(k) = products.first().map(|product| product.weight.columns()) else { return };
        let padded = k.next_multiple_of(LANES);
        let copy = (padded != k).then(|| pad_rows(x, k, padded));
        let x = copy.as_deref().unwrap_or(x);
        assert_eq!(x.len(), tokens * padded, "the activations of a product");
        let mut parts = Vec::new();
        for (number, product) in products.iter_mut().enumerate() {
            let rows = product.weight.rows();
            assert!(product.weight.columns() == k && product.out.len() == tokens * rows, "the shape of a product");
            parts.extend((0..rows).step_by(PART_ROWS).map(|first| (number, first, PART_ROWS.min(rows - first))));
        }
        let targets: Vec<Target<'_>> = products
            .iter_mut()
            .map(|product| Target { weight: product.weight, bias: product.bias, out: product.out.as_mut_ptr() })
            .collect();
        let targets = &targets[..];
        self.pool.run(parts.len(), &|part, scratch| {
            let (number, first, count) = parts[part];
            let target = &targets[number];
            self.run(Rows { target, first, count, x, tokens, scratch });
        });
    }

    /// Rows of a table, as f32: `[ids, k]`.
    ///
    /// The caller has checked the ids.
    pub fn gather(&self, table: &Weight, ids: &[u32], out: &mut [f32]) {
        for (&id, out) in ids.iter().zip(out.chunks_exact_mut(table.columns())) {
            self.run(Unpack { weight: table, row: id as usize, out });
        }
    }
}

fn pad_rows(x: &[f32], k: usize, padded: usize) -> Vec<f32> {
    let mut copy = vec![0.0; x.len() / k * padded];
    copy.chunks_exact_mut(padded).zip(x.chunks_exact(k)).for_each(|(to, from)| to[..k].copy_from_slice(from));
    copy
}

struct Target<'a> {
    weight: &'a Weight,
    bias: Option<&'a [f32]>,
    out: *mut f32,
}

// SAFETY: parts write disjoint rows of `out`, which `Cpu::linear` borrows for as long as they run.
unsafe impl Sync for Target<'_> {}

struct Unpack<'a> {
    weight: &'a Weight,
    row: usize,
    out: &'a mut [f32],
}

impl Kernel for Unpack<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        unpack::<L>(self.weight.dtype(), self.weight.row(self.row), self.out);
    }
}

/// Some rows of one product, for all tokens.
struct Rows<'a> {
    target: &'a Target<'a>,
    first: usize,
    count: usize,
    x: &'a [f32],
    tokens: usize,
    scratch: &'a mut Scratch,
}

impl Kernel for Rows<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { target, first, count, x, tokens, scratch } = self;
        let columns = target.weight.columns();
        let padded = columns.next_multiple_of(LANES);
        let groups = count.div_ceil(ROWS);
        // Chunks of about one size, for weights are unpacked anew for each; whole tiles but in the last.
        let size = tokens.div_ceil(tokens.div_ceil(TOKENS).max(1)).next_multiple_of(TILE_TOKENS).max(1);
        for chunk in (0..tokens).step_by(size) {
            let tokens = size.min(tokens - chunk);
            let x = &x[chunk * padded..];
            let width = tokens * ROWS * LANES;
            scratch.sums.clear();
            scratch.sums.resize(groups * width, 0.0);
            let in_registers = in_registers(target.weight, tokens);
            // Nothing else is in the cache where one token goes through registers.
            let stretch = if in_registers && tokens == 1 { columns } else { STRETCH };
            for begin in (0..columns).step_by(stretch) {
                let length = stretch.min(columns - begin);
                for (group, sums) in scratch.sums.chunks_exact_mut(width).enumerate() {
                    let from = first + group * ROWS;
                    let rows = ROWS.min(first + count - from);
                    let piece = Piece { weight: target.weight, from, rows, begin, length };
                    let x = Activations { x: &x[begin..], padded, tokens };
                    if in_registers && rows == ROWS {
                        multiply_stored::<L>(&piece, &x, sums);
                    } else {
                        multiply_unpacked::<L>(&piece, &x, &mut scratch.weights, sums);
                    }
                }
            }
            for (group, sums) in scratch.sums.chunks_exact(width).enumerate() {
                let from = first + group * ROWS;
                let rows = ROWS.min(first + count - from);
                for (token, sums) in sums.chunks_exact(ROWS * LANES).enumerate() {
                    for (row, lanes) in sums.chunks_exact(LANES).enumerate().take(rows) {
                        // SAFETY: `lanes` is eight floats.
                        let sum = unsafe { L::load(lanes.as_ptr()) }.sum();
                        let biased = target.bias.map_or(sum, |bias| sum + bias[from + row]);
                        let place = (chunk + token) * target.weight.rows() + from + row;
                        // SAFETY: `out` is `[tokens, rows of the weight]`, checked in `Cpu::linear`, and nobody else
                        // writes this row.
                        unsafe { target.out.add(place).write(biased) };
                    }
                }
            }
        }
    }
}

/// Whether weights are unpacked on their way into registers: each as often as it is used, so that it must be cheap or rare.
fn in_registers(weight: &Weight, tokens: usize) -> bool {
    match weight.dtype() {
        Dtype::F32 | Dtype::F16 | Dtype::BF16 => tokens <= FEW && weight.columns().is_multiple_of(LANES),
        Dtype::Q4_0 | Dtype::Q4_1 | Dtype::Q8_0 | Dtype::MXFP4 => tokens == 1,
        _ => false,
    }
}

/// Some rows of weights over a stretch of columns.
struct Piece<'a> {
    weight: &'a Weight,
    from: usize,
    rows: usize,
    begin: usize,
    length: usize,
}

/// What they are multiplied with: the same stretch of each token, `padded` floats apart.
struct Activations<'a> {
    x: &'a [f32],
    padded: usize,
    tokens: usize,
}

/// Adds the products of [`ROWS`] rows whose weights go through registers.
#[inline(always)]
fn multiply_stored<L: Lanes>(piece: &Piece<'_>, x: &Activations<'_>, sums: &mut [f32]) {
    match piece.weight.dtype() {
        Dtype::F32 => multiply_floats::<L, F32>(piece, x, sums),
        Dtype::F16 => multiply_floats::<L, F16>(piece, x, sums),
        Dtype::BF16 => multiply_floats::<L, Bf16>(piece, x, sums),
        Dtype::Q4_0 => multiply_blocks::<L, Q4_0, 4>(piece, x, sums),
        Dtype::Q4_1 => multiply_blocks::<L, Q4_1, 4>(piece, x, sums),
        Dtype::Q8_0 => multiply_blocks::<L, Q8_0, ROWS>(piece, x, sums),
        Dtype::MXFP4 => multiply_blocks::<L, Mxfp4, 4>(piece, x, sums),
        _ => {}
    }
}

/// The same of floats that lie as they are stored.
#[inline(always)]
fn multiply_floats<L: Lanes, F: Floats>(piece: &Piece<'_>, x: &Activations<'_>, sums: &mut [f32]) {
    let apart = piece.weight.columns() * F::BYTES / LANES;
    let rows = piece.weight.rows_from(piece.from, ROWS);
    multiply::<L, F>(&rows[piece.begin * F::BYTES / LANES..], apart, x, piece.length / LANES, sums);
}

/// The same of rows that are unpacked before.
#[inline(always)]
fn multiply_unpacked<L: Lanes>(piece: &Piece<'_>, x: &Activations<'_>, scratch: &mut Vec<f32>, sums: &mut [f32]) {
    scratch.resize(ROWS * STRETCH, 0.0);
    for begin in (0..piece.length).step_by(STRETCH) {
        let length = STRETCH.min(piece.length - begin);
        let padded = length.next_multiple_of(LANES);
        for (row, to) in scratch.chunks_exact_mut(STRETCH).enumerate().take(piece.rows) {
            let stored = piece.weight.piece(piece.from + row, piece.begin + begin, length);
            unpack::<L>(piece.weight.dtype(), stored, &mut to[..length]);
            to[length..padded].fill(0.0);
        }
        let x = Activations { x: &x.x[begin..], ..*x };
        multiply::<L, Unpacked>(as_bytes(scratch), STRETCH * size_of::<f32>(), &x, padded / LANES, sums);
    }
}

/// The sums of [`ROWS`] rows of blocks with one token, in the order of [`tile`]; so many rows share the registers.
#[inline(always)]
fn multiply_blocks<L: Lanes, F: Format32, const TOGETHER: usize>(
    piece: &Piece<'_>,
    x: &Activations<'_>,
    sums: &mut [f32],
) {
    let (weight, first, x) = (piece.weight, piece.from, x.x);
    let blocks = weight.columns() / 32;
    assert!(x.len() >= blocks * 32 && sums.len() >= ROWS * LANES, "the shape of a product");
    for begin in (0..ROWS).step_by(TOGETHER) {
        let mut rows = [std::ptr::null(); TOGETHER];
        for (row, from) in rows.iter_mut().enumerate() {
            let bytes = weight.row(first + begin + row);
            assert!(bytes.len() == blocks * F::BYTES, "the bytes of a row");
            *from = bytes.as_ptr();
        }
        let mut totals = [L::splat(0.0); TOGETHER];
        for block in 0..blocks {
            // SAFETY: `x` has 32 floats for each block, and each row the bytes of `blocks` blocks, as checked above.
            unsafe {
                let x = x.as_ptr().add(block * 32);
                let inputs = [L::load(x), L::load(x.add(LANES)), L::load(x.add(2 * LANES)), L::load(x.add(3 * LANES))];
                for row in 0..TOGETHER {
                    let vectors: [L; 4] = F::vectors(rows[row].add(block * F::BYTES));
                    for part in 0..4 {
                        totals[row] = vectors[part].mul_add(inputs[part], totals[row]);
                    }
                }
            }
        }
        for (row, total) in totals.into_iter().enumerate() {
            // SAFETY: `sums` has `ROWS` vectors.
            unsafe { total.store(sums.as_mut_ptr().add((begin + row) * LANES)) };
        }
    }
}

/// Adds the products of a stretch to the sums `[tokens, ROWS, LANES]`.
///
/// weights: [`ROWS`] rows of `vectors`, so many bytes apart.
#[inline(always)]
fn multiply<L: Lanes, F: Floats>(weights: &[u8], apart: usize, x: &Activations<'_>, vectors: usize, sums: &mut [f32]) {
    let Activations { x, padded, tokens } = *x;
    assert!(weights.len() >= (ROWS - 1) * apart + vectors * F::BYTES, "the weights of a product");
    assert!(sums.len() >= tokens * ROWS * LANES, "the sums of a product");
    assert!(tokens > 0 && x.len() >= (tokens - 1) * padded + vectors * LANES, "the activations of a product");
    let mut token = 0;
    while token < tokens {
        // SAFETY: the lengths are checked above; tiles reach up to `tokens` tokens, `ROWS` rows and `vectors` vectors.
        unsafe {
            let (w, x) = (weights.as_ptr(), x.as_ptr().add(token * padded));
            let sums = sums.as_mut_ptr().add(token * ROWS * LANES);
            if tokens - token >= TILE_TOKENS {
                tile::<L, F, 4, TILE_TOKENS>(w, apart, x, padded, vectors, sums);
                tile::<L, F, 4, TILE_TOKENS>(w.add(4 * apart), apart, x, padded, vectors, sums.add(4 * LANES));
                token += TILE_TOKENS;
            } else if tokens - token == 2 {
                tile::<L, F, 4, 2>(w, apart, x, padded, vectors, sums);
                tile::<L, F, 4, 2>(w.add(4 * apart), apart, x, padded, vectors, sums.add(4 * LANES));
                token += 2;
            } else {
                tile::<L, F, ROWS, 1>(w, apart, x, padded, vectors, sums);
                token += 1;
            }
        }
    }
}

/// One tile: `R` rows of weights with `T` tokens. Each sum goes through the same operations in every shape of tile.
///
/// # Safety
///
/// The pointers must be valid for `R` rows, `T` tokens and `vectors` vectors of each.
#[inline(always)]
unsafe fn tile<L: Lanes, F: Floats, const R: usize, const T: usize>(
    weights: *const u8,
    apart: usize,
    x: *const f32,
    padded: usize,
    vectors: usize,
    sums: *mut f32,
) {
    // SAFETY: the caller's promise covers all accesses below.
    unsafe {
        let mut tile = [[L::splat(0.0); T]; R];
        for (row, totals) in tile.iter_mut().enumerate() {
            for (token, total) in totals.iter_mut().enumerate() {
                *total = L::load(sums.add((token * ROWS + row) * LANES));
            }
        }
        for vector in 0..vectors {
            let mut inputs = [L::splat(0.0); T];
            for (token, input) in inputs.iter_mut().enumerate() {
                *input = L::load(x.add(token * padded + vector * LANES));
            }
            for (row, totals) in tile.iter_mut().enumerate() {
                let weight: L = F::vector(weights.add(row * apart + vector * F::BYTES));
                for (total, input) in totals.iter_mut().zip(inputs) {
                    *total = weight.mul_add(input, *total);
                }
            }
        }
        for (row, totals) in tile.into_iter().enumerate() {
            for (token, total) in totals.into_iter().enumerate() {
                total.store(sums.add((token * ROWS + row) * LANES));
            }
        }
    }
}

/// What was unpacked to floats of this machine.
struct Unpacked;

impl Floats for Unpacked {
    const BYTES: usize = size_of::<f32>() * LANES;

    #[inline(always)]
    unsafe fn vector<L: Lanes>(from: *const u8) -> L {
        // SAFETY: the caller promises eight floats, which [`multiply_unpacked`] has written as such.
        unsafe { L::load(from.cast()) }
    }
}

fn as_bytes(floats: &[f32]) -> &[u8] {
    // SAFETY: floats are bytes without gaps, and any bytes are bytes.
    unsafe { std::slice::from_raw_parts(floats.as_ptr().cast(), size_of_val(floats)) }
}
