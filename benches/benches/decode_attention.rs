//! One step of generation: eight sequences bring one token each to a cache of keys and values, beside the same in libtorch's
//! operators.
//!
//! `ours` is [`CachedAttention`]: rotation, the new rows of the cache, attention.

#![allow(clippy::unwrap_used, reason = "a benchmark stops at the first error")]

use ferrotune_benches::model::{HEAD_DIM, HEADS, KV_HEADS};
use ferrotune_benches::{Comparison, Suite, activations, libtorch_rotary, rotary_tables};
use ferrotune_kernels::{AttentionOptions, CachedAttention, SequenceLayout};
use std::cell::RefCell;
use std::ops::Range;
use tch::{Device, Tensor};

const SEQUENCES: i64 = 8;

fn main() {
    Suite::run("decode_attention", |suite| {
        for past in [128, 1024] {
            decode(suite, past);
        }
    });
}

fn decode(suite: &mut Suite, past: i64) {
    let room = past + 1;
    let layout = SequenceLayout::continuing(&[(1, past); SEQUENCES as usize]).unwrap();
    let rows: Vec<Vec<Range<i64>>> =
        (0..SEQUENCES).map(|at| std::iter::once(at * room..(at + 1) * room).collect()).collect();
    let scale = (HEAD_DIM as f64).powf(-0.5);
    let options = AttentionOptions { scale, sliding_window: None };
    let attention = CachedAttention::new(&layout, &rows, options, Device::Cpu).unwrap();
    let qkv = activations(&[SEQUENCES, HEADS + 2 * KV_HEADS, HEAD_DIM]);
    let (cos, sin) = rotary_tables(room);
    let [cos, sin] = [cos, sin].map(|table| table.narrow(0, past, 1).repeat([SEQUENCES, 1]));
    let cache = RefCell::new(activations(&[SEQUENCES * room, 2 * KV_HEADS, HEAD_DIM]));

    let ours = || vec![attention.forward(&qkv, &cos, &sin, &mut cache.borrow_mut()).unwrap()];
    let libtorch = || {
        let rotated = libtorch_rotary(&qkv.narrow(1, 0, HEADS + KV_HEADS), &cos, &sin);
        let (q, k) = (rotated.narrow(1, 0, HEADS), rotated.narrow(1, HEADS, KV_HEADS));
        let v = qkv.narrow(1, HEADS + KV_HEADS, KV_HEADS);
        // All sequences are equally long: one call serves them, which is the best that libtorch can do.
        let cache = cache.borrow().view([SEQUENCES, room, 2 * KV_HEADS, HEAD_DIM]);
        cache.select(1, past).copy_(&Tensor::cat(&[&k, &v], 1));
        let [keys, values] = [0, KV_HEADS].map(|first| cache.narrow(2, first, KV_HEADS).transpose(1, 2));
        let y = Tensor::scaled_dot_product_attention(
            &q.unsqueeze(2),
            &keys,
            &values,
            None::<&Tensor>,
            0.0,
            false,
            scale,
            true,
        );
        vec![y.squeeze_dim(2)]
    };
    let flops = (4 * SEQUENCES * room * HEADS * HEAD_DIM) as u64;
    suite.compare(
        Comparison { pass: "step", shape: &format!("{SEQUENCES}x{past}"), elements: flops },
        &ours,
        &libtorch,
    );
}
