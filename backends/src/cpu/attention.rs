//! Causal attention of grouped queries over kept keys and values.
//!
//! A query goes through its keys in blocks that begin at fixed positions, carrying a running maximum and sum (online
//! softmax, <https://arxiv.org/abs/2112.05682>). The blocks depend on positions alone, so a prompt read in pieces, or
//! token by token, gives the same bits. A position that is absent keeps its place in its block and weighs nothing.

use super::Cpu;
use super::activation::exp;
use super::lanes::{Kernel, LANES, Lanes};
use super::norm::dot;
use super::pool::Scratch;

/// Keys in a block; part of the arithmetic.
const BLOCK: usize = 64;

/// Sizes of one attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values; each serves `heads / kv_heads` queries.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// How many of the last positions a query sees, its own included; none for all.
    pub window: Option<usize>,
}

/// The kept keys and values of one sequence: `[positions, kv_heads * head]` each.
#[derive(Clone, Copy, Debug)]
pub struct KeysValues<'a> {
    /// The keys.
    pub keys: &'a [f32],
    /// The values.
    pub values: &'a [f32],
    /// Which positions no query sees, as a padding mask says; positions beyond its end are seen.
    pub absent: &'a [bool],
}

impl KeysValues<'_> {
    fn is_absent(&self, position: usize) -> bool {
        self.absent.get(position).is_some_and(|&absent| absent)
    }
}

/// One query: which row of `q`, whose keys, and its position.
#[derive(Clone, Copy, Debug)]
pub struct QueryRow {
    /// Index into the sequences.
    pub sequence: usize,
    /// Its position; it sees the keys up to and including it.
    pub position: usize,
}

impl Cpu {
    /// Attends; q, out: `[queries, heads * head]`. A query that sees no position at all gives zeros.
    ///
    /// The caller has checked that each sequence holds the positions of its queries.
    pub fn attention(
        &self,
        shape: &AttentionShape,
        q: &[f32],
        queries: &[QueryRow],
        sequences: &[KeysValues<'_>],
        out: &mut [f32],
    ) {
        let width = shape.heads * shape.head;
        assert!(q.len() == queries.len() * width && out.len() == q.len(), "the shape of queries");
        for query in queries {
            let needed = (query.position + 1) * shape.kv_heads * shape.head;
            let held = &sequences[query.sequence];
            assert!(held.keys.len() >= needed && held.values.len() >= needed, "the positions of queries");
        }
        let target = Target(out.as_mut_ptr());
        let target = &target;
        // One part is one group of heads that share keys.
        self.pool.run(queries.len() * shape.kv_heads, &|part, scratch| {
            let (row, group) = (part / shape.kv_heads, part % shape.kv_heads);
            let query = queries[row];
            let shared = shape.heads / shape.kv_heads;
            let first = row * width + group * shared * shape.head;
            let length = shared * shape.head;
            // SAFETY: parts are disjoint ranges inside `out`, which is borrowed for as long as they run.
            let out = unsafe { std::slice::from_raw_parts_mut(target.0.add(first), length) };
            let (kept, q) = (sequences[query.sequence], &q[first..first + length]);
            self.run(Group { shape, q, kept, group, position: query.position, out, scratch });
        });
    }
}

struct Target(*mut f32);

// SAFETY: parts write disjoint ranges.
unsafe impl Sync for Target {}

struct Group<'a> {
    shape: &'a AttentionShape,
    q: &'a [f32],
    kept: KeysValues<'a>,
    group: usize,
    position: usize,
    out: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl Kernel for Group<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let head = self.shape.head;
        let padded = head.next_multiple_of(LANES);
        for (q, out) in self.q.chunks_exact(head).zip(self.out.chunks_exact_mut(head)) {
            let sums = &mut self.scratch.sums;
            sums.clear();
            sums.resize(padded, 0.0);
            one_head::<L>(self.shape, q, self.kept, self.group, self.position, sums);
            out.copy_from_slice(&sums[..head]);
        }
    }
}

/// One head of one query; `sums` begins as zeros and ends as the result.
#[inline(always)]
fn one_head<L: Lanes>(
    shape: &AttentionShape,
    q: &[f32],
    kept: KeysValues<'_>,
    group: usize,
    position: usize,
    sums: &mut [f32],
) {
    let (head, stride) = (shape.head, shape.kv_heads * shape.head);
    let first = shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
    let (mut largest, mut total) = (f32::NEG_INFINITY, 0.0_f32);
    for begin in (first - first % BLOCK..=position).step_by(BLOCK) {
        let mut scores = [f32::NEG_INFINITY; BLOCK];
        let seen = begin.max(first)..(begin + BLOCK).min(position + 1);
        let mut block_largest = f32::NEG_INFINITY;
        for key in seen.clone().filter(|&key| !kept.is_absent(key)) {
            let from = key * stride + group * head;
            let score = dot::<L>(q, &kept.keys[from..from + head]) * shape.scale;
            scores[key - begin] = score;
            // NaN has to reach the result, where it is found.
            block_largest = if block_largest > score { block_largest } else { score };
        }
        let next = if largest > block_largest { largest } else { block_largest };
        let keep = exp(L::splat(largest.max(-1e30) - next)).to_array()[0] * f32::from(u8::from(total != 0.0));
        largest = next;
        let mut block_total = L::splat(0.0);
        for lanes in scores.as_chunks_mut::<LANES>().0 {
            // A place that is not seen has the score -inf, and must weigh nothing at all.
            let unseen = lanes.map(|score| score == f32::NEG_INFINITY);
            // SAFETY: `lanes` is eight floats.
            unsafe { exp(L::load(lanes.as_ptr()).add(L::splat(-next))).store(lanes.as_mut_ptr()) };
            lanes.iter_mut().zip(unseen).filter(|(_, unseen)| *unseen).for_each(|(weight, _)| *weight = 0.0);
            // SAFETY: `lanes` is eight floats.
            block_total = block_total.add(unsafe { L::load(lanes.as_ptr()) });
        }
        total = total * keep + block_total.sum();
        accumulate::<L>(sums, keep, &scores, seen.filter(|&key| !kept.is_absent(key)), begin, |key| {
            let from = key * stride + group * head;
            &kept.values[from..from + head]
        });
    }
    if (first..=position).all(|key| kept.is_absent(key)) {
        return;
    }
    sums.iter_mut().for_each(|sum| *sum /= total);
}

/// `sums = sums * keep + weights * values`, key by key.
#[inline(always)]
fn accumulate<'a, L: Lanes>(
    sums: &mut [f32],
    keep: f32,
    weights: &[f32; BLOCK],
    seen: impl Iterator<Item = usize>,
    begin: usize,
    value: impl Fn(usize) -> &'a [f32],
) {
    sums.iter_mut().for_each(|sum| *sum *= keep);
    for key in seen {
        let weight = weights[key - begin];
        let (values, rest) = value(key).as_chunks::<LANES>();
        let (vectors, _) = sums.as_chunks_mut::<LANES>();
        for (sum, values) in vectors.iter_mut().zip(values) {
            // SAFETY: each is eight floats.
            unsafe {
                L::load(values.as_ptr()).mul_add(L::splat(weight), L::load(sum.as_ptr())).store(sum.as_mut_ptr())
            };
        }
        let from = values.len() * LANES;
        for (sum, &value) in sums[from..].iter_mut().zip(rest) {
            *sum = L::splat(value).mul_add(L::splat(weight), L::splat(*sum)).to_array()[0];
        }
    }
}
