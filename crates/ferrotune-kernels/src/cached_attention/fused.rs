//! Attention over cached rows in one pass, without a mask or padding.

use super::Sequence;
use crate::{
    attention::AttentionOptions,
    cpu::{
        Kernel, LANES, Rows,
        attention::{over_cache, takes},
        dispatch, dot, exp_of_negative, fill_rows_beside, largest, mul_add,
    },
    error::Result,
};
use std::ops::Range;
use tch::Tensor;

/// Keys between two corrections of the running maximum.
const KEYS: usize = 2 * LANES;
/// New tokens whose queries run over the keys together, so that keys are read from the nearest cache for all but the first.
const TOKENS: usize = 8;
/// Products in the time of an element of a pass over memory.
const PRODUCTS_PER_ELEMENT: usize = 16;

/// The attention of `q`, `[total_tokens, heads, head_dim]`; `None` if the tensors are not f32 on the CPU.
pub(super) fn attend(
    sequences: &[Sequence],
    q: &Tensor,
    cache: &Tensor,
    options: AttentionOptions,
) -> Result<Option<Tensor>> {
    let (Some(queries), Some(cached)) = (Rows::of(q, 2), Rows::of(cache, 2)) else { return Ok(None) };
    let (shape, kv_heads) = (q.size(), cache.size()[1] as usize / 2);
    let width = queries.width() / kv_heads;
    let head_dim = cached.width() / (2 * kv_heads);
    // The rest is for heads and processors that no loops are written for.
    if takes(head_dim as i64) {
        let y = q.f_empty_like()?;
        return Ok(over_cache(sequences, [q, cache, &y], options).then_some(y));
    }
    let pairs: usize = sequences.iter().map(|sequence| sequence.tokens.len() * sequence.len()).sum();
    let work = 2 * width * (pairs / queries.count()) / PRODUCTS_PER_ELEMENT;
    // A row of the result is a token's part of one head of keys: a single token, too, has work for several threads.
    let count = queries.count() * kv_heads;
    let [y] = fill_rows_beside(work, count, [&shape], |range, [y]| {
        dispatch(Attention {
            sequences,
            queries,
            cached,
            kv_heads,
            head_dim,
            scale: options.scale as f32,
            window: options.sliding_window.map_or(usize::MAX, |window| window.max(0) as usize),
            range,
            y,
        });
    })?;
    Ok(Some(y))
}

struct Attention<'a> {
    sequences: &'a [Sequence],
    queries: Rows<'a>,
    cached: Rows<'a>,
    kv_heads: usize,
    head_dim: usize,
    scale: f32,
    window: usize,
    /// Of the numbers `token * kv_heads + kv_head`.
    range: Range<usize>,
    y: &'a mut [f32],
}

impl Kernel for Attention<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let width = self.queries.width() / self.kv_heads;
        let mut tile = Tile::new(width / self.head_dim, self.head_dim);
        for kv_head in 0..self.kv_heads {
            // The tokens t for which t * kv_heads + kv_head lies in the range.
            let first = |place: usize| (place + self.kv_heads - 1 - kv_head) / self.kv_heads;
            for sequence in self.sequences {
                let start = first(self.range.start).max(sequence.tokens.start);
                let end = first(self.range.end).min(sequence.tokens.end);
                for start in (start..end).step_by(TOKENS) {
                    let tokens = start..end.min(start + TOKENS);
                    tile.begin(tokens.len(), sequence.past() + start - sequence.tokens.start);
                    // By the sequence, and not by the tile: how a range is cut depends on the number of threads.
                    tile.transposes = sequence.tokens.len() > 1;
                    for (token, q) in tokens.clone().zip(tile.q.chunks_exact_mut(width)) {
                        let query = &self.queries.row(token)[kv_head * width..][..width];
                        q.iter_mut().zip(query).for_each(|(q, query)| *q = query * self.scale);
                    }
                    let cached = |row: usize, head: usize| {
                        &self.cached.row(row)[head * self.head_dim..][..self.head_dim]
                    };
                    tile.attend::<FMA>(
                        &sequence.rows,
                        self.window,
                        |row| cached(row, kv_head),
                        |row| cached(row, self.kv_heads + kv_head),
                    );
                    for (token, y) in tokens.zip(tile.y.chunks_exact(width)) {
                        let place = token * self.kv_heads + kv_head - self.range.start;
                        self.y[place * width..][..width].copy_from_slice(y);
                    }
                }
            }
        }
    }
}

/// The queries of a few tokens that read one head of keys, and their sums so far.
///
/// The softmax is formed as keys come: sums are relative to the largest score so far, and corrected when a larger one is met.
///
/// # References
/// Milakov and Gimelshein 2018, arXiv:1805.02867.
struct Tile {
    group: usize,
    head_dim: usize,
    /// Tokens in use, and the position of the first.
    tokens: usize,
    position: usize,
    /// `[TOKENS, group, head_dim]`, scaled.
    q: Vec<f32>,
    /// `sum_j exp(score_j - largest) v_j`, as `q`.
    y: Vec<f32>,
    /// The largest score, and `sum_j exp(score_j - largest)`, `[TOKENS, group]` each.
    largest: Vec<f32>,
    sum: Vec<f32>,
    /// Whether keys are transposed first, `[head_dim, KEYS]`: worth it for many queries, whose scores then form side by side.
    transposes: bool,
    keys: Vec<f32>,
}

impl Tile {
    #[inline(always)]
    fn new(group: usize, head_dim: usize) -> Self {
        let rows = TOKENS * group;
        let (numbers, scalars) = (vec![0.0; rows * head_dim], vec![0.0; rows]);
        Self {
            group,
            head_dim,
            tokens: 0,
            position: 0,
            q: numbers.clone(),
            y: numbers,
            largest: scalars.clone(),
            sum: scalars,
            transposes: false,
            keys: vec![0.0; head_dim * KEYS],
        }
    }

    #[inline(always)]
    fn begin(&mut self, tokens: usize, position: usize) {
        (self.tokens, self.position) = (tokens, position);
        self.y.fill(0.0);
        self.largest.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
    }

    /// The attention of all tokens over the rows of their sequence.
    #[inline(always)]
    fn attend<'a, const FMA: bool>(
        &mut self,
        rows: &[Range<usize>],
        window: usize,
        key: impl Fn(usize) -> &'a [f32],
        value: impl Fn(usize) -> &'a [f32],
    ) {
        // What a token at a position sees.
        let seen = |position: usize| (position + 1).saturating_sub(window)..position + 1;
        let all = seen(self.position).start..self.position + self.tokens;
        let mut passed = 0;
        for rows in rows {
            let (mut start, end) = (all.start.max(passed), all.end.min(passed + rows.len()));
            while start < end {
                let block = start..end.min(start + KEYS);
                let first_row = rows.start + start - passed;
                if self.transposes {
                    for place in 0..block.len() {
                        let keys = self.keys[place..].iter_mut().step_by(KEYS);
                        keys.zip(key(first_row + place)).for_each(|(place, key)| *place = *key);
                    }
                }
                for token in 0..self.tokens {
                    let seen = seen(self.position + token);
                    let seen = block.start.max(seen.start)..block.end.min(seen.end);
                    if !seen.is_empty() {
                        self.add::<FMA>(token, seen.start - start..seen.end - start, first_row, &key, &value);
                    }
                }
                start = block.end;
            }
            passed += rows.len();
        }
        for (y, sum) in self.y.chunks_exact_mut(self.head_dim).zip(&self.sum) {
            y.iter_mut().for_each(|y| *y /= sum);
        }
    }

    /// Lets the queries of a token see some places of a block of [`KEYS`] rows.
    #[inline(always)]
    fn add<'a, const FMA: bool>(
        &mut self,
        token: usize,
        seen: Range<usize>,
        first_row: usize,
        key: &impl Fn(usize) -> &'a [f32],
        value: &impl Fn(usize) -> &'a [f32],
    ) {
        for query in token * self.group..(token + 1) * self.group {
            let place = query * self.head_dim..(query + 1) * self.head_dim;
            let (q, y) = (&self.q[place.clone()], &mut self.y[place]);
            let mut weights = [f32::NEG_INFINITY; KEYS];
            if self.transposes {
                weights = [0.0; KEYS];
                add_all::<FMA>(&mut weights, q, |dim| &self.keys[dim * KEYS..][..KEYS]);
                // What is not seen weighs nothing, whatever stands there.
                weights[..seen.start].fill(f32::NEG_INFINITY);
                weights[seen.end..].fill(f32::NEG_INFINITY);
            } else {
                for place in seen.clone() {
                    weights[place] = dot::<FMA>(q, key(first_row + place));
                }
            }
            let new = largest(&weights);
            if new > self.largest[query] {
                let correction = exp_of_negative::<FMA>(self.largest[query] - new);
                y.iter_mut().for_each(|y| *y *= correction);
                self.sum[query] *= correction;
                self.largest[query] = new;
            }
            for weight in &mut weights {
                *weight = exp_of_negative::<FMA>(*weight - self.largest[query]);
            }
            self.sum[query] += dot::<FMA>(&weights, &[1.0; KEYS]);
            add_all::<FMA>(y, &weights[seen.clone()], |place| value(first_row + seen.start + place));
        }
    }
}

/// `y += sum_i weights_i row(i)`, all rows of the length of `y`.
#[inline(always)]
fn add_all<'a, const FMA: bool>(y: &mut [f32], weights: &[f32], row: impl Fn(usize) -> &'a [f32]) {
    let (fours, rest) = weights.as_chunks::<4>();
    for (index, weights) in fours.iter().enumerate() {
        // Written out: a function of the standard library would be a call, and without the instructions of this one.
        let first = 4 * index;
        add_rows::<4, FMA>(y, *weights, [row(first), row(first + 1), row(first + 2), row(first + 3)]);
    }
    for (index, weight) in rest.iter().enumerate() {
        add_rows::<1, FMA>(y, [*weight], [row(4 * fours.len() + index)]);
    }
}

/// `y += sum_i weights_i rows_i`, all of the length of `y`.
#[inline(always)]
fn add_rows<const N: usize, const FMA: bool>(y: &mut [f32], weights: [f32; N], rows: [&[f32]; N]) {
    let (blocks, rest) = y.as_chunks_mut::<LANES>();
    for (index, block) in blocks.iter_mut().enumerate() {
        let mut sums = *block;
        for (weight, row) in weights.iter().zip(&rows) {
            let part = &row.as_chunks::<LANES>().0[index];
            for lane in 0..LANES {
                sums[lane] = mul_add::<FMA>(*weight, part[lane], sums[lane]);
            }
        }
        *block = sums;
    }
    for (weight, row) in weights.iter().zip(&rows) {
        for (y, number) in rest.iter_mut().zip(row.as_chunks::<LANES>().1) {
            *y = mul_add::<FMA>(*weight, *number, *y);
        }
    }
}
