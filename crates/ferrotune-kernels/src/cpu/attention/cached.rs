//! Attention over a cache of keys and values: of prompts by the loops of forward, of single tokens where the keys lie.

use super::{
    AttentionOptions, Heads, Inputs, KEYS, LONG, Level, QUERIES, Task, block::copy, forward::Forward, single,
};
use crate::{
    cached_attention::Sequence,
    cpu::product::{in_parallel, level, panel::with_scratch, vector::Vector},
};
use std::{arch::x86_64, ops::Range, ptr::NonNull};
use tch::Tensor;

/// Products in the time in which a number that a single token meets once comes from memory.
const PRODUCTS_PER_NUMBER: usize = 8;

/// Writes the attention of the new tokens of sequences into their rows of `output`; `false` where these tensors want other loops.
///
/// `q` and `output` are `[tokens, heads, head_dim]`, `cache` `[rows, 2 * kv_heads, head_dim]`: the keys, then the values of a token.
pub(crate) fn over_cache(sequences: &[Sequence], tensors: [&Tensor; 3], options: AttentionOptions) -> bool {
    level().is_some_and(|level| over_cache_at(level, sequences, tensors, options))
}

fn over_cache_at(
    level: Level,
    sequences: &[Sequence],
    tensors: [&Tensor; 3],
    options: AttentionOptions,
) -> bool {
    let [q, cache, output] = tensors;
    let (Some(inputs), Some(output)) = (Inputs::of([q, cache, cache], options), Heads::of(output)) else {
        return false;
    };
    let (q, cache_heads) = (inputs.q, inputs.k.heads);
    let job = OverCache { forward: Forward { inputs, output, lse: None }, sequences };
    let tasks = job.tasks();
    let room = |sequence: &Sequence| match (sequence.tokens.len(), sequence.len()) {
        (1, length) => single::room(length, 2 * q.heads / cache_heads),
        (_, length) => length * q.head_dim + inputs.copy_size(length) + QUERIES * KEYS,
    };
    let pairs = |sequence: &Sequence| match sequence.tokens.len() {
        1 => PRODUCTS_PER_NUMBER * sequence.len(),
        tokens => tokens * sequence.len(),
    };
    let pairs = sequences.iter().map(pairs).sum::<usize>();
    in_parallel(tasks.len(), pairs * q.heads * q.head_dim, |index| {
        let (sequence, task) = &tasks[index];
        with_scratch(room(sequence), |scratch| {
            // SAFETY: the level's instructions are there; each task writes heads of its own of the new tokens.
            unsafe {
                match level {
                    Level::Avx512 => over_cache_avx512(&job, sequence, task, scratch),
                    Level::Avx2 => over_cache_avx2(&job, sequence, task, scratch),
                }
            }
        });
    });
    true
}

struct OverCache<'a> {
    forward: Forward,
    sequences: &'a [Sequence],
}

impl OverCache<'_> {
    /// The tasks, those with most to do first: a head of keys of a sequence, or of many new tokens a head of queries.
    fn tasks(&self) -> Vec<(&Sequence, Task)> {
        let Inputs { q, k: cache, .. } = self.forward.inputs;
        let group = 2 * q.heads / cache.heads;
        let mut tasks = Vec::new();
        for sequence in self.sequences {
            let together = if sequence.tokens.len() > LONG { 1 } else { group };
            for first in (0..q.heads).step_by(together) {
                let (kv_head, heads) = (first / group, first..first + together);
                tasks.push((sequence, Task { tokens: sequence.tokens.clone(), kv_head, heads }));
            }
        }
        tasks.sort_by_key(|(sequence, task)| {
            std::cmp::Reverse(task.tokens.len() * sequence.len() * task.heads.len())
        });
        tasks
    }

    /// # Safety
    /// As [`OverCache::copied`], or [`single::attend`] for a single token.
    #[inline(always)]
    unsafe fn run<V: Vector>(&self, sequence: &Sequence, task: &Task, scratch: &mut [f32]) {
        // SAFETY: as the caller says.
        unsafe {
            match sequence.tokens.len() {
                1 => single::attend::<V>(&self.forward, sequence, task, scratch),
                _ => self.copied::<V>(sequence, task, scratch),
            }
        }
    }

    /// # Safety
    /// The sequence's tokens and rows exist, and no other task writes its part of the result; the machine has the instructions of `V`;
    /// scratch has room for a head of all tokens twice, once in whole panels, and for a block of scores.
    #[inline(always)]
    unsafe fn copied<V: Vector>(&self, sequence: &Sequence, task: &Task, scratch: &mut [f32]) {
        let Inputs { q, k: cache, scale, .. } = self.forward.inputs;
        let (kv_heads, kv_head) = (cache.heads / 2, task.kv_head);
        let (gathered, rest) = scratch.split_at_mut(sequence.len() * q.head_dim);
        let (keys, scores) = rest.split_at_mut(self.forward.inputs.copy_size(sequence.len()));
        // SAFETY: as the caller says; rows of the cache are dense heads, and what is gathered lies side by side.
        unsafe {
            gather(&cache, &sequence.rows, kv_head, gathered);
            let Some(start) = NonNull::new(gathered.as_mut_ptr()) else { return };
            let side_by_side = Heads {
                start,
                tokens: sequence.len(),
                heads: 1,
                token_stride: q.head_dim,
                head_stride: 0,
                head_dim: q.head_dim,
            };
            copy::<V>(&side_by_side, 0..sequence.len(), 0, scale, keys);
            gather(&cache, &sequence.rows, kv_heads + kv_head, gathered);
            self.forward.over::<V>(task, sequence.past(), keys, (gathered.as_mut_ptr(), q.head_dim), scores);
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
unsafe fn over_cache_avx512(job: &OverCache, sequence: &Sequence, task: &Task, scratch: &mut [f32]) {
    unsafe { job.run::<x86_64::__m512>(sequence, task, scratch) };
}

#[target_feature(enable = "avx2,fma")]
unsafe fn over_cache_avx2(job: &OverCache, sequence: &Sequence, task: &Task, scratch: &mut [f32]) {
    unsafe { job.run::<x86_64::__m256>(sequence, task, scratch) };
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
    fn new_tokens_after_others_with_rows_anywhere_at_every_level() {
        for (heads, kv_heads, head_dim) in [(6, 2, 48), (11, 1, 16)] {
            at_every_level(heads, kv_heads, head_dim);
        }
    }

    fn at_every_level(heads: i64, kv_heads: i64, head_dim: i64) {
        // Rows of the tokens before and the new ones, in pieces; the second begins with rows of the first.
        let rows: [&[Range<usize>]; 6] = [
            &[100..140, 0..60],
            &[100..140, 600..601, 150..590],
            &[591..593],
            &[140..590, 20..170],
            &[100..140, 0..1, 300..477],
            &[7..8],
        ];
        // Of single tokens at the end, and before them so many that a head of queries is a task of its own.
        let new = [0..70, 70..150, 150..152, 152..702, 702..703, 703..704];
        for sliding_window in [None, Some(1), Some(33), Some(400)] {
            let options = AttentionOptions { scale: 0.3, sliding_window };
            let q = noise(1, &[704, heads, head_dim]) * 2.0;
            let cache = noise(2, &[601, 2 * kv_heads, head_dim]) * 2.0;
            let sequence = |(tokens, rows): (&Range<usize>, &[_])| Sequence {
                tokens: tokens.clone(),
                rows: rows.to_vec(),
            };
            let sequences = Vec::from_iter(new.iter().zip(rows).map(sequence));
            for level in Level::available() {
                let output = Tensor::full_like(&q, f64::NAN);
                assert!(over_cache_at(level, &sequences, [&q, &cache, &output], options));
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
