//! Products in 16 bits, and attention between them, beside the same functions in f32 on the same numbers.

use super::{noise, relative};
use ferrotune_kernels::{
    AttentionOptions, FrozenWeight, GroupMember, LowRank, Mode, Prologue, RandomKey, SequenceLayout,
    frozen_linear, grouped_lora_linear, linear_cross_entropy, lora_linear, rotary_attention,
};
use tch::{Kind, Tensor};

/// Kinds, and the distance from f32 that rounding explains.
const KINDS: [(Kind, f64); 2] = [(Kind::BFloat16, 1e-2), (Kind::Half, 1.5e-3)];

/// Compares the value and every gradient of `function` in `kind` with those in f32, from the same rounded leaves.
fn compare(kind: Kind, tolerance: f64, shapes: &[&[i64]], function: impl Fn(&[Tensor], Kind) -> Tensor) {
    let run = |kind_of_run: Kind| {
        let rounded = |(seed, shape): (usize, &&[i64])| noise(seed as u64 + 1, shape).to_kind(kind);
        let leaves: Vec<Tensor> = (shapes.iter().enumerate())
            .map(|leaf| rounded(leaf).to_kind(kind_of_run).set_requires_grad(true))
            .collect();
        let y = function(&leaves, kind_of_run);
        (y.to_kind(Kind::Float) * noise(99, &y.size())).sum(Kind::Float).backward();
        let gradients: Vec<Tensor> = leaves.iter().map(|leaf| leaf.grad().to_kind(Kind::Float)).collect();
        (y.detach().to_kind(Kind::Float), gradients)
    };
    let ((y, gradients), (expected, expected_gradients)) = (run(kind), run(Kind::Float));
    let error = relative(&y, &expected);
    assert!(error < tolerance, "{kind:?}, value: {error}");
    for (index, (gradient, expected)) in gradients.iter().zip(&expected_gradients).enumerate() {
        let error = relative(gradient, expected);
        assert!(error < tolerance, "{kind:?}, gradient {index}: {error}");
    }
}

#[test]
fn low_rank_updates_have_the_values_and_gradients_of_f32_whatever_the_number_of_rows() {
    for (kind, tolerance) in KINDS {
        for (rows, dropout) in [(1, 0.0), (32, 0.0), (37, 0.0), (37, 0.25), (130, 0.0)] {
            let members_of = |leaves: &[Tensor]| -> Vec<(i64, Option<[Tensor; 2]>)> {
                let pair = |at: usize| Some([leaves[at].shallow_clone(), leaves[at + 1].shallow_clone()]);
                vec![(5, pair(1)), (6, None), (3, pair(3))]
            };
            compare(kind, tolerance, &[&[rows, 14], &[2, 7], &[5, 2], &[3, 7], &[3, 3]], |leaves, kind| {
                let weight = FrozenWeight::new(&noise(50, &[14, 7]).to_kind(kind)).unwrap();
                let bias = noise(51, &[14]).to_kind(kind);
                let pairs = members_of(leaves);
                let members: Vec<GroupMember> = (pairs.iter().zip(0..))
                    .map(|((out_features, pair), layer)| GroupMember {
                        out_features: *out_features,
                        update: (pair.as_ref()).map(|[a, b]| LowRank { a, b, scaling: 1.5, dropout, layer }),
                    })
                    .collect();
                let mode = Mode::Train(RandomKey::from_seed(7));
                let (gate, bias) = (Prologue::SwiGlu, Some(&bias));
                grouped_lora_linear(&leaves[0], gate, &weight, bias, &members, mode).unwrap()
            });
        }
    }
}

#[test]
fn the_loss_of_targets_has_the_gradient_of_f32() {
    for (kind, tolerance) in KINDS {
        let ids = Tensor::from_slice(&(0..45).map(|row| row % 11).collect::<Vec<i64>>());
        compare(kind, tolerance, &[&[45, 7]], |leaves, kind| {
            let weight = FrozenWeight::new(&noise(50, &[11, 7]).to_kind(kind)).unwrap();
            linear_cross_entropy(&leaves[0], &weight, &ids).unwrap()
        });
    }
}

#[test]
fn attention_has_the_values_and_gradients_of_f32() {
    let layout = SequenceLayout::from_cu_seqlens(&[0, 40, 41, 77]).unwrap();
    // Of our own kernel, and of libtorch's.
    for (head_dim, window) in [(16, None), (16, Some(5)), (6, None)] {
        let angle = noise(60, &[77, head_dim / 2]) * 3.0;
        let options = AttentionOptions { scale: 0.5, sliding_window: window };
        for (kind, tolerance) in KINDS {
            compare(kind, tolerance, &[&[77, 8, head_dim]], |leaves, _| {
                let (cos, sin) = (angle.cos(), angle.sin());
                rotary_attention(&leaves[0], 2, &cos, &sin, &layout, options).unwrap()
            });
        }
    }
}

#[test]
fn results_may_be_changed_in_place() {
    for kind in [Kind::Float, Kind::BFloat16] {
        compare(kind, 1e-2, &[&[37, 7], &[2, 7], &[5, 2]], |leaves, kind| {
            let weight = FrozenWeight::new(&noise(50, &[5, 7]).to_kind(kind)).unwrap();
            let update = LowRank { a: &leaves[1], b: &leaves[2], scaling: 1.5, dropout: 0.0, layer: 0 };
            let mut y = lora_linear(&leaves[0], &weight, None, Some(update), Mode::Eval).unwrap();
            let mut frozen = frozen_linear(&leaves[0], &weight, None).unwrap();
            y.sigmoid_() + frozen.sigmoid_()
        });
    }
}
