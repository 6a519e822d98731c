//! Attention over a cache of keys and values: of prompts by the loops of forward, of single tokens where the keys lie.

use super::{
    AttentionOptions, Heads, Inputs, KEYS, LONG, Level, QUERIES, Task, block::copy, block::multiply, forward::Forward,
};
use crate::cpu::{
    exp, largest,
    product::{Few, Rows, in_parallel, level, panel::with_scratch, tile, vector::Vector},
};
use std::{arch::x86_64, ops::Range, ptr::NonNull};
use tch::Tensor;

/// New tokens of a sequence, and the rows of the cache that hold the keys and values of all its tokens.
pub(crate) struct Prompt<'a> {
    pub(crate) tokens: Range<usize>,
    /// Of its tokens before the new ones, in their order, and then of these.
    pub(crate) rows: &'a [Range<usize>],
}

/// Writes the attention of the prompts into their rows of `output`; `false` where these tensors want other loops.
///
/// `q` and `output` are `[tokens, heads, head_dim]`, `cache` `[rows, 2 * kv_heads, head_dim]`: the keys, then the values of a token.
pub(crate) fn over_cache(prompts: &[Prompt], tensors: [&Tensor; 3], options: AttentionOptions) -> bool {
    level().is_some_and(|level| over_cache_at(level, prompts, tensors, options))
}

fn over_cache_at(level: Level, prompts: &[Prompt], tensors: [&Tensor; 3], options: AttentionOptions) -> bool {
    let [q, cache, output] = tensors;
    let (Some(inputs), Some(output)) = (Inputs::of([q, cache, cache], options), Heads::of(output)) else {
        return false;
    };
    let (q, cache_heads) = (inputs.q, inputs.k.heads);
    let job = OverCache { forward: Forward { inputs, output, lse: None }, prompts };
    let tasks = job.tasks();
    let longest = prompts.iter().map(Prompt::len).max().unwrap_or(0);
    let of_prompt = longest * q.head_dim + inputs.copy_size(longest) + QUERIES * KEYS;
    let room = of_prompt.max(2 * q.heads / cache_heads * longest.next_multiple_of(crate::cpu::LANES));
    // What a single token reads comes from memory, in the time of several products.
    let weight = |prompt: &Prompt| if prompt.tokens.len() == 1 { 8 } else { prompt.tokens.len() };
    let pairs = prompts.iter().map(|prompt| weight(prompt) * prompt.len()).sum::<usize>();
    in_parallel(tasks.len(), pairs * q.heads * q.head_dim, |index| {
        let (prompt, task) = &tasks[index];
        with_scratch(room, |scratch| {
            // SAFETY: the level's instructions are there; each task writes heads of its own of the new tokens.
            unsafe {
                match level {
                    Level::Avx512 => over_cache_avx512(&job, prompt, task, scratch),
                    Level::Avx2 => over_cache_avx2(&job, prompt, task, scratch),
                }
            }
        });
    });
    true
}

impl Prompt<'_> {
    /// All tokens.
    fn len(&self) -> usize {
        self.rows.iter().map(Range::len).sum()
    }
}

struct OverCache<'a> {
    forward: Forward,
    prompts: &'a [Prompt<'a>],
}

impl OverCache<'_> {
    /// The tasks, those with most to do first: a head of keys of a prompt, or of a long one a head of queries.
    fn tasks(&self) -> Vec<(&Prompt<'_>, Task)> {
        let Inputs { q, k: cache, .. } = self.forward.inputs;
        let group = 2 * q.heads / cache.heads;
        let mut tasks = Vec::new();
        for prompt in self.prompts {
            let together = if prompt.tokens.len() > LONG { 1 } else { group };
            for first in (0..q.heads).step_by(together) {
                let (kv_head, heads) = (first / group, first..first + together);
                tasks.push((prompt, Task { tokens: prompt.tokens.clone(), kv_head, heads }));
            }
        }
        tasks.sort_by_key(|(prompt, task)| {
            std::cmp::Reverse(task.tokens.len() * prompt.len() * task.heads.len())
        });
        tasks
    }

    /// # Safety
    /// As [`OverCache::copied`].
    #[inline(always)]
    unsafe fn run<V: Vector>(&self, prompt: &Prompt, task: &Task, scratch: &mut [f32]) {
        // SAFETY: as the caller says.
        unsafe {
            match prompt.tokens.len() {
                1 => self.in_place::<V>(prompt, task, scratch),
                _ => self.copied::<V>(prompt, task, scratch),
            }
        }
    }

    /// Of a single token, whose queries meet each key once.
    ///
    /// # Safety
    /// As [`OverCache::copied`], but that scratch has room for the scores of the task's heads.
    #[inline(always)]
    unsafe fn in_place<V: Vector>(&self, prompt: &Prompt, task: &Task, scratch: &mut [f32]) {
        let Inputs { q, k: cache, scale, window, .. } = self.forward.inputs;
        let (token, heads, output) = (prompt.tokens.start, task.heads.len(), &self.forward.output);
        let all = prompt.len();
        let unseen = all.saturating_sub(window);
        let width = (all - unseen).next_multiple_of(crate::cpu::LANES);
        let scores = &mut scratch[..heads * width];
        for scores in scores.chunks_exact_mut(width) {
            scores[all - unseen..].fill(f32::NEG_INFINITY);
        }
        // Of each piece of the rows that are seen: where its scores begin.
        let pieces = || {
            let mut place = 0;
            let mut unseen = unseen;
            prompt.rows.iter().filter_map(move |rows| {
                let skipped = unseen.min(rows.len());
                unseen -= skipped;
                let piece = (place, rows.start + skipped..rows.end);
                place += piece.1.len();
                (!piece.1.is_empty()).then_some(piece)
            })
        };
        // SAFETY: rows of the cache and heads of the token that exist; scores have room for the heads and the rows that are seen.
        unsafe {
            for (place, rows) in pieces() {
                few::<V>(
                    &Few {
                        rows: heads,
                        columns: rows.len(),
                        depth: q.head_dim,
                        left: q.at(token, task.heads.start),
                        left_row_stride: q.head_stride,
                        target: scores.as_mut_ptr().add(place),
                        target_row_stride: width,
                        scale,
                        add: false,
                    },
                    tile::DenseRows { start: cache.at(rows.start, task.kv_head), stride: cache.token_stride },
                );
            }
            let mut sums = [0.0; 64];
            for (scores, sum) in scores.chunks_exact_mut(width).zip(&mut sums) {
                *sum = weigh(scores);
            }
            for (place, rows) in pieces() {
                multiply::<V>(&Rows {
                    rows: heads,
                    columns: q.head_dim,
                    depth: rows.len(),
                    left: scores.as_ptr().add(place),
                    left_row_stride: width,
                    left_depth_stride: 1,
                    panel: cache.at(rows.start, cache.heads / 2 + task.kv_head),
                    panel_stride: cache.token_stride,
                    target: output.at(token, task.heads.start),
                    target_row_stride: output.head_stride,
                    add: place > 0,
                });
            }
            for (head, sum) in task.heads.clone().zip(sums) {
                super::forward::scale(output.row(token, head), 1.0 / sum);
            }
        }
    }

    /// # Safety
    /// The prompt's tokens and rows exist, and no other task writes its part of the result; the machine has the instructions of `V`;
    /// scratch has room for a head of all tokens twice, once in whole panels, and for a block of scores.
    #[inline(always)]
    unsafe fn copied<V: Vector>(&self, prompt: &Prompt, task: &Task, scratch: &mut [f32]) {
        let Inputs { q, k: cache, scale, .. } = self.forward.inputs;
        let (kv_heads, kv_head) = (cache.heads / 2, task.kv_head);
        let (gathered, rest) = scratch.split_at_mut(prompt.len() * q.head_dim);
        let (keys, scores) = rest.split_at_mut(self.forward.inputs.copy_size(prompt.len()));
        let past = prompt.len() - prompt.tokens.len();
        // SAFETY: as the caller says; rows of the cache are dense heads, and what is gathered lies side by side.
        unsafe {
            gather(&cache, prompt.rows, kv_head, gathered);
            let Some(start) = NonNull::new(gathered.as_mut_ptr()) else { return };
            let side_by_side = Heads {
                start,
                tokens: prompt.len(),
                heads: 1,
                token_stride: q.head_dim,
                head_stride: 0,
                head_dim: q.head_dim,
            };
            copy::<V>(&side_by_side, 0..prompt.len(), 0, scale, keys);
            gather(&cache, prompt.rows, kv_heads + kv_head, gathered);
            self.forward.over::<V>(task, past, keys, (gathered.as_mut_ptr(), q.head_dim), scores);
        }
    }
}

/// Turns the scores of a query into weights, and returns their sum.
#[inline(always)]
fn weigh(scores: &mut [f32]) -> f32 {
    const LANES: usize = crate::cpu::LANES;
    let largest = largest(scores);
    let mut sums = [0.0; LANES];
    for scores in scores.as_chunks_mut::<LANES>().0 {
        for lane in 0..LANES {
            scores[lane] = exp::<true>(scores[lane] - largest);
            sums[lane] += scores[lane];
        }
    }
    sums.iter().sum()
}

/// # Safety
/// As [`tile::few`].
#[inline(always)]
unsafe fn few<V: Vector>(block: &Few, right: tile::DenseRows) {
    // SAFETY: as the caller says.
    unsafe {
        match V::LANES {
            16 => tile::few::<V, 8, 3>(block, right),
            _ => tile::few::<V, 4, 2>(block, right),
        }
    }
}

/// Copies a head of some rows, one after the other.
///
/// # Safety
/// The rows and the head exist.
#[inline(always)]
unsafe fn gather(cache: &Heads, rows: &[Range<usize>], head: usize, target: &mut [f32]) {
    let rows = rows.iter().cloned().flatten();
    for (target, row) in target.chunks_exact_mut(cache.head_dim).zip(rows) {
        // SAFETY: as the caller says; the cache is only read, by other tasks as well.
        target.copy_from_slice(unsafe { std::slice::from_raw_parts(cache.at(row, head), cache.head_dim) });
    }
}

// SAFETY, for both: as the function that they call; the instructions are enabled here.

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn over_cache_avx512(job: &OverCache, prompt: &Prompt, task: &Task, scratch: &mut [f32]) {
    unsafe { job.run::<x86_64::__m512>(prompt, task, scratch) };
}

#[target_feature(enable = "avx2,fma")]
unsafe fn over_cache_avx2(job: &OverCache, prompt: &Prompt, task: &Task, scratch: &mut [f32]) {
    unsafe { job.run::<x86_64::__m256>(prompt, task, scratch) };
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a list of ranges may have one")]
mod tests {
    use super::*;
    use crate::cpu::{assert_close, noise};
    use tch::{Device, Kind};

    /// By a matrix of scores, in double precision.
    fn plain(q: &Tensor, k: &Tensor, v: &Tensor, options: AttentionOptions) -> Tensor {
        let group = q.size()[1] / k.size()[1];
        let of_keys = |x: &Tensor| x.transpose(0, 1).repeat_interleave_self_int(group, 0, None);
        let scores = q.transpose(0, 1).matmul(&of_keys(k).transpose(1, 2)) * options.scale;
        let (new, all) = (q.size()[0], k.size()[0]);
        let ones = Tensor::ones([new, all], (Kind::Bool, Device::Cpu));
        let window = options.sliding_window.unwrap_or(all);
        let hidden = ones.triu(all - new + 1).logical_or(&ones.tril(all - new - window));
        scores
            .masked_fill(&hidden, f64::NEG_INFINITY)
            .softmax(-1, Kind::Double)
            .matmul(&of_keys(v))
            .transpose(0, 1)
    }

    #[test]
    fn prompts_after_others_with_rows_anywhere_at_every_level() {
        let (heads, kv_heads, head_dim) = (6, 2, 48);
        // Rows of the tokens before and the new ones, in pieces; the second begins with rows of the first.
        let rows: [&[Range<usize>]; 4] =
            [&[100..140, 0..60], &[100..140, 600..601, 150..590], &[591..593], &[140..590, 20..170]];
        // The last is long enough for a head of queries to be a task of its own.
        let new = [0..70, 70..150, 150..152, 152..702];
        for sliding_window in [None, Some(1), Some(33), Some(400)] {
            let options = AttentionOptions { scale: 0.3, sliding_window };
            let q = noise(1, &[702, heads, head_dim]) * 2.0;
            let cache = noise(2, &[601, 2 * kv_heads, head_dim]) * 2.0;
            let prompts: Vec<Prompt> =
                new.iter().zip(rows).map(|(tokens, rows)| Prompt { tokens: tokens.clone(), rows }).collect();
            for level in Level::available() {
                let output = Tensor::full_like(&q, f64::NAN);
                assert!(over_cache_at(level, &prompts, [&q, &cache, &output], options));
                for (tokens, rows) in new.iter().zip(rows) {
                    let of = |x: &Tensor| {
                        x.narrow(0, tokens.start as i64, tokens.len() as i64).to_kind(Kind::Double)
                    };
                    let rows = Vec::from_iter(rows.iter().cloned().flatten().map(|row| row as i64));
                    let cached = cache.index_select(0, &Tensor::from_slice(&rows)).to_kind(Kind::Double);
                    let (k, v) = (cached.narrow(1, 0, kv_heads), cached.narrow(1, kv_heads, kv_heads));
                    assert_close(&of(&output), &plain(&of(&q), &k, &v, options), 1e-6);
                }
            }
        }
    }
}
