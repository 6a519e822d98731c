//! Each error, reached.

use ferrotune_kernels::{
    Error, FrozenWeight, LowRank, Mode, RandomKey, SequenceLayout, linear_cross_entropy, lora_linear,
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
    let (a, b) = (ones(&[2, 4], Kind::Float), ones(&[5, 2], Kind::Float));
    let update = LowRank { a: &a, b: &b, scaling: 1.0, dropout: 1.5, layer: 0 };
    let result = lora_linear(&hidden, &head, None, Some(update), Mode::Train(RandomKey::from_seed(1)));
    assert!(matches!(result, Err(Error::Dropout(probability)) if probability == 1.5));
    // Numbers of two kinds: the function itself fails, within the graph.
    let double = ones(&[2, 4], Kind::Double);
    assert!(matches!(linear_cross_entropy(&double, &head, &ids), Err(Error::Autograd(_))));
    assert!(matches!(head.dense_rows(4, 9), Err(Error::Torch(_))));
}
