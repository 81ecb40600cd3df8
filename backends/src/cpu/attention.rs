//! Attention of grouped queries over keys and values.
//!
//! A query goes through its keys in blocks that begin at fixed positions, carrying a running maximum and sum (online
//! softmax, <https://arxiv.org/abs/2112.05682>). The blocks depend on positions alone, so a prompt read in pieces, or
//! token by token, gives the same bits. Queries that see the same keys go through a block by twos, which shares its loads
//! and no sums. A position that is absent keeps its place in its block and weighs nothing.

mod block;

use std::ops::Range;

use super::Cpu;
use super::activation::exp;
use super::lanes::{Kernel, LANES, Lanes};
use super::pool::{Scratch, Target};
use block::{BLOCK, Progress, accumulate, products, weigh};

/// Queries of one part of the work: keys and values come into the cache once for all of them.
const ROWS: usize = 16;

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
        let (mut runs, mut from) = (Vec::new(), 0);
        for run in queries.chunk_by(|one, next| one.sequence == next.sequence) {
            let end = from + run.len();
            runs.extend((from..end).step_by(ROWS).map(|first| first..end.min(first + ROWS)));
            from = end;
        }
        let (runs, target) = (&runs, &target);
        self.pool.run(runs.len() * shape.kv_heads, &|part, scratch| {
            let (rows, group) = (runs[part / shape.kv_heads].clone(), part % shape.kv_heads);
            let kept = &sequences[queries[rows.start].sequence];
            self.run(Group { shape, q, queries: &queries[rows.clone()], rows, kept, sinks, group, target, scratch });
        });
    }
}

/// Some queries of one sequence, and the heads of them that share keys.
struct Group<'a> {
    shape: &'a AttentionShape,
    /// Of all queries: `[queries, heads * head]`.
    q: &'a [f32],
    queries: &'a [QueryRow],
    /// Which of all queries they are.
    rows: Range<usize>,
    kept: &'a KeysValues<'a>,
    sinks: Option<&'a [f32]>,
    group: usize,
    target: &'a Target,
    scratch: &'a mut Scratch,
}

/// The keys and values of a block that some heads of queries see.
struct Block<'a> {
    /// Where it begins.
    begin: usize,
    /// The keys from there on: `[positions, kv_heads * head]`.
    keys: &'a [f32],
    /// The values.
    values: &'a [f32],
    /// Which are in view, counted from its beginning.
    seen: Range<usize>,
    /// Which of these are there.
    present: [u8; BLOCK],
    /// How many are.
    count: usize,
}

impl Kernel for Group<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let shape = self.shape;
        let shared = shape.heads / shape.kv_heads;
        let padded = shape.value_head.next_multiple_of(LANES);
        // A line is a head of a query.
        let lines = self.queries.len() * shared;
        let mut sums = std::mem::take(&mut self.scratch.sums);
        sums.clear();
        sums.resize(lines * padded, 0.0);
        let mut progress = vec![Progress { largest: f32::NEG_INFINITY, total: 0.0 }; lines];
        let first = self.queries.iter().map(|query| query.first).min().unwrap_or(0);
        let end = self.queries.iter().map(|query| query.end).max().unwrap_or(0);
        for begin in (first - first % BLOCK..end).step_by(BLOCK) {
            let mut block = Block {
                begin,
                keys: self.kept.keys.block(begin, shape.kv_heads * shape.head),
                values: self.kept.values.block(begin, shape.kv_heads * shape.value_head),
                seen: 0..0,
                present: [0; BLOCK],
                count: 0,
            };
            let mut line = 0;
            while line < lines {
                let seen = self.queries[line / shared].seen(begin);
                if block.seen != seen {
                    block.see(seen, self.kept);
                }
                // Those that see the same keys go by twos.
                let two = line + 1 < lines && self.queries[(line + 1) / shared].seen(begin) == block.seen;
                let (step, sums) = (1 + usize::from(two), &mut sums[line * padded..]);
                if block.count > 0 {
                    let progress = &mut progress[line..line + step];
                    match two {
                        true => self.step::<L, 2, 4>(line, &block, progress, sums),
                        false => self.step::<L, 1, 8>(line, &block, progress, sums),
                    }
                }
                line += step;
            }
        }
        for (line, (sums, progress)) in sums.chunks_exact_mut(padded).zip(&progress).enumerate() {
            let (row, head) = (line / shared, self.group * shared + line % shared);
            let query = self.queries[row];
            if (query.first..query.end).any(|key| !self.kept.is_absent(key)) {
                let mut total = progress.total;
                if let Some(sinks) = self.sinks {
                    total += exp(L::splat(sinks[head] - progress.largest)).to_array()[0];
                }
                sums.iter_mut().for_each(|sum| *sum /= total);
            } else if self.sinks.is_none() {
                self.blind(sums);
            }
            let place = ((self.rows.start + row) * shape.heads + head) * shape.value_head;
            // SAFETY: `out` has a place for each head of each query, and nobody else writes these.
            let out = unsafe { std::slice::from_raw_parts_mut(self.target.0.add(place), shape.value_head) };
            out.copy_from_slice(&sums[..shape.value_head]);
        }
        self.scratch.sums = sums;
    }
}

impl QueryRow {
    /// Which keys of a block are in view, counted from its beginning.
    fn seen(&self, begin: usize) -> Range<usize> {
        let first = self.first.max(begin) - begin;
        first..self.end.clamp(begin + first, (begin + BLOCK).max(begin + first)) - begin
    }
}

impl Block<'_> {
    fn see(&mut self, seen: Range<usize>, kept: &KeysValues<'_>) {
        self.count = 0;
        for place in seen.clone().filter(|place| !kept.is_absent(self.begin + place)) {
            self.present[self.count] = place as u8;
            self.count += 1;
        }
        self.seen = seen;
    }

    fn present(&self) -> &[u8] {
        &self.present[..self.count]
    }
}

impl Group<'_> {
    /// Takes a block into `N` lines that see the same of it, `K` keys at a time; `sums` are those of the first line, and
    /// then the others'.
    #[inline(always)]
    fn step<L: Lanes, const N: usize, const K: usize>(
        &self,
        line: usize,
        block: &Block<'_>,
        progress: &mut [Progress],
        sums: &mut [f32],
    ) {
        let shape = self.shape;
        let shared = shape.heads / shape.kv_heads;
        let mut scores = [[f32::NEG_INFINITY; BLOCK]; N];
        let mut q: [&[f32]; N] = [&[]; N];
        for (number, q) in q.iter_mut().enumerate() {
            let (row, head) = ((line + number) / shared, self.group * shared + (line + number) % shared);
            *q = &self.q[((self.rows.start + row) * shape.heads + head) * shape.head..][..shape.head];
        }
        let stride = shape.kv_heads * shape.head;
        products::<L, N, K>(q, &block.keys[self.group * shape.head..], stride, &block.seen, shape.scale, &mut scores);
        let mut keep = [0.0; N];
        for (number, scores) in scores.iter_mut().enumerate() {
            self.bend(line + number, block, scores);
            keep[number] = weigh::<L>(scores, &mut progress[number]);
        }
        let (values, stride) = (&block.values[self.group * shape.value_head..], shape.kv_heads * shape.value_head);
        accumulate::<L, N>(sums, keep, &scores, block.present(), values, stride, shape.value_head);
    }

    /// What a query gives that sees no key: the mean of all values, for the library's masks lower all scores alike then.
    fn blind(&self, sums: &mut [f32]) {
        let (kept, width) = (self.kept, self.shape.value_head);
        let stride = self.shape.kv_heads * width;
        for key in 0..kept.length {
            let begin = key - key % BLOCK;
            let from = (key - begin) * stride + self.group * width;
            let value = &kept.values.block(begin, stride)[from..from + width];
            sums.iter_mut().zip(value).for_each(|(sum, value)| *sum += value);
        }
        sums.iter_mut().for_each(|sum| *sum /= kept.length.max(1) as f32);
    }

    /// What is done to the scores of a line after their scale.
    #[inline(always)]
    fn bend(&self, line: usize, block: &Block<'_>, scores: &mut [f32; BLOCK]) {
        let (shape, shared) = (self.shape, self.shape.heads / self.shape.kv_heads);
        if let Some(cap) = shape.softcap {
            scores[block.seen.clone()].iter_mut().for_each(|score| *score = cap * libm::tanhf(*score / cap));
        }
        if let Some(bias) = self.kept.bias {
            let of_head = self.kept.queries * self.kept.length;
            let head = self.group * shared + line % shared;
            let from = if bias.len() == of_head { 0 } else { head * of_head };
            let bias = &bias[from + self.queries[line / shared].row * self.kept.length..][..self.kept.length];
            let seen = block.seen.clone();
            let bias = &bias[block.begin + seen.start..block.begin + seen.end];
            scores[seen].iter_mut().zip(bias).for_each(|(score, bias)| *score += bias);
        }
        if block.count < block.seen.len() {
            let all = *scores;
            scores.fill(f32::NEG_INFINITY);
            block.present().iter().for_each(|&key| scores[usize::from(key)] = all[usize::from(key)]);
        }
    }
}
