//! Attention of prompts over a cache of keys and values, by the loops of forward.

use super::{
    AttentionOptions, Heads, Inputs, KEYS, Level, QUERIES, Task, block::copy, forward::Forward, takes,
};
use crate::cpu::product::{in_parallel, level, panel::with_scratch, vector::Vector};
use std::{arch::x86_64, ops::Range};
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
pub(crate) fn over_cache(
    prompts: &[Prompt],
    [q, cache, output]: [&Tensor; 3],
    options: AttentionOptions,
) -> bool {
    let heads = [q, cache, output].map(Heads::of);
    let (Some(level), [Some(q), Some(cache), Some(output)]) = (level(), heads) else { return false };
    if !takes(q.head_dim as i64) {
        return false;
    }
    let window = options.sliding_window.map_or(usize::MAX, |window| usize::try_from(window).unwrap_or(1));
    let inputs = Inputs { q, k: cache, v: cache, scale: options.scale as f32, window };
    let job = OverCache { forward: Forward { inputs, output, lse: None }, prompts };
    let kv_heads = cache.heads / 2;
    let longest = prompts.iter().map(Prompt::len).max().unwrap_or(0);
    let room = longest * q.head_dim + inputs.copy_size(longest) + QUERIES * KEYS;
    let pairs = prompts.iter().map(|prompt| prompt.tokens.len() * prompt.len()).sum::<usize>();
    in_parallel(prompts.len() * kv_heads, pairs * q.heads * q.head_dim, |index| {
        with_scratch(room, |scratch| {
            // SAFETY: the level's instructions are there; each task writes a head of its own of the new tokens.
            unsafe {
                match level {
                    Level::Avx512 => over_cache_avx512(&job, index, scratch),
                    Level::Avx2 => over_cache_avx2(&job, index, scratch),
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
    /// One head of keys of one prompt.
    ///
    /// # Safety
    /// The prompt's tokens and rows exist, and no other task writes its part of the result; the machine has the instructions of `V`;
    /// scratch has room for a head of all tokens twice, once in whole panels, and for a block of scores.
    #[inline(always)]
    unsafe fn run<V: Vector>(&self, index: usize, scratch: &mut [f32]) {
        let Inputs { q, k: cache, scale, .. } = self.forward.inputs;
        let kv_heads = cache.heads / 2;
        let (prompt, kv_head) = (&self.prompts[index / kv_heads], index % kv_heads);
        let group = q.heads / kv_heads;
        let task =
            Task { tokens: prompt.tokens.clone(), kv_head, heads: kv_head * group..(kv_head + 1) * group };
        let (gathered, rest) = scratch.split_at_mut(prompt.len() * q.head_dim);
        let (keys, scores) = rest.split_at_mut(self.forward.inputs.copy_size(prompt.len()));
        let past = prompt.len() - prompt.tokens.len();
        // SAFETY: as the caller says; rows of the cache are dense heads, and what is gathered lies side by side.
        unsafe {
            gather(&cache, prompt.rows, kv_head, gathered);
            let Some(start) = std::ptr::NonNull::new(gathered.as_mut_ptr()) else { return };
            let side_by_side = Heads {
                start,
                tokens: prompt.len(),
                heads: 1,
                token_stride: q.head_dim,
                head_stride: 0,
                ..cache
            };
            copy::<V>(&side_by_side, 0..prompt.len(), 0, scale, keys);
            gather(&cache, prompt.rows, kv_heads + kv_head, gathered);
            self.forward.over::<V>(&task, past, keys, (start.as_ptr(), q.head_dim), scores);
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
        // SAFETY: as the caller says.
        target.copy_from_slice(unsafe { cache.row(row, head) });
    }
}

// SAFETY, for both: as the function that they call; the instructions are enabled here.

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn over_cache_avx512(job: &OverCache, index: usize, scratch: &mut [f32]) {
    unsafe { job.run::<x86_64::__m512>(index, scratch) };
}

#[target_feature(enable = "avx2,fma")]
unsafe fn over_cache_avx2(job: &OverCache, index: usize, scratch: &mut [f32]) {
    unsafe { job.run::<x86_64::__m256>(index, scratch) };
}
