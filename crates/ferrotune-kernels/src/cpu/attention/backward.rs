//! Backward, from scores that are formed again.

use super::{
    Heads, Inputs, Task,
    block::{Block, KEYS, QUERIES, STEP, copy, multiply},
};
use crate::cpu::{LANES, dot, exp_of_negative, product::Rows, product::vector::Vector};
use std::ops::Range;

pub(super) struct Backward {
    pub(super) inputs: Inputs,
    pub(super) grad: Heads,
    pub(super) output: Heads,
    /// `[heads, tokens, 1]`
    pub(super) lse: Heads,
    pub(super) grad_q: Heads,
    /// By heads of keys, or by heads of queries where each is a task of its own.
    pub(super) grad_k: Heads,
    pub(super) grad_v: Heads,
}

/// Some of a thread's memory.
struct Scratch<'a> {
    keys: &'a [f32],
    values: &'a [f32],
    /// Of a block: scores, then weights.
    weights: &'a mut [f32],
    /// Gradients of the weights, then of the scores.
    grads: &'a mut [f32],
    /// Of each query: `sum_j weight_j grad_j`.
    means: &'a mut [f32],
}

impl Backward {
    /// # Safety
    /// The task's tokens and heads exist, and no other task writes them or the heads `place` of the gradients of keys and values; the
    /// machine has the instructions of `V`; scratch has room for the copies of two heads, two blocks and a row.
    #[inline(always)]
    pub(super) unsafe fn run<V: Vector>(&self, task: &Task, place: usize, scratch: &mut [f32]) {
        let size = self.inputs.copy_size(task.tokens.len());
        let (keys, scratch) = scratch.split_at_mut(size);
        let (values, scratch) = scratch.split_at_mut(size);
        let (weights, scratch) = scratch.split_at_mut(QUERIES * KEYS);
        let (grads, means) = scratch.split_at_mut(QUERIES * KEYS);
        // SAFETY: as the caller says.
        unsafe {
            copy::<V>(&self.inputs.k, task.tokens.clone(), task.kv_head, self.inputs.scale, keys);
            copy::<V>(&self.inputs.v, task.tokens.clone(), task.kv_head, 1.0, values);
            for token in task.tokens.clone() {
                self.grad_k.row(token, place).fill(0.0);
                self.grad_v.row(token, place).fill(0.0);
            }
            let mut scratch = Scratch { keys, values, weights, grads, means };
            for head in task.heads.clone() {
                for queries in task.queries() {
                    self.queries::<V>(task, head, place, queries, &mut scratch);
                }
            }
        }
    }

    /// # Safety
    /// As [`Backward::run`].
    #[inline(always)]
    unsafe fn queries<V: Vector>(
        &self,
        task: &Task,
        head: usize,
        place: usize,
        queries: Range<usize>,
        scratch: &mut Scratch,
    ) {
        let Inputs { q, k, window, .. } = &self.inputs;
        let token = task.tokens.start + queries.start;
        for (index, mean) in scratch.means.iter_mut().take(queries.len()).enumerate() {
            // SAFETY: a query of the task; rows of inputs are not written.
            *mean = unsafe {
                dot::<true>(self.grad.row(token + index, head), self.output.row(token + index, head))
            };
        }
        for (index, block) in Block::all(queries.clone(), *window).enumerate() {
            let key = task.tokens.start + block.keys.start;
            // SAFETY: the block's queries and keys are tokens of the task.
            unsafe {
                let (left, grad) = (q.at(token, head), self.grad.at(token, head));
                let (weights, grads) = (scratch.weights.as_mut_ptr(), scratch.grads.as_mut_ptr());
                block.products::<V>(left, q.token_stride, scratch.keys.as_ptr(), q.head_dim, weights);
                block.products::<V>(grad, self.grad.token_stride, scratch.values.as_ptr(), q.head_dim, grads);
                self.scores(&block, |query| *self.lse.at(head, token + query), scratch);
                for query in (0..queries.len()).step_by(STEP).filter(|query| block.depth(*query) > 0) {
                    multiply::<V>(&Rows {
                        rows: (queries.len() - query).min(STEP),
                        columns: q.head_dim,
                        depth: block.depth(query),
                        left: grads.add(query * KEYS),
                        left_row_stride: KEYS,
                        left_depth_stride: 1,
                        panel: k.at(key, task.kv_head),
                        panel_stride: k.token_stride,
                        target: self.grad_q.at(token + query, head),
                        target_row_stride: self.grad_q.token_stride,
                        add: index > 0,
                    });
                }
                for (factors, right, target) in
                    [(grads, q, &self.grad_k), (weights, &self.grad, &self.grad_v)]
                {
                    for first in (0..block.keys.len()).step_by(STEP) {
                        // Queries before the first of these keys see none of them.
                        let query = (block.keys.start + first).saturating_sub(queries.start);
                        multiply::<V>(&Rows {
                            rows: (block.keys.len() - first).min(STEP),
                            columns: q.head_dim,
                            depth: queries.len().saturating_sub(query),
                            left: factors.add(query * KEYS + first),
                            left_row_stride: 1,
                            left_depth_stride: KEYS,
                            panel: right.at(token + query, head),
                            panel_stride: right.token_stride,
                            target: target.at(key + first, place),
                            target_row_stride: target.token_stride,
                            add: true,
                        });
                    }
                }
            }
        }
    }

    /// Turns scores into weights, `exp(score - log-sum-exp)`, and the gradients of weights into those of scores,
    /// `scale * weight * (grad - mean)`; both are zero where a query does not see a key.
    #[inline(always)]
    fn scores(&self, block: &Block, lse: impl Fn(usize) -> f32, scratch: &mut Scratch) {
        let rows = scratch.weights.chunks_exact_mut(KEYS).zip(scratch.grads.chunks_exact_mut(KEYS));
        for (query, (weights, grads)) in rows.take(block.queries.len()).enumerate() {
            let seen = block.seen(query, self.inputs.window);
            let whole = seen.end.next_multiple_of(LANES);
            weights[..seen.start].fill(f32::NEG_INFINITY);
            weights[seen.end..whole].fill(f32::NEG_INFINITY);
            grads[..seen.start].fill(0.0);
            grads[seen.end..whole].fill(0.0);
            let (lse, mean) = (lse(query), scratch.means[query]);
            let chunks = weights[..whole].as_chunks_mut::<LANES>().0.iter_mut();
            for (weights, grads) in chunks.zip(grads[..whole].as_chunks_mut::<LANES>().0) {
                for lane in 0..LANES {
                    weights[lane] = exp_of_negative::<true>(weights[lane] - lse);
                    grads[lane] = weights[lane] * (grads[lane] - mean) * self.inputs.scale;
                }
            }
            if whole < block.keys.len() {
                weights[whole..block.keys.len()].fill(0.0);
                grads[whole..block.keys.len()].fill(0.0);
            }
        }
    }
}
