//! Attention over packed sequences.

use super::{compare, noise};
use ferrotune_kernels::{AttentionOptions, Error, SequenceLayout, causal_attention, rotary_attention};
use tch::{Device, Kind, Tensor};

/// Attention by the formula: one score matrix a sequence and head.
fn plain_attention(q: &Tensor, k: &Tensor, v: &Tensor, borders: &[i64], scale: f64, window: i64) -> Tensor {
    let group = q.size()[1] / k.size()[1];
    let sequences: Vec<Tensor> = borders
        .windows(2)
        .map(|border| {
            let length = border[1] - border[0];
            let of = |x: &Tensor| x.narrow(0, border[0], length).transpose(0, 1); // [heads, tokens, head_dim]
            let repeat = |x: Tensor| x.repeat_interleave_self_int(group, 0, None);
            let (q, k, v) = (of(q), repeat(of(k)), repeat(of(v)));
            let position = Tensor::arange(length, (Kind::Int64, Device::Cpu));
            let distance = position.unsqueeze(1) - position.unsqueeze(0);
            let hidden = distance.lt(0).logical_or(&distance.ge(window));
            let scores = (q.matmul(&k.transpose(1, 2)) * scale).masked_fill(&hidden, f64::NEG_INFINITY);
            scores.softmax(-1, Kind::Float).matmul(&v).transpose(0, 1)
        })
        .collect();
    Tensor::cat(&sequences, 0)
}

#[test]
fn packed_attention_equals_a_score_matrix_for_each_sequence() {
    let borders = [0, 9, 10, 17];
    let layout = SequenceLayout::from_cu_seqlens(&borders).unwrap();
    for (kv_heads, window) in [(6, None), (2, None), (1, None), (2, Some(4)), (3, Some(2)), (2, Some(100))] {
        let options = AttentionOptions { scale: 0.7, sliding_window: window };
        compare(
            &[&[17, 6, 8], &[17, kv_heads, 8], &[17, kv_heads, 8]],
            |leaves| causal_attention(&leaves[0], &leaves[1], &leaves[2], &layout, options).unwrap(),
            |leaves| {
                plain_attention(&leaves[0], &leaves[1], &leaves[2], &borders, 0.7, window.unwrap_or(i64::MAX))
            },
        );
    }
}

#[test]
fn windows_over_many_blocks_equal_a_score_matrix_for_each_sequence() {
    let borders = [0, 700, 701, 830, 1345];
    let layout = SequenceLayout::from_cu_seqlens(&borders).unwrap();
    for (kv_heads, window) in [(1, 2), (2, 50), (1, 129), (2, 600), (1, 700), (2, 9999)] {
        let options = AttentionOptions { scale: 0.7, sliding_window: Some(window) };
        compare(
            &[&[1345, 2, 4], &[1345, kv_heads, 4], &[1345, kv_heads, 4]],
            |leaves| causal_attention(&leaves[0], &leaves[1], &leaves[2], &layout, options).unwrap(),
            |leaves| plain_attention(&leaves[0], &leaves[1], &leaves[2], &borders, 0.7, window),
        );
    }
}

#[test]
fn a_window_below_one_is_refused() {
    let x = noise(1, &[3, 2, 4]);
    let options = AttentionOptions { scale: 1.0, sliding_window: Some(0) };
    let layout = SequenceLayout::from_cu_seqlens(&[0, 3]).unwrap();
    let refused = |result: ferrotune_kernels::Result<Tensor>| {
        matches!(result, Err(Error::InvalidOption { option: "sliding_window", .. }))
    };
    assert!(refused(causal_attention(&x, &x, &x, &layout, options)));
}

#[test]
fn attention_reads_columns_of_a_wider_tensor() {
    let layout = SequenceLayout::from_cu_seqlens(&[0, 4, 7]).unwrap();
    let options = AttentionOptions { scale: 0.5, sliding_window: None };
    compare(
        &[&[7, 8, 6]],
        |leaves| {
            let parts = leaves[0].split_with_sizes([4, 2, 2], 1);
            causal_attention(&parts[0], &parts[1], &parts[2], &layout, options).unwrap()
        },
        |leaves| {
            let parts = leaves[0].split_with_sizes([4, 2, 2], 1);
            plain_attention(&parts[0], &parts[1], &parts[2], &[0, 4, 7], 0.5, i64::MAX)
        },
    );
}

#[test]
fn rotary_attention_rotates_queries_and_keys_and_leaves_values() {
    let borders = [0, 4, 5, 12];
    let layout = SequenceLayout::from_cu_seqlens(&borders).unwrap();
    let angle = noise(60, &[12, 4]) * 3.0;
    let (cos, sin) = (angle.cos(), angle.sin());
    for (heads, kv_heads, window) in [(4, 2, None), (3, 3, None), (4, 1, Some(3))] {
        let options = AttentionOptions { scale: 0.5, sliding_window: window };
        compare(
            &[&[12, heads + 2 * kv_heads, 8]],
            |leaves| rotary_attention(&leaves[0], kv_heads, &cos, &sin, &layout, options).unwrap(),
            |leaves| {
                let parts = leaves[0].split_with_sizes([heads, kv_heads, kv_heads], 1);
                let rotate = |x: &Tensor| {
                    let halves = x.chunk(2, 2);
                    let (cos, sin) = (cos.unsqueeze(1), sin.unsqueeze(1));
                    let first = &halves[0] * &cos - &halves[1] * &sin;
                    Tensor::cat(&[first, &halves[1] * &cos + &halves[0] * &sin], 2)
                };
                let (q, k) = (rotate(&parts[0]), rotate(&parts[1]));
                plain_attention(&q, &k, &parts[2], &borders, 0.5, window.unwrap_or(i64::MAX))
            },
        );
    }
}
