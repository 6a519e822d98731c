use super::FrozenWeight;
use crate::{
    cpu::{Compact, reads_as_it_is},
    error::{Error, Result},
};
use tch::{Device, Kind, Tensor};

#[test]
fn rows_of_one_tensor_are_shared_and_others_are_copied() {
    let whole = Tensor::arange(24, (Kind::Float, Device::Cpu)).reshape([8, 3]);
    let stacked = |parts: &[&Tensor]| FrozenWeight::stacked(parts).unwrap().dense_rows(0, 5).unwrap();
    let rows = |start, count| whole.narrow(0, start, count);
    let shared = stacked(&[&rows(2, 3), &rows(5, 2)]);
    assert_eq!(shared, rows(2, 5));
    assert_eq!(shared.data_ptr(), rows(2, 5).data_ptr());
    // A gap, another order, another tensor, columns that lie apart.
    let elsewhere = rows(5, 2).copy();
    for (first, second) in [(rows(1, 3), rows(5, 2)), (rows(5, 3), rows(3, 2)), (rows(2, 3), elsewhere)] {
        let copied = stacked(&[&first, &second]);
        assert_eq!(copied, Tensor::cat(&[&first, &second], 0));
        assert_ne!(copied.data_ptr(), first.data_ptr());
    }
    let turned = whole.tr();
    assert_eq!(stacked(&[&turned, &turned]), Tensor::cat(&[&turned, &turned], 0).narrow(0, 0, 5));
    // Nothing is shared of a sparse tensor, and none is asked for its address.
    let sparse = whole.to_sparse_sparse_dim(2);
    let x = Tensor::ones([2, 3], (Kind::Float, Device::Cpu));
    let product = FrozenWeight::stacked(&[&sparse, &sparse]).and_then(|weight| weight.forward_product(&x));
    assert!(product.is_err() || product.unwrap() == x.matmul(&Tensor::cat(&[&whole, &whole], 0).tr()));
}

/// Weights whose numbers need few bits, and in how many they are kept; the last needs all.
fn weights() -> [(Tensor, usize); 4] {
    let codes = |low, high| Tensor::randint_low(low, high, [70, 64], (Kind::Float, Device::Cpu));
    let noise = crate::cpu::noise(3, &[70, 64]);
    let whole = 70 * 64;
    [
        (codes(0, 16) * 0.375 - 1.5, whole / 32 * 24),
        (codes(-127, 128) * 0.0625, whole / 32 * 36),
        (noise.to_kind(Kind::BFloat16).to_kind(Kind::Float), whole * 2),
        (noise, whole * 4),
    ]
}

/// The weight as it is read from somewhere, with the error that reading gives.
fn filled(weight: &Tensor, error: Option<usize>) -> Result<FrozenWeight> {
    let numbers: Vec<f32> = weight.reshape([-1]).try_into().unwrap();
    let bytes = Vec::from_iter(numbers.iter().flat_map(|number| number.to_ne_bytes()));
    FrozenWeight::filled([70, 64], |first, target| {
        target.copy_from_slice(&bytes[first..first + target.len()]);
        let fails = error.is_some_and(|place| (first..first + target.len()).contains(&place));
        if fails { Err(Error::Dropout(2.0)) } else { Ok(()) }
    })
}

#[test]
fn a_weight_in_few_bits_gives_the_numbers_and_the_products_of_one_in_f32() {
    for (weight, bytes) in weights() {
        let dense = FrozenWeight::new(&weight).unwrap();
        let brain = weight.to_kind(Kind::BFloat16);
        let mut kept =
            vec![FrozenWeight::in_fewest_bits(&weight, Kind::Float).unwrap(), filled(&weight, None).unwrap()];
        // Where libtorch's products are the best, all bits are kept.
        let few = Compact::of(&weight).is_some_and(|compact| reads_as_it_is(&compact.factor()));
        for kept in &kept {
            assert_eq!(kept.stored_bytes(), if few { bytes } else { 70 * 64 * 4 });
            assert_eq!(kept.rounded_bytes(Kind::BFloat16), 70 * 64 * 2);
            assert!(!few || kept.compact_bytes() == 0);
        }
        if brain.to_kind(Kind::Float) == weight {
            kept.push(FrozenWeight::in_fewest_bits(&brain, Kind::Float).unwrap());
            if FrozenWeight::keeps_bf16() {
                assert_eq!(kept[2].rounded_bytes(Kind::BFloat16), 0);
                assert_eq!(
                    kept[2].in_kind(Kind::BFloat16).unwrap().dense().unwrap().data_ptr(),
                    brain.data_ptr()
                );
            }
        }
        for kept in kept {
            assert_eq!(kept.kind(), Kind::Float);
            assert_eq!(kept.dense().unwrap(), weight);
            assert_eq!(kept.dense_rows(3, 5).unwrap(), weight.narrow(0, 3, 5));
            assert_eq!(
                kept.select_rows(&[69, 0, 69]).unwrap(),
                weight.index_select(0, &Tensor::from_slice(&[69i64, 0, 69]))
            );
            assert_eq!(kept.in_kind(Kind::Half).unwrap().dense().unwrap(), weight.to_kind(Kind::Half));
            // Few rows, which copy nothing, and many.
            for rows in [0, 1, 31, 50, 200] {
                let (x, grad) = (crate::cpu::noise(5, &[rows, 64]), crate::cpu::noise(6, &[rows, 70]));
                assert_eq!(kept.forward_product(&x).unwrap(), dense.forward_product(&x).unwrap(), "{rows}");
                assert_eq!(
                    kept.input_gradient(&grad).unwrap(),
                    dense.input_gradient(&grad).unwrap(),
                    "{rows}"
                );
            }
        }
    }
}

#[test]
fn a_number_that_is_none_is_kept() {
    for (weight, _) in weights() {
        for place in [0, 5, 31] {
            let weight = weight.copy();
            let _ = weight.get(0).get(place).fill_(f64::NAN);
            for kept in
                [FrozenWeight::in_fewest_bits(&weight, Kind::Float).unwrap(), filled(&weight, None).unwrap()]
            {
                let found: Vec<bool> = kept.dense().unwrap().isnan().reshape([-1]).try_into().unwrap();
                assert_eq!(found.iter().position(|is_nan| *is_nan), Some(place as usize));
            }
        }
    }
}

#[test]
fn errors_of_reading_come_back_and_a_late_number_of_all_bits_is_not_lost() {
    for (weight, _) in weights() {
        for place in [0, 4, 69 * 256 + 252] {
            assert!(matches!(filled(&weight, Some(place)), Err(Error::Dropout(_))), "{place}");
        }
        let _ = weight.get(69).get(63).fill_(0.123_456_79);
        let kept = filled(&weight, None).unwrap();
        assert_eq!(kept.dense().unwrap(), weight);
        assert_eq!((kept.dense_copy().unwrap(), kept.stored_bytes()), (weight, 70 * 64 * 4));
    }
}
