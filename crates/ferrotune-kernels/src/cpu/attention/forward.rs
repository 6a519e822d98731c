//! Forward, with a running maximum.

use super::{
    Heads, Inputs, Task,
    block::{Block, KEYS, QUERIES, STEP, copy, multiply},
};
use crate::cpu::{
    LANES, exp_of_negative, largest, product::Rows, product::vector::Vector, simd::sum_of_lanes,
};
use std::ops::Range;

pub(super) struct Forward {
    pub(super) inputs: Inputs,
    pub(super) output: Heads,
    /// `[heads, tokens, 1]`, where backward will want it.
    pub(super) lse: Option<Heads>,
}

/// Of each query of a block: the largest of its scores so far, and the sum of the others' exponentials relative to it.
struct State {
    largest: [f32; QUERIES],
    sum: [f32; QUERIES],
}

impl Forward {
    /// # Safety
    /// The task's tokens and heads exist, and no other task writes them; the machine has the instructions of `V`; scratch has room for
    /// the copy of a head and a block of scores.
    #[inline(always)]
    pub(super) unsafe fn run<V: Vector>(&self, task: &Task, scratch: &mut [f32]) {
        let tokens = task.tokens.clone();
        let (keys, scores) = scratch.split_at_mut(self.inputs.copy_size(tokens.len()));
        // SAFETY: as the caller says; the values are those of the task's tokens.
        unsafe {
            copy::<V>(&self.inputs.k, tokens.clone(), task.kv_head, self.inputs.scale, keys);
            let values = (self.inputs.v.at(tokens.start, task.kv_head), self.inputs.v.token_stride);
            self.over::<V>(task, 0, keys, values, scores);
        }
    }

    /// The attention of the task's tokens, which follow `past` others, over the copied keys and the values of all of them.
    ///
    /// # Safety
    /// As [`Forward::run`]; `keys` is the copy of the keys of `past` and the task's tokens, `values` the first of as many heads of values
    /// and the stride from one to the next, and scratch has room for a block of scores.
    #[inline(always)]
    pub(super) unsafe fn over<V: Vector>(
        &self,
        task: &Task,
        past: usize,
        keys: &[f32],
        values: (*mut f32, usize),
        scratch: &mut [f32],
    ) {
        for head in task.heads.clone() {
            for queries in task.queries() {
                let queries = past + queries.start..past + queries.end;
                let token = task.tokens.start + queries.start - past;
                // SAFETY: as the caller says.
                unsafe {
                    self.queries::<V>([token, head], queries, keys, values, &mut scratch[..QUERIES * KEYS]);
                }
            }
        }
    }

    /// The attention of the queries at some positions of their sequence; `token` is the row of the first.
    ///
    /// # Safety
    /// As [`Forward::over`].
    #[inline(always)]
    unsafe fn queries<V: Vector>(
        &self,
        [token, head]: [usize; 2],
        queries: Range<usize>,
        keys: &[f32],
        values: (*mut f32, usize),
        scores: &mut [f32],
    ) {
        let Inputs { q, window, .. } = self.inputs;
        let mut state = State { largest: [f32::NEG_INFINITY; QUERIES], sum: [0.0; QUERIES] };
        for (index, block) in Block::all(queries.clone(), window).enumerate() {
            // SAFETY: the block's queries are tokens of the task, and its keys these or some before.
            unsafe {
                let left = q.at(token, head);
                block.products::<V>(left, q.token_stride, keys.as_ptr(), q.head_dim, scores.as_mut_ptr());
                for (row, scores) in scores.chunks_exact_mut(KEYS).take(queries.len()).enumerate() {
                    let correction =
                        state.weigh(row, block.seen(row, window), block.depth(row / STEP * STEP), scores);
                    if index > 0 && correction != 1.0 {
                        scale(self.output.row(token + row, head), correction);
                    }
                }
                self.add::<V>([token, head], &block, values, scores, index > 0);
            }
        }
        for row in 0..queries.len() {
            // SAFETY: a query of the task.
            unsafe {
                scale(self.output.row(token + row, head), 1.0 / state.sum[row]);
                if let Some(lse) = self.lse {
                    *lse.at(head, token + row) = state.largest[row] + state.sum[row].ln();
                }
            }
        }
    }

    /// The weighted sum of the block's values into the rows of its queries, or added to them.
    ///
    /// # Safety
    /// As [`Forward::over`], for queries and keys of the block.
    #[inline(always)]
    unsafe fn add<V: Vector>(
        &self,
        [token, head]: [usize; 2],
        block: &Block,
        (values, stride): (*mut f32, usize),
        weights: &[f32],
        add: bool,
    ) {
        for row in (0..block.queries.len()).step_by(STEP) {
            // SAFETY: as the caller says; a head of values is a whole number of registers.
            unsafe {
                multiply::<V>(&Rows {
                    rows: (block.queries.len() - row).min(STEP),
                    columns: self.output.head_dim,
                    depth: block.depth(row),
                    left: weights.as_ptr().add(row * KEYS),
                    left_row_stride: KEYS,
                    left_depth_stride: 1,
                    panel: values.add(block.keys.start * stride),
                    panel_stride: stride,
                    target: self.output.at(token + row, head),
                    target_row_stride: self.output.token_stride,
                    add,
                });
            }
        }
    }
}

impl State {
    /// Turns the scores of a query into weights, zero for the `depth` keys that it does not see, and returns by what the sums of the
    /// blocks before are to be multiplied.
    #[inline(always)]
    fn weigh(&mut self, row: usize, seen: Range<usize>, depth: usize, scores: &mut [f32]) -> f32 {
        if seen.is_empty() {
            scores[..depth].fill(0.0);
            return 1.0;
        }
        let whole = seen.end.next_multiple_of(LANES);
        scores[..seen.start].fill(f32::NEG_INFINITY);
        scores[seen.end..whole].fill(f32::NEG_INFINITY);
        let before = self.largest[row];
        let new = largest(&scores[..whole]).max(before);
        let correction =
            if before == f32::NEG_INFINITY { 0.0 } else { exp_of_negative::<true>(before - new) };
        let sum = weigh(&mut scores[..whole], new);
        if depth > whole {
            scores[whole..depth].fill(0.0);
        }
        self.sum[row] = self.sum[row] * correction + sum;
        self.largest[row] = new;
        correction
    }
}

/// Turns whole registers of scores into weights, `exp(score - largest)`, and returns their sum.
#[inline(always)]
pub(super) fn weigh(scores: &mut [f32], largest: f32) -> f32 {
    let mut sums = [0.0; LANES];
    for scores in scores.as_chunks_mut::<LANES>().0 {
        for lane in 0..LANES {
            scores[lane] = exp_of_negative::<true>(scores[lane] - largest);
            sums[lane] += scores[lane];
        }
    }
    sum_of_lanes(sums)
}

#[inline(always)]
fn scale(row: &mut [f32], factor: f32) {
    for number in row {
        *number *= factor;
    }
}
