//! Causal attention of packed sequences, beside libtorch's, sequence by sequence.
//!
//! Nine query heads on three key heads. `packed` are four sequences in one batch, `long` is one; with a window, libtorch is told by a
//! mask who sees whom.

#![allow(clippy::unwrap_used, reason = "a benchmark stops at the first error")]

use ferrotune_benches::model::{HEAD_DIM, HEADS, KV_HEADS};
use ferrotune_benches::{Comparison, Suite, activations, gradients};
use ferrotune_kernels::{AttentionOptions, SequenceLayout, causal_attention};
use tch::{Device, Kind, Tensor};

fn main() {
    Suite::run("attention", |suite| {
        attention(suite, "packed_620", &[0, 90, 230, 420, 620], None);
        attention(suite, "long_2048", &[0, 2048], None);
        attention(suite, "long_2048_window_256", &[0, 2048], Some(256));
    });
}

fn attention(suite: &mut Suite, shape: &str, borders: &[i64], sliding_window: Option<i64>) {
    let layout = SequenceLayout::from_cu_seqlens(borders).unwrap();
    let tokens = layout.total_tokens();
    let [q, k, v] = [HEADS, KV_HEADS, KV_HEADS]
        .map(|heads| activations(&[tokens, heads, HEAD_DIM]).set_requires_grad(true));
    let grad = activations(&[tokens, HEADS, HEAD_DIM]);
    let scale = (HEAD_DIM as f64).powf(-0.5);
    let options = AttentionOptions { scale, sliding_window };
    let masks: Vec<Option<Tensor>> = layout
        .segments()
        .iter()
        .map(|segment| sliding_window.map(|window| mask(segment.len(), window)))
        .collect();

    let ours = || causal_attention(&q, &k, &v, &layout, options).unwrap();
    let libtorch = || {
        let sequences: Vec<Tensor> = layout
            .segments()
            .iter()
            .zip(&masks)
            .map(|(segment, mask)| {
                let [q, k, v] = [&q, &k, &v]
                    .map(|it| it.narrow(0, segment.rows.start, segment.len()).transpose(0, 1).unsqueeze(0));
                let y = Tensor::scaled_dot_product_attention(
                    &q,
                    &k,
                    &v,
                    mask.as_ref(),
                    0.0,
                    mask.is_none(),
                    scale,
                    true,
                );
                y.squeeze_dim(0).transpose(0, 1)
            })
            .collect();
        Tensor::cat(&sequences, 0)
    };

    // Two products forward and five backward, which forms the scores again, of every query with the keys that it sees.
    let pairs: i64 = layout
        .position_ids()
        .iter()
        .map(|position| (position + 1).min(sliding_window.unwrap_or(i64::MAX)))
        .sum();
    let product = (2 * pairs * HEADS * HEAD_DIM) as u64;
    let all = [&q, &k, &v];
    suite.compare(Comparison { pass: "forward", shape, elements: 2 * product }, &|| vec![ours()], &|| {
        vec![libtorch()]
    });
    suite.compare(
        Comparison { pass: "forward_backward", shape, elements: 7 * product },
        &|| gradients(&ours(), &grad, &all),
        &|| gradients(&libtorch(), &grad, &all),
    );
}

/// Who sees whom: `[tokens, tokens]`, true where `0 <= i - j < window`.
fn mask(tokens: i64, window: i64) -> Tensor {
    Tensor::ones([tokens, tokens], (Kind::Bool, Device::Cpu)).tril(0).triu(1 - window)
}
