//! Causal attention within sequences, in f32: scores exist for a few queries and keys at a time, and those that a query does not see
//! are hardly computed.
//!
//! A task is a sequence and a head of keys with the heads of queries that read it, so that the keys are copied once, in the order in
//! which the products read them. Backward forms the scores again, from the log-sum-exp that forward kept.
//!
//! # References
//! Dao et al. 2022, "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness".

use super::product::{Level, in_parallel, level, panel};
use super::rows::is_plain;
use crate::{attention::AttentionOptions, error::Result, layout::Segment};
use std::{arch::x86_64, ops::Range, ptr::NonNull};
use tch::{Device, Kind, Tensor};

mod backward;
mod block;
mod cached;
mod forward;
mod single;

use block::{KEYS, QUERIES};
pub(crate) use cached::over_cache;

/// Numbers of a register of any level; a head is a whole number of these.
const LANES: usize = 16;
/// Tokens from which a head of queries is a task of its own: with fewer, the copies of the keys would weigh.
const LONG: usize = 512;

/// `[tokens, heads, head_dim]` by address.
#[derive(Clone, Copy)]
struct Heads {
    start: NonNull<f32>,
    tokens: usize,
    heads: usize,
    head_dim: usize,
    token_stride: usize,
    head_stride: usize,
}

// SAFETY: inputs are only read, and of results each task writes parts of its own.
unsafe impl Send for Heads {}
// SAFETY: as above.
unsafe impl Sync for Heads {}

impl Heads {
    /// `None` if the tensor is not f32 on the CPU, is empty, or the numbers of a head do not lie side by side.
    fn of(tensor: &Tensor) -> Option<Self> {
        if !is_plain(tensor, Kind::Float)? || tensor.numel() == 0 {
            return None;
        }
        let sizes: [i64; 3] = tensor.size().try_into().ok()?;
        let strides: [i64; 3] = tensor.stride().try_into().ok()?;
        let [tokens, heads, head_dim] = sizes.map(|size| size as usize);
        let [token_stride, head_stride, 1] = strides.map(|stride| stride as usize) else { return None };
        let start = NonNull::new(tensor.data_ptr().cast())?;
        Some(Self { start, tokens, heads, head_dim, token_stride, head_stride })
    }

    /// The numbers of a head of a token.
    ///
    /// # Safety
    /// Both exist.
    unsafe fn at(&self, token: usize, head: usize) -> *mut f32 {
        // SAFETY: libtorch keeps every element that sizes and strides lead to inside the tensor's memory.
        unsafe { self.start.as_ptr().add(token * self.token_stride + head * self.head_stride) }
    }

    /// The same as a slice.
    ///
    /// # Safety
    /// Both exist; numbers that are written are the task's own, and the slice the only one of them.
    #[inline(always)]
    unsafe fn row<'a>(&self, token: usize, head: usize) -> &'a mut [f32] {
        // SAFETY: as the caller says; `of` saw that the numbers lie side by side.
        unsafe { std::slice::from_raw_parts_mut(self.at(token, head), self.head_dim) }
    }
}

/// Queries, keys and values, and who sees whom.
#[derive(Clone, Copy)]
struct Inputs {
    q: Heads,
    k: Heads,
    v: Heads,
    scale: f32,
    window: usize,
}

impl Inputs {
    /// `None` where these tensors want libtorch's attention.
    fn of([q, k, v]: [&Tensor; 3], options: AttentionOptions) -> Option<Self> {
        let [q, k, v] = [Heads::of(q)?, Heads::of(k)?, Heads::of(v)?];
        let fits = takes(q.head_dim as i64);
        let window = options.sliding_window.map_or(usize::MAX, |window| usize::try_from(window).unwrap_or(1));
        fits.then_some(Self { q, k, v, scale: options.scale as f32, window })
    }

    /// Numbers of a copy of a head of keys or values of `tokens` tokens.
    fn copy_size(&self, tokens: usize) -> usize {
        tokens.next_multiple_of(panel::WIDTH) * self.q.head_dim
    }

    /// Sums and products of one product of all queries with the keys that they may see.
    fn work(&self, tasks: &[Task]) -> usize {
        let pairs = |task: &Task| task.tokens.len() * task.tokens.len().min(self.window) * task.heads.len();
        tasks.iter().map(pairs).sum::<usize>() * self.q.head_dim
    }
}

/// What one thread does in one go.
#[derive(Clone, Debug)]
struct Task {
    tokens: Range<usize>,
    kv_head: usize,
    /// Heads of queries.
    heads: Range<usize>,
}

/// The tasks, the longest first, and in an order that depends on the shapes alone.
fn tasks(segments: &[Segment], heads: usize, kv_heads: usize) -> Vec<Task> {
    let group = heads / kv_heads;
    let mut tasks = Vec::new();
    for segment in segments {
        let tokens = segment.rows.start as usize..segment.rows.end as usize;
        let together = if tokens.len() > LONG { 1 } else { group };
        for first in (0..heads).step_by(together).filter(|_| !tokens.is_empty()) {
            let heads = first..first + together;
            tasks.push(Task { tokens: tokens.clone(), kv_head: first / group, heads });
        }
    }
    tasks.sort_by_key(|task| std::cmp::Reverse(task.tokens.len() * task.heads.len()));
    tasks
}

/// Whether there are loops for this processor and heads of this size.
pub(crate) fn takes(head_dim: i64) -> bool {
    let fits = usize::try_from(head_dim).is_ok_and(|size| size.is_multiple_of(LANES) && size <= panel::DEPTH);
    fits && level().is_some()
}

/// The attention of the segments, `[tokens, heads, head_dim]`, and the log-sum-exp of each query's scores, `[heads, tokens]`.
pub(crate) fn forward(
    qkv: [&Tensor; 3],
    segments: &[Segment],
    options: AttentionOptions,
) -> Result<Option<[Tensor; 2]>> {
    level().map_or(Ok(None), |level| forward_at(level, qkv, segments, options))
}

fn forward_at(
    level: Level,
    qkv: [&Tensor; 3],
    segments: &[Segment],
    options: AttentionOptions,
) -> Result<Option<[Tensor; 2]>> {
    let Some(inputs) = Inputs::of(qkv, options) else { return Ok(None) };
    let on_cpu = (Kind::Float, Device::Cpu);
    let output = Tensor::f_empty(qkv[0].size(), on_cpu)?;
    let log_sum_exp = Tensor::f_empty([inputs.q.heads as i64, inputs.q.tokens as i64], on_cpu)?;
    let (Some(target), Some(lse)) = (Heads::of(&output), Heads::of(&log_sum_exp.f_unsqueeze(2)?)) else {
        return Ok(None);
    };
    let job = forward::Forward { inputs, output: target, lse: Some(lse) };
    let tasks = tasks(segments, inputs.q.heads, inputs.k.heads);
    in_parallel(tasks.len(), inputs.work(&tasks), |index| {
        let task = &tasks[index];
        panel::with_scratch(inputs.copy_size(task.tokens.len()) + QUERIES * KEYS, |scratch| {
            // SAFETY: the level's instructions are there; tasks have tokens and heads of the inputs, and write those of their own.
            unsafe {
                match level {
                    Level::Avx512 => forward_avx512(&job, task, scratch),
                    Level::Avx2 => forward_avx2(&job, task, scratch),
                }
            }
        });
    });
    Ok(Some([output, log_sum_exp]))
}

/// Writes the gradients of queries, keys and values from that of the output, the output and the log-sum-exp; `false` where [`forward`] would have given nothing.
pub(crate) fn backward(
    qkv: [&Tensor; 3],
    of_forward: [&Tensor; 3],
    results: &[Tensor; 3],
    segments: &[Segment],
    options: AttentionOptions,
) -> Result<bool> {
    level().map_or(Ok(false), |level| backward_at(level, qkv, of_forward, results, segments, options))
}

fn backward_at(
    level: Level,
    qkv: [&Tensor; 3],
    [grad, output, log_sum_exp]: [&Tensor; 3],
    results: &[Tensor; 3],
    segments: &[Segment],
    options: AttentionOptions,
) -> Result<bool> {
    let Some(inputs) = Inputs::of(qkv, options) else { return Ok(false) };
    // Of a sum, for one, all gradients may be one number.
    let grad = if Heads::of(grad).is_some() { grad.shallow_clone() } else { grad.f_contiguous()? };
    let [grad_q, grad_k, grad_v] = results.each_ref().map(Heads::of);
    let (Some(grad_q), Some(grad_k), Some(grad_v)) = (grad_q, grad_k, grad_v) else { return Ok(false) };
    let log_sum_exp = log_sum_exp.f_unsqueeze(2)?;
    let (Some(grad), Some(output), Some(lse)) =
        (Heads::of(&grad), Heads::of(output), Heads::of(&log_sum_exp))
    else {
        return Ok(false);
    };
    let tasks = tasks(segments, inputs.q.heads, inputs.k.heads);
    // A task that has some of the queries of a head of keys has a place of its own for their part of the gradients.
    let group = inputs.q.heads / inputs.k.heads;
    let shared = tasks.iter().any(|task| task.heads.len() < group);
    let parts = if shared { Some([grad_parts(qkv[0])?, grad_parts(qkv[0])?]) } else { None };
    let [k_parts, v_parts] = match &parts {
        None => [grad_k, grad_v],
        Some([k, v]) => match (Heads::of(k), Heads::of(v)) {
            (Some(k), Some(v)) => [k, v],
            _ => return Ok(false),
        },
    };
    let place = |task: &Task| if shared { task.heads.start } else { task.kv_head };
    let job = backward::Backward { inputs, grad, output, lse, grad_q, grad_k: k_parts, grad_v: v_parts };
    in_parallel(tasks.len(), inputs.work(&tasks), |index| {
        let task = &tasks[index];
        let copies = 2 * inputs.copy_size(task.tokens.len());
        panel::with_scratch(copies + 2 * QUERIES * KEYS + QUERIES, |scratch| {
            // SAFETY: as in `forward`.
            unsafe {
                match level {
                    Level::Avx512 => backward_avx512(&job, task, place(task), scratch),
                    Level::Avx2 => backward_avx2(&job, task, place(task), scratch),
                }
            }
        });
    });
    if let Some(parts) = parts {
        for (part, result) in parts.iter().zip(&results[1..]) {
            sum_of_parts(part, result, &tasks, group)?;
        }
    }
    Ok(true)
}

/// Room for a gradient of keys or values of each head of queries.
fn grad_parts(q: &Tensor) -> Result<Tensor> {
    Ok(Tensor::f_empty(q.size(), (Kind::Float, Device::Cpu))?)
}

/// Adds up what the tasks of each head of keys have written.
fn sum_of_parts(parts: &Tensor, result: &Tensor, tasks: &[Task], group: usize) -> Result<()> {
    for task in tasks.iter().filter(|task| task.heads.start % group == 0) {
        let (first, tokens) = (task.tokens.start as i64, task.tokens.len() as i64);
        let written = if task.heads.len() == group { 1 } else { group as i64 };
        let parts = parts.f_narrow(0, first, tokens)?.f_narrow(1, task.heads.start as i64, written)?;
        let mut result = result.f_narrow(0, first, tokens)?.f_select(1, task.kv_head as i64)?;
        result.f_copy_(&parts.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Float)?)?;
    }
    Ok(())
}

// SAFETY, for the four below: as the functions that they call; the instructions are enabled here.

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn forward_avx512(job: &forward::Forward, task: &Task, scratch: &mut [f32]) {
    unsafe { job.run::<x86_64::__m512>(task, scratch) };
}

#[target_feature(enable = "avx2,fma")]
unsafe fn forward_avx2(job: &forward::Forward, task: &Task, scratch: &mut [f32]) {
    unsafe { job.run::<x86_64::__m256>(task, scratch) };
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn backward_avx512(job: &backward::Backward, task: &Task, place: usize, scratch: &mut [f32]) {
    unsafe { job.run::<x86_64::__m512>(task, place, scratch) };
}

#[target_feature(enable = "avx2,fma")]
unsafe fn backward_avx2(job: &backward::Backward, task: &Task, place: usize, scratch: &mut [f32]) {
    unsafe { job.run::<x86_64::__m256>(task, place, scratch) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cpu::{assert_close, noise},
        layout::SequenceLayout,
    };

    /// The same by a matrix of scores for each sequence, in double precision.
    fn plain([q, k, v]: [&Tensor; 3], borders: &[i64], options: AttentionOptions) -> Tensor {
        let group = q.size()[1] / k.size()[1];
        let sequences: Vec<Tensor> = borders
            .windows(2)
            .map(|border| {
                let tokens = border[1] - border[0];
                let of = |x: &Tensor| x.narrow(0, border[0], tokens).transpose(0, 1);
                let of_keys = |x: &Tensor| of(x).repeat_interleave_self_int(group, 0, None);
                let scores = of(q).matmul(&of_keys(k).transpose(1, 2)) * options.scale;
                let ones = Tensor::ones([tokens, tokens], (Kind::Bool, Device::Cpu));
                let window = options.sliding_window.unwrap_or(tokens);
                let hidden = ones.triu(1).logical_or(&ones.tril(-window));
                let weights = scores.masked_fill(&hidden, f64::NEG_INFINITY).softmax(-1, Kind::Double);
                weights.matmul(&of_keys(v)).transpose(0, 1)
            })
            .collect();
        Tensor::cat(&sequences, 0)
    }

    #[test]
    fn values_and_gradients_are_those_of_a_score_matrix_at_every_level() {
        for (borders, [heads, kv_heads, head_dim], sliding_window) in [
            (vec![0, 1, 50, 98, 99, 300], [6, 2, 16], None),
            (vec![0, 65], [2, 2, 64], None),
            (vec![0, 7, 456], [2, 1, 80], Some(100)),
            (vec![0, 130, 200], [4, 2, 48], Some(2)),
            // Long enough for a head of queries to be a task of its own, beside one that is not.
            (vec![0, 40, 900], [4, 2, 32], None),
            (vec![0, 820, 830], [3, 1, 16], Some(390)),
        ] {
            let layout = SequenceLayout::from_cu_seqlens(&borders).unwrap();
            let options = AttentionOptions { scale: 0.3, sliding_window };
            // Heads of queries, keys and values of a token side by side.
            let of = |seed| noise(seed, &[layout.total_tokens(), heads + 2 * kv_heads, head_dim]) * 2.0;
            let parts = |x: &Tensor| {
                [(0, heads), (heads, kv_heads), (heads + kv_heads, kv_heads)]
                    .map(|(first, count)| x.narrow(1, first, count))
            };
            let qkv = of(1);
            let grad = noise(2, &[layout.total_tokens(), heads, head_dim]);
            let leaf = qkv.to_kind(Kind::Double).set_requires_grad(true);
            let expected = plain(parts(&leaf).each_ref(), &borders, options);
            let expected_grad = Tensor::run_backward(
                &[(&expected * grad.to_kind(Kind::Double)).sum(Kind::Double)],
                &[&leaf],
                false,
                false,
            );
            for level in Level::available() {
                let parts_of_inputs = parts(&qkv);
                let [output, lse] = forward_at(level, parts_of_inputs.each_ref(), layout.segments(), options)
                    .unwrap()
                    .unwrap();
                assert_close(&output.to_kind(Kind::Double), &expected.detach(), 1e-6);
                let result = Tensor::full(qkv.size(), f64::NAN, (Kind::Float, Device::Cpu));
                let inputs = [&grad, &output, &lse];
                let results = parts(&result);
                let q_k_v = parts_of_inputs.each_ref();
                assert!(backward_at(level, q_k_v, inputs, &results, layout.segments(), options).unwrap());
                for (found, expected) in parts(&result).iter().zip(parts(&expected_grad[0])) {
                    assert_close(&found.to_kind(Kind::Double), &expected, 2e-6);
                }
            }
        }
    }

    #[test]
    fn no_number_of_threads_changes_a_bit() {
        let layout = SequenceLayout::from_cu_seqlens(&[0, 100, 700]).unwrap();
        let options = AttentionOptions { scale: 0.3, sliding_window: None };
        let [q, k, v, grad] =
            [(1, 4), (2, 2), (3, 2), (4, 4)].map(|(seed, heads)| noise(seed, &[700, heads, 16]));
        let of = |threads| {
            tch::set_num_threads(threads);
            let [output, lse] = forward([&q, &k, &v], layout.segments(), options).unwrap().unwrap();
            let results = [&q, &k, &v].map(Tensor::empty_like);
            let inputs = [&grad, &output, &lse];
            assert!(backward([&q, &k, &v], inputs, &results, layout.segments(), options).unwrap());
            (output, results)
        };
        assert_eq!(of(1), of(3));
    }

    #[test]
    fn what_it_is_not_made_for_is_left_to_libtorch() {
        let layout = SequenceLayout::from_cu_seqlens(&[0, 5]).unwrap();
        let options = AttentionOptions { scale: 0.3, sliding_window: None };
        for x in [
            noise(1, &[5, 2, 24]),
            noise(1, &[5, 2, 16]).to_kind(Kind::Double),
            noise(1, &[5, 2, 32]).slice(2, 0, 32, 2),
        ] {
            assert!(forward([&x, &x, &x], layout.segments(), options).unwrap().is_none());
        }
    }
}
