//! Every fused function against the plain formula in libtorch's own operators: values and all gradients.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // also in the helpers of tests

mod attention;
mod in_16_bits;

use ferrotune_kernels::{
    AttentionOptions, CrossEntropyOptions, Error, FrozenWeight, GroupMember, LowRank, Mode, Prologue,
    RandomKey, SequenceLayout, add_rms_norm, causal_attention, frozen_linear, grouped_lora_linear,
    linear_cross_entropy, linear_cross_entropy_with, lora_linear, rms_norm, rotary, swiglu,
};
use tch::{Device, Kind, Tensor};

/// A tensor of reproducible noise.
fn noise(seed: u64, shape: &[i64]) -> Tensor {
    let numbers = RandomKey::from_seed(seed).uniform(shape.iter().product::<i64>() as usize);
    (Tensor::from_slice(&numbers) * 2.0 - 1.0).reshape(shape)
}

fn leaf(seed: u64, shape: &[i64]) -> Tensor {
    noise(seed, shape).set_requires_grad(true)
}

fn relative(ours: &Tensor, reference: &Tensor) -> f64 {
    assert_eq!(ours.size(), reference.size());
    ((ours - reference).norm() / reference.norm()).double_value(&[])
}

/// Runs both on fresh leaves of the given shapes and compares the value and every gradient of `sum(y * noise)`.
fn compare(shapes: &[&[i64]], ours: impl Fn(&[Tensor]) -> Tensor, plain: impl Fn(&[Tensor]) -> Tensor) {
    let run = |function: &dyn Fn(&[Tensor]) -> Tensor| {
        let leaves: Vec<Tensor> =
            shapes.iter().enumerate().map(|(i, shape)| leaf(i as u64 + 1, shape)).collect();
        let y = function(&leaves);
        (&y * noise(99, &y.size())).sum(Kind::Float).backward();
        (y.detach(), leaves.into_iter().map(|leaf| leaf.grad()).collect::<Vec<_>>())
    };
    let (y, gradients) = run(&ours);
    let (expected, expected_gradients) = run(&plain);
    assert!(relative(&y, &expected) < 1e-6, "value: {}", relative(&y, &expected));
    for (index, (gradient, expected)) in gradients.iter().zip(&expected_gradients).enumerate() {
        assert!(expected.norm().double_value(&[]) > 0.0);
        let error = relative(gradient, expected);
        assert!(error < 2e-6, "gradient {index}: {error}");
    }
}

#[test]
fn frozen_linear_has_the_gradient_of_its_input_alone() {
    let weight = leaf(50, &[5, 7]);
    let bias = leaf(51, &[5]);
    let frozen = FrozenWeight::new(&weight).unwrap();
    compare(
        &[&[2, 3, 7]],
        |leaves| frozen_linear(&leaves[0], &frozen, Some(&bias)).unwrap(),
        |leaves| leaves[0].linear(&weight.detach(), Some(&bias.detach())),
    );
    assert!(!weight.grad().defined() && !bias.grad().defined());
}

#[test]
fn lora_linear_is_the_three_product_formula() {
    // Sizes that fill no register, and sizes for the loops of narrow products.
    for [tokens, in_features, out_features, rank] in [[11, 7, 5, 3], [150, 32, 48, 16]] {
        let (weight, bias) = (noise(50, &[out_features, in_features]), noise(51, &[out_features]));
        let frozen = FrozenWeight::new(&weight).unwrap();
        compare(
            &[&[tokens, in_features], &[rank, in_features], &[out_features, rank]],
            |leaves| {
                let update = LowRank { a: &leaves[1], b: &leaves[2], scaling: 2.5, dropout: 0.3, layer: 0 };
                lora_linear(&leaves[0], &frozen, Some(&bias), Some(update), Mode::Eval).unwrap()
            },
            |leaves| {
                leaves[0].linear(&weight, Some(&bias))
                    + leaves[0].matmul(&leaves[1].tr()).matmul(&leaves[2].tr()) * 2.5
            },
        );
    }
}

#[test]
fn a_group_equals_its_members_apart() {
    group(11, 7, [5, 2, 4], [3, 2], Kind::Float);
    // For the loops of narrow products: both, and one of them.
    group(150, 32, [48, 5, 64], [16, 32], Kind::Float);
    group(150, 32, [48, 5, 64], [16, 3], Kind::Float);
    // Large enough for the kinds of products that copy their factors.
    group(67, 71, [45, 20, 33], [3, 2], Kind::Float);
    // Weights as they come from files: numbers of bf16, and of more bits than those.
    group(67, 71, [45, 20, 33], [3, 2], Kind::BFloat16);
    group(67, 71, [45, 20, 33], [3, 2], Kind::Half);
}

/// What dropout multiplies the input of a layer by.
fn mask(tokens: i64, in_features: i64, dropout: f64, layer: u64, mode: Mode) -> Tensor {
    let kind = (Kind::Float, Device::Cpu);
    let frozen = FrozenWeight::new(&Tensor::zeros([in_features, in_features], kind)).unwrap();
    let eye = Tensor::eye(in_features, kind);
    let update = LowRank { a: &eye, b: &eye, scaling: 1.0, dropout, layer };
    lora_linear(&Tensor::ones([tokens, in_features], kind), &frozen, None, Some(update), mode).unwrap()
}

/// Three layers on one input, the first and the last with updates, without dropout and with it in either; the weights' numbers are those
/// of a kind.
fn group(tokens: i64, in_features: i64, out_features: [i64; 3], ranks: [i64; 2], numbers: Kind) {
    let [rank, other] = ranks;
    let [first, second, third] = [0, 1, 2].map(|index| {
        let weight = noise(50 + index, &[out_features[index as usize], in_features]);
        weight.to_kind(numbers).to_kind(Kind::Float)
    });
    let frozen = FrozenWeight::stacked(&[&first, &second, &third]).unwrap();
    let [one, two, three] = out_features;
    let mode = Mode::Train(RandomKey::from_seed(3));
    for dropout in [[0.0, 0.0], [0.25, 0.0], [0.0, 0.25]] {
        let masks = [0, 1].map(|index| mask(tokens, in_features, dropout[index], 4 + index as u64, mode));
        compare(
            &[
                &[tokens, in_features],
                &[rank, in_features],
                &[one, rank],
                &[other, in_features],
                &[three, other],
            ],
            |leaves| {
                let update = |a, b, scaling, dropout, layer| Some(LowRank { a, b, scaling, dropout, layer });
                let members = [
                    GroupMember {
                        out_features: one,
                        update: update(&leaves[1], &leaves[2], 2.5, dropout[0], 4),
                    },
                    GroupMember { out_features: two, update: None },
                    GroupMember {
                        out_features: three,
                        update: update(&leaves[3], &leaves[4], 0.5, dropout[1], 5),
                    },
                ];
                grouped_lora_linear(&leaves[0], Prologue::None, &frozen, None, &members, mode).unwrap()
            },
            |leaves| {
                let x = &leaves[0];
                let update =
                    |mask: &Tensor, a: &Tensor, b: &Tensor| (x * mask).matmul(&a.tr()).matmul(&b.tr());
                Tensor::cat(
                    &[
                        x.matmul(&first.tr()) + update(&masks[0], &leaves[1], &leaves[2]) * 2.5,
                        x.matmul(&second.tr()),
                        x.matmul(&third.tr()) + update(&masks[1], &leaves[3], &leaves[4]) * 0.5,
                    ],
                    1,
                )
            },
        );
    }
}

#[test]
fn dropout_scales_drops_and_draws_the_same_mask_in_backward() {
    let frozen = FrozenWeight::new(&Tensor::zeros([8, 4000], (Kind::Float, Device::Cpu))).unwrap();
    let key = RandomKey::from_seed(3);
    let b = Tensor::eye(8, (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let run = |layer: u64, mode| {
        // A selects single inputs through ones, so that y counts what was kept.
        let a = Tensor::ones([8, 4000], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let x = Tensor::ones([2, 4000], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let update = LowRank { a: &a, b: &b, scaling: 1.0, dropout: 0.25, layer };
        let y = lora_linear(&x, &frozen, None, Some(update), mode).unwrap();
        y.sum(Kind::Float).backward();
        (y.detach(), x.grad(), a.grad())
    };
    let (y, grad_x, grad_a) = run(0, Mode::Train(key));
    let kept = grad_x.gt(0.0).sum(Kind::Float).double_value(&[]) / 8000.0;
    assert!((kept - 0.75).abs() < 0.02, "{kept}");
    // y, dx and dA see one mask: y = sum of the mask's rows, dx = 8 masks, dA = the mask's column sums.
    assert!(
        relative(&(grad_x.sum_dim_intlist([1i64].as_slice(), true, Kind::Float) / 8.0), &y.narrow(1, 0, 1))
            < 1e-5
    );
    assert!(
        relative(&(grad_x.sum_dim_intlist([0i64].as_slice(), false, Kind::Float) / 8.0), &grad_a.get(0))
            < 1e-5
    );
    assert_ne!(run(1, Mode::Train(key)).0, y, "another layer has another mask");
    assert_eq!(run(0, Mode::Train(key)).0, y, "the same key draws the same mask");
    assert_eq!(run(0, Mode::Eval).0.double_value(&[0, 0]), 4000.0);
}

#[test]
fn linear_cross_entropy_equals_log_softmax_of_the_logits() {
    let weight = noise(50, &[13, 7]);
    let frozen = FrozenWeight::new(&weight).unwrap();
    let ids = Tensor::from_slice(&[0i64, 12, 5, 5, 1]);
    compare(
        &[&[5, 7]],
        |leaves| linear_cross_entropy(&leaves[0], &frozen, &ids).unwrap(),
        |leaves| {
            let log_probabilities = leaves[0].matmul(&weight.tr()).log_softmax(-1, Kind::Float);
            -log_probabilities.gather(1, &ids.unsqueeze(1), false).squeeze_dim(1)
        },
    );
}

/// The loss by libtorch's own cross-entropy and the definition of the z-loss, in f64.
fn plain_cross_entropy(
    hidden: &Tensor,
    weight: &Tensor,
    ids: &Tensor,
    options: CrossEntropyOptions,
) -> Tensor {
    let logits = hidden.to_kind(Kind::Double).matmul(&weight.to_kind(Kind::Double).tr());
    let CrossEntropyOptions { ignore_index, label_smoothing, z_loss } = options;
    let reduction = tch::Reduction::None;
    let losses = logits.cross_entropy_loss(ids, None::<&Tensor>, reduction, ignore_index, label_smoothing);
    let log_sum = logits.logsumexp([1i64].as_slice(), false).masked_fill(&ids.eq(ignore_index), 0.0);
    losses + log_sum.square() * z_loss
}

#[test]
fn linear_cross_entropy_ignores_smooths_and_holds_logits_down_as_the_formulas_in_f64() {
    let weight = noise(50, &[13, 7]) * 3.0;
    let frozen = FrozenWeight::new(&weight).unwrap();
    let ids = [[0i64, 12, 5, 5, 1, 7], [-100, 12, 5, -100, 1, -100], [3, 12, 5, 3, 1, 7], [-100; 6]];
    for ids in ids {
        let ids = Tensor::from_slice(&ids);
        for (label_smoothing, z_loss) in [(0.0, 0.0), (0.3, 0.0), (0.0, 0.02), (0.1, 0.5), (1.0, 0.0)] {
            for ignore_index in [-100, 3] {
                let options = CrossEntropyOptions { ignore_index, label_smoothing, z_loss };
                if ignore_index == 3 && ids.min().int64_value(&[]) < 0 {
                    let refused = linear_cross_entropy_with(&noise(1, &[6, 7]), &frozen, &ids, options);
                    assert!(matches!(refused, Err(Error::TargetOutOfRange { id: -100, .. })));
                    continue;
                }
                let run = |loss: &dyn Fn(&Tensor) -> Tensor| {
                    let hidden = leaf(1, &[6, 7]);
                    let loss = loss(&hidden);
                    (&loss * noise(99, &[6])).sum(Kind::Double).backward();
                    (loss.detach().to_kind(Kind::Double), hidden.grad())
                };
                let (losses, grad) =
                    run(&|hidden| linear_cross_entropy_with(hidden, &frozen, &ids, options).unwrap());
                let (expected, expected_grad) =
                    run(&|hidden| plain_cross_entropy(hidden, &weight, &ids, options));
                // Where nothing counts, both are zero.
                let near = |found: &Tensor, expected: &Tensor| {
                    (found - expected).norm().double_value(&[]) <= 1e-6 * expected.norm().double_value(&[])
                };
                assert!(near(&losses, &expected), "{options:?}: {losses:?} {expected:?}");
                assert!(near(&grad, &expected_grad), "{options:?}: {grad:?} {expected_grad:?}");
            }
        }
    }
}

#[test]
fn linear_cross_entropy_in_f64_has_the_gradient_of_its_differences() {
    let frozen = FrozenWeight::new(&noise(50, &[9, 4]).to_kind(Kind::Double)).unwrap();
    let hidden = noise(1, &[5, 4]).to_kind(Kind::Double).set_requires_grad(true);
    let ids = Tensor::from_slice(&[0i64, 8, -100, 3, 3]);
    let options = CrossEntropyOptions { label_smoothing: 0.2, z_loss: 0.1, ..Default::default() };
    let loss = |inputs: &[Tensor]| Ok(vec![linear_cross_entropy_with(&inputs[0], &frozen, &ids, options)?]);
    ferrotune_autograd::GradientCheck::default().run(loss, &[hidden]).unwrap();
}

#[test]
fn linear_cross_entropy_over_several_chunks_equals_one() {
    // A vocabulary of 2^20 makes chunks of 4 targets; the rows of the second chunk repeat those of the first.
    let frozen = FrozenWeight::new(&noise(50, &[1 << 20, 2])).unwrap();
    let ids: Vec<i64> = (0..4).map(|i| i * 262_141).collect();
    let hidden = leaf(1, &[4, 2]);
    let once = linear_cross_entropy(&hidden, &frozen, &Tensor::from_slice(&ids)).unwrap();
    once.sum(Kind::Float).backward();
    let twice = hidden.detach().repeat([2, 1]).set_requires_grad(true);
    let both =
        linear_cross_entropy(&twice, &frozen, &Tensor::from_slice(&[&ids[..], &ids[..]].concat())).unwrap();
    both.sum(Kind::Float).backward();
    for start in [0, 4] {
        assert!(relative(&both.narrow(0, start, 4), &once) < 1e-6);
        assert!(relative(&twice.grad().narrow(0, start, 4), &hidden.grad()) < 1e-6);
    }
    let none = linear_cross_entropy(&noise(1, &[0, 2]), &frozen, &Tensor::from_slice::<i64>(&[])).unwrap();
    assert_eq!(none.size(), [0]);
}

#[test]
fn rms_norm_has_the_gradients_of_input_and_weight() {
    compare(
        &[&[3, 5, 7], &[7]],
        |leaves| rms_norm(&leaves[0], &leaves[1], 1e-5).unwrap(),
        |leaves| {
            let x = &leaves[0];
            let mean_square = x.square().mean_dim([-1i64].as_slice(), true, Kind::Float);
            x * (mean_square + 1e-5).rsqrt() * &leaves[1]
        },
    );
}

fn plain_rms_norm(x: &Tensor, weight: &Tensor) -> Tensor {
    let mean_square = x.square().mean_dim([-1i64].as_slice(), true, x.kind());
    x * (mean_square + 1e-5).rsqrt() * weight
}

#[test]
fn add_rms_norm_has_the_gradients_of_both_uses_of_the_sum() {
    let both = |(sum, normed): (Tensor, Tensor)| Tensor::stack(&[sum, normed], 0);
    for residual in [vec![3, 5, 7], vec![3, 7, 5]] {
        let of = |x: &Tensor| if residual[1] == 7 { x.transpose(1, 2) } else { x.shallow_clone() };
        compare(
            &[&[3, 5, 7], &residual, &[7]],
            |leaves| both(add_rms_norm(&leaves[0], &of(&leaves[1]), &leaves[2], 1e-5).unwrap()),
            |leaves| {
                let sum = &leaves[0] + of(&leaves[1]);
                let normed = plain_rms_norm(&sum, &leaves[2]);
                both((sum, normed))
            },
        );
    }
    // One of the two outputs alone.
    compare(
        &[&[5, 7], &[5, 7], &[7]],
        |leaves| add_rms_norm(&leaves[0], &leaves[1], &leaves[2], 1e-5).unwrap().1,
        |leaves| plain_rms_norm(&(&leaves[0] + &leaves[1]), &leaves[2]),
    );
    let weight = noise(9, &[7]);
    compare(
        &[&[5, 7], &[5, 7]],
        |leaves| add_rms_norm(&leaves[0], &leaves[1], &weight, 1e-5).unwrap().0,
        |leaves| &leaves[0] + &leaves[1],
    );
    let error = add_rms_norm(&noise(1, &[5, 7]), &noise(2, &[7]), &weight, 1e-5).unwrap_err().to_string();
    assert!(error.contains("residual has shape [7], expected [5, 7]"), "{error}");
}

#[test]
fn norms_in_f64_have_the_gradients_of_their_differences() {
    let leaf = |seed, shape: &[i64]| noise(seed, shape).to_kind(Kind::Double).set_requires_grad(true);
    let inputs = [leaf(1, &[3, 4]), leaf(2, &[3, 4]), leaf(3, &[4])];
    let both = |inputs: &[Tensor]| {
        let (sum, normed) = add_rms_norm(&inputs[0], &inputs[1], &inputs[2], 1e-3)?;
        Ok(vec![rms_norm(&sum, &inputs[2], 1e-3)?, normed, sum])
    };
    ferrotune_autograd::GradientCheck::default().run(both, &inputs).unwrap();
}

#[test]
fn rotary_is_x_cos_plus_rotate_half_x_sin() {
    let angle = noise(50, &[5, 4]) * 3.0;
    let (cos, sin) = (angle.cos(), angle.sin());
    compare(
        &[&[5, 3, 8]],
        |leaves| rotary(&leaves[0], &cos, &sin).unwrap(),
        |leaves| {
            let x = &leaves[0];
            let double = |table: &Tensor| Tensor::cat(&[table, table], 1).unsqueeze(1);
            let rotated = Tensor::cat(&[-x.narrow(2, 4, 4), x.narrow(2, 0, 4)], 2);
            x * double(&cos) + rotated * double(&sin)
        },
    );
}

#[test]
fn swiglu_is_silu_of_gate_times_up() {
    compare(
        &[&[5, 14]],
        |leaves| swiglu(&leaves[0]).unwrap(),
        |leaves| leaves[0].narrow(1, 0, 7).silu() * leaves[0].narrow(1, 7, 7),
    );
}

#[test]
fn what_does_not_lie_in_rows_follows_the_same_formulas() {
    // Transposed inputs and gradients take the path through libtorch's operators.
    compare(
        &[&[7, 15], &[7]],
        |leaves| rms_norm(&leaves[0].tr(), &leaves[1], 1e-5).unwrap(),
        |leaves| {
            let x = leaves[0].tr();
            let mean_square = x.square().mean_dim([-1i64].as_slice(), true, Kind::Float);
            &x * (mean_square + 1e-5).rsqrt() * &leaves[1]
        },
    );
    compare(
        &[&[14, 5]],
        |leaves| swiglu(&leaves[0].tr()).unwrap(),
        |leaves| (leaves[0].narrow(0, 0, 7).silu() * leaves[0].narrow(0, 7, 7)).tr(),
    );
    let angle = noise(50, &[5, 4]) * 3.0;
    let (cos, sin) = (angle.cos(), angle.sin());
    compare(
        &[&[3, 5, 8]],
        |leaves| rotary(&leaves[0].transpose(0, 1), &cos, &sin).unwrap().transpose(0, 1),
        |leaves| {
            let x = &leaves[0];
            let double = |table: &Tensor| Tensor::cat(&[table, table], 1);
            let rotated = Tensor::cat(&[-x.narrow(2, 4, 4), x.narrow(2, 0, 4)], 2);
            x * double(&cos) + rotated * double(&sin)
        },
    );
}

#[test]
fn a_prologue_equals_the_step_before_the_layer() {
    for (dropout, sizes) in [(0.0, [11, 8, 5, 3]), (0.5, [11, 8, 5, 3]), (0.0, [150, 32, 48, 16])] {
        // Also sizes for the loops of narrow products.
        let [tokens, in_features, out_features, rank] = sizes;
        let (first, second) = (noise(50, &[out_features, in_features]), noise(51, &[2, in_features]));
        let frozen = FrozenWeight::stacked(&[&first, &second]).unwrap();
        let scale = noise(52, &[in_features]) + 1.5;
        let norm = Prologue::RmsNorm { weight: &scale, eps: 1e-3 };
        let layer = |x: &Tensor, prologue: Prologue, a: &Tensor, b: &Tensor| {
            let update = LowRank { a, b, scaling: 2.5, dropout, layer: 7 };
            let members = [
                GroupMember { out_features, update: Some(update) },
                GroupMember { out_features: 2, update: None },
            ];
            let mode = Mode::Train(RandomKey::from_seed(3));
            grouped_lora_linear(x, prologue, &frozen, None, &members, mode).unwrap()
        };
        for (prologue, columns) in [(norm, in_features), (Prologue::SwiGlu, 2 * in_features)] {
            let shapes = [vec![tokens, columns], vec![rank, in_features], vec![out_features, rank]];
            compare(
                &shapes.iter().map(Vec::as_slice).collect::<Vec<_>>(),
                |leaves| layer(&leaves[0], prologue, &leaves[1], &leaves[2]),
                |leaves| {
                    let x = match prologue {
                        Prologue::SwiGlu => swiglu(&leaves[0]).unwrap(),
                        _ => rms_norm(&leaves[0], &scale, 1e-3).unwrap(),
                    };
                    layer(&x, Prologue::None, &leaves[1], &leaves[2])
                },
            );
        }
    }
    // Without an update there is nothing to keep, and the step is there all the same.
    let frozen = FrozenWeight::new(&noise(50, &[7, 8])).unwrap();
    let scale = noise(52, &[8]) + 1.5;
    let norm = Prologue::RmsNorm { weight: &scale, eps: 1e-3 };
    compare(
        &[&[11, 8]],
        |leaves| {
            let members = [GroupMember { out_features: 7, update: None }];
            grouped_lora_linear(&leaves[0], norm, &frozen, None, &members, Mode::Eval).unwrap()
        },
        |leaves| frozen_linear(&rms_norm(&leaves[0], &scale, 1e-3).unwrap(), &frozen, None).unwrap(),
    );
}

#[test]
fn what_does_not_fit_is_named_with_both_shapes() {
    let frozen = FrozenWeight::new(&noise(1, &[5, 7])).unwrap();
    let x = noise(2, &[3, 6]);
    let error = frozen_linear(&x, &frozen, None).unwrap_err().to_string();
    assert!(error.contains("[3, 6]") && error.contains("in_features = 7"), "{error}");
    let (a, b) = (noise(3, &[2, 7]), noise(4, &[4, 2]));
    let update = |dropout| Some(LowRank { a: &a, b: &b, scaling: 1.0, dropout, layer: 0 });
    let error =
        lora_linear(&noise(2, &[3, 7]), &frozen, None, update(0.0), Mode::Eval).unwrap_err().to_string();
    assert!(error.contains("B has shape [4, 2], expected [5, 2]"), "{error}");
    let fitting = FrozenWeight::new(&noise(1, &[4, 7])).unwrap();
    assert!(matches!(
        lora_linear(&noise(2, &[3, 7]), &fitting, None, update(1.0), Mode::Eval),
        Err(Error::Dropout(_))
    ));
    assert!(matches!(
        linear_cross_entropy(&noise(2, &[1, 7]), &frozen, &Tensor::from_slice(&[5i64])),
        Err(Error::TargetOutOfRange { id: 5, vocabulary: 5 })
    ));
    let layout = SequenceLayout::continuing(&[(1, 3)]).unwrap();
    let options = AttentionOptions { scale: 1.0, sliding_window: None };
    let one = noise(1, &[1, 2, 4]);
    assert!(matches!(causal_attention(&one, &one, &one, &layout, options), Err(Error::Layout { .. })));
    let uneven = noise(1, &[1, 3, 4]);
    let layout = SequenceLayout::from_cu_seqlens(&[0, 1]).unwrap();
    assert!(matches!(causal_attention(&uneven, &one, &one, &layout, options), Err(Error::Shape { .. })));
}
