//! Each error, reached.

use ferrotune_kernels::{
    CrossEntropyOptions, Error, FrozenWeight, LowRank, Mode, RandomKey, SequenceLayout, filled_tensor,
    linear_cross_entropy, linear_cross_entropy_with, lora_linear, rotary_,
};
use tch::{Device, Kind, Tensor};

#[test]
fn each_mistake_is_an_error_of_its_own() {
    let ones = |shape: &[i64], kind| Tensor::ones(shape, (kind, Device::Cpu));
    let head = FrozenWeight::new(&ones(&[5, 4], Kind::Float)).unwrap();
    let (hidden, ids) = (ones(&[2, 4], Kind::Float), ones(&[2], Kind::Int64));
    let _ = linear_cross_entropy(&hidden, &head, &ids).unwrap();

    assert!(matches!(FrozenWeight::new(&ones(&[5], Kind::Float)), Err(Error::Shape { .. })));
    assert!(matches!(SequenceLayout::from_cu_seqlens(&[0, 3, 2]), Err(Error::Layout { .. })));
    let outside = linear_cross_entropy(&hidden, &head, &(&ids * 5));
    assert!(matches!(outside, Err(Error::TargetOutOfRange { id: 5, vocabulary: 5 })));
    for (label_smoothing, z_loss, option) in
        [(1.5, 0.0, "label_smoothing"), (0.0, -1.0, "z_loss"), (f64::NAN, 0.0, "label_smoothing")]
    {
        let options = CrossEntropyOptions { label_smoothing, z_loss, ..Default::default() };
        let error = linear_cross_entropy_with(&hidden, &head, &ids, options).unwrap_err();
        assert!(matches!(error, Error::InvalidOption { option: found, .. } if found == option), "{error}");
    }
    let (mut x, table) = (ones(&[2, 3, 4], Kind::Float).set_requires_grad(true), ones(&[2, 2], Kind::Float));
    assert!(matches!(rotary_(&mut x, 3, &table, &table), Err(Error::ChangesGraph { what: "x", .. })));
    assert!(matches!(rotary_(&mut x, 4, &table, &table), Err(Error::Shape { .. })));
    let (a, b) = (ones(&[2, 4], Kind::Float), ones(&[5, 2], Kind::Float));
    let update = LowRank { a: &a, b: &b, scaling: 1.0, dropout: 1.5, layer: 0 };
    let result = lora_linear(&hidden, &head, None, Some(update), Mode::Train(RandomKey::from_seed(1)));
    assert!(matches!(result, Err(Error::Dropout(probability)) if probability == 1.5));
    // Numbers of two kinds: the function itself fails, within the graph.
    let double = ones(&[2, 4], Kind::Double);
    assert!(matches!(linear_cross_entropy(&double, &head, &ids), Err(Error::Autograd(_))));
    assert!(matches!(head.forward_product(&ones(&[2, 3], Kind::Float)), Err(Error::Torch(_))));
    let filled = filled_tensor(&[1], Kind::Bool, |_, _| Ok::<(), Error>(()));
    assert!(matches!(filled, Err(Error::Kind { found: Kind::Bool, .. })));
    assert!(matches!(head.dense_rows(4, 9), Err(Error::RowOutOfRange { row: 12, rows: 5 })));
    assert!(matches!(head.dense_rows(5, 1), Err(Error::RowOutOfRange { row: 5, rows: 5 })));
    assert!(matches!(head.dense_rows(2, -1), Err(Error::RowOutOfRange { .. })));
    assert!(matches!(head.select_rows(&[2, -1]), Err(Error::RowOutOfRange { row: -1, rows: 5 })));
}
