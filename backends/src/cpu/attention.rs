//! Attention of grouped queries over keys and values.
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

/// Positions in a page of kept keys or values.
pub const PAGE: usize = BLOCK;

/// Sizes of one attention, and what is done to its scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values; each serves `heads / kv_heads` queries.
    pub kv_heads: usize,
    /// Elements of a query and a key.
    pub head: usize,
    /// Elements of a value.
    pub value_head: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Scores are bent to stay below it: `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// A query sees only keys nearer than this, its own position included; none for all.
    pub window: Option<usize>,
}

impl AttentionShape {
    /// Plain attention: as many heads of keys as of queries, scaled by the root of their elements.
    pub fn plain(heads: usize, head: usize) -> Self {
        let scale = 1.0 / (head as f32).sqrt();
        Self { heads, kv_heads: heads, head, value_head: head, scale, softcap: None, window: None }
    }
}

/// Keys, or values, of one sequence: `[positions, kv_heads * elements]`.
#[derive(Clone, Debug)]
pub enum Keys<'a> {
    /// In one piece.
    Whole(&'a [f32]),
    /// In pages of [`PAGE`] positions, of which the last may be cut short.
    Pages(Vec<&'a [f32]>),
}

impl Keys<'_> {
    /// How many numbers they are.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks whether there are none")]
    pub fn len(&self) -> usize {
        match self {
            Self::Whole(values) => values.len(),
            Self::Pages(pages) => pages.iter().map(|page| page.len()).sum(),
        }
    }

    /// What is held from `place` on, of the positions from `block` on; `stride` numbers to a position.
    #[inline(always)]
    fn block(&self, block: usize, stride: usize) -> &[f32] {
        match self {
            Self::Whole(values) => &values[block * stride..],
            Self::Pages(pages) => pages[block / PAGE],
        }
    }
}

/// The keys and values of one sequence.
#[derive(Clone, Debug)]
pub struct KeysValues<'a> {
    /// The keys.
    pub keys: Keys<'a>,
    /// The values.
    pub values: Keys<'a>,
    /// Which keys no query sees, as a padding mask says; those beyond its end are seen.
    pub absent: &'a [bool],
    /// `[heads or 1, queries, length]`: added to the scores.
    pub bias: Option<&'a [f32]>,
    /// Queries of the sequence.
    pub queries: usize,
    /// How many keys there are.
    pub length: usize,
}

impl KeysValues<'_> {
    fn is_absent(&self, place: usize) -> bool {
        self.absent.get(place).is_some_and(|&absent| absent)
    }
}

/// One query: whose keys it sees, and which of them.
#[derive(Clone, Copy, Debug)]
pub struct QueryRow {
    /// Index into the sequences.
    pub sequence: usize,
    /// Its number among the queries of its sequence.
    pub row: usize,
    /// The first key that it sees.
    pub first: usize,
    /// The end of the keys that it sees.
    pub end: usize,
}

impl Cpu {
    /// Attends; q: `[queries, heads * head]`, out: `[queries, heads * value_head]`. A query that sees no key gives
    /// the mean of all values, or zeros where there are sinks. sinks: of each head the score of a key without value.
    ///
    /// The caller has checked that each sequence holds the keys of its queries.
    pub fn attention(
        &self,
        shape: &AttentionShape,
        q: &[f32],
        queries: &[QueryRow],
        sequences: &[KeysValues<'_>],
        sinks: Option<&[f32]>,
        out: &mut [f32],
    ) {
        let (width, out_width) = (shape.heads * shape.head, shape.heads * shape.value_head);
        assert!(q.len() == queries.len() * width && out.len() == queries.len() * out_width, "the shape of queries");
        for query in queries {
            let held = &sequences[query.sequence];
            let keys = query.end.max(held.length) * shape.kv_heads;
            let fits = held.keys.len() >= keys * shape.head && held.values.len() >= keys * shape.value_head;
            assert!(fits, "the keys of queries");
            let of_heads = held.queries * held.length;
            let fits = held.bias.is_none_or(|bias| {
                query.row < held.queries
                    && query.end <= held.length
                    && (bias.len() == of_heads || bias.len() == of_heads * shape.heads)
            });
            assert!(fits, "the bias of queries");
        }
        let target = Target(out.as_mut_ptr());
        let target = &target;
        // One part is one group of heads that share keys.
        self.pool.run(queries.len() * shape.kv_heads, &|part, scratch| {
            let (row, group) = (part / shape.kv_heads, part % shape.kv_heads);
            let query = queries[row];
            let shared = shape.heads / shape.kv_heads;
            let first = row * out_width + group * shared * shape.value_head;
            // SAFETY: parts are disjoint ranges inside `out`, which is borrowed for as long as they run.
            let out = unsafe { std::slice::from_raw_parts_mut(target.0.add(first), shared * shape.value_head) };
            let q = &q[row * width + group * shared * shape.head..][..shared * shape.head];
            self.run(Group { shape, q, kept: &sequences[query.sequence], sinks, group, query, out, scratch });
        });
    }
}

struct Target(*mut f32);

// SAFETY: parts write disjoint ranges.
unsafe impl Sync for Target {}

struct Group<'a> {
    shape: &'a AttentionShape,
    q: &'a [f32],
    kept: &'a KeysValues<'a>,
    sinks: Option<&'a [f32]>,
    group: usize,
    query: QueryRow,
    out: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl Kernel for Group<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let shape = self.shape;
        let padded = shape.value_head.next_multiple_of(LANES);
        let first_head = self.group * (shape.heads / shape.kv_heads);
        let heads = self.q.chunks_exact(shape.head).zip(self.out.chunks_exact_mut(shape.value_head));
        for (number, (q, out)) in heads.enumerate() {
            let head = first_head + number;
            let sums = &mut self.scratch.sums;
            sums.clear();
            sums.resize(padded, 0.0);
            let bias = self.kept.bias.map(|bias| {
                let of_head = self.kept.queries * self.kept.length;
                let from = if bias.len() == of_head { 0 } else { head * of_head };
                &bias[from + self.query.row * self.kept.length..][..self.kept.length]
            });
            let one =
                Head { shape, kept: self.kept, bias, sink: self.sinks.map(|sinks| sinks[head]), group: self.group };
            one.attend::<L>(q, self.query, sums);
            out.copy_from_slice(&sums[..shape.value_head]);
        }
    }
}

/// One head of one query.
struct Head<'a> {
    shape: &'a AttentionShape,
    kept: &'a KeysValues<'a>,
    bias: Option<&'a [f32]>,
    sink: Option<f32>,
    group: usize,
}

impl Head<'_> {
    /// `sums` begins as zeros and ends as the result.
    #[inline(always)]
    fn attend<L: Lanes>(&self, q: &[f32], query: QueryRow, sums: &mut [f32]) {
        let (shape, kept) = (self.shape, self.kept);
        let (head, stride) = (shape.head, shape.kv_heads * shape.head);
        let (value_head, value_stride) = (shape.value_head, shape.kv_heads * shape.value_head);
        let QueryRow { first, end, .. } = query;
        let (mut largest, mut total) = (f32::NEG_INFINITY, 0.0_f32);
        for begin in (first - first % BLOCK..end).step_by(BLOCK) {
            let mut scores = [f32::NEG_INFINITY; BLOCK];
            let seen = begin.max(first)..(begin + BLOCK).min(end);
            let mut block_largest = f32::NEG_INFINITY;
            let keys = kept.keys.block(begin, stride);
            for key in seen.clone().filter(|&key| !kept.is_absent(key)) {
                let from = (key - begin) * stride + self.group * head;
                let mut score = dot::<L>(q, &keys[from..from + head]) * shape.scale;
                if let Some(cap) = shape.softcap {
                    score = cap * libm::tanhf(score / cap);
                }
                if let Some(bias) = self.bias {
                    score += bias[key];
                }
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
            let values = kept.values.block(begin, value_stride);
            accumulate::<L>(sums, keep, &scores, seen.filter(|&key| !kept.is_absent(key)), begin, |key| {
                let from = (key - begin) * value_stride + self.group * value_head;
                &values[from..from + value_head]
            });
        }
        if (first..end).all(|key| kept.is_absent(key)) {
            return self.attend_blindly(sums);
        }
        if let Some(sink) = self.sink {
            total += exp(L::splat(sink - largest)).to_array()[0];
        }
        sums.iter_mut().for_each(|sum| *sum /= total);
    }
}

impl Head<'_> {
    /// A query that sees no key takes the mean of all values where no sink takes its place: the library's masks lower
    /// all scores alike then.
    fn attend_blindly(&self, sums: &mut [f32]) {
        let (kept, width) = (self.kept, self.shape.value_head);
        if self.sink.is_some() {
            return;
        }
        let stride = self.shape.kv_heads * width;
        for key in 0..kept.length {
            let begin = key - key % BLOCK;
            let from = (key - begin) * stride + self.group * width;
            let value = &kept.values.block(begin, stride)[from..from + width];
            sums.iter_mut().zip(value).for_each(|(sum, value)| *sum += value);
        }
        sums.iter_mut().for_each(|sum| *sum /= kept.length.max(1) as f32);
    }
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
