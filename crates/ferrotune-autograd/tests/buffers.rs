//! Large buffers are used again, whatever their sizes, and given back on demand. One test: the allocator is the whole process's.

use ferrotune_autograd::{
    kept_buffer_bytes, release_buffers, reuse_buffers, reuses_buffers,
    tch::{Device, Kind, Tensor},
};

fn tensor(bytes: i64, number: i64) -> Tensor {
    Tensor::full([bytes / 8], number, (Kind::Int64, Device::Cpu))
}

fn holds(tensor: &Tensor, number: i64) -> bool {
    tensor.min().int64_value(&[]) == number && tensor.max().int64_value(&[]) == number
}

#[test]
fn buffers_are_used_again_stretched_cut_and_given_back() {
    let before = tensor(1 << 20, 7);
    assert!(!reuses_buffers());
    assert!(reuse_buffers() && reuse_buffers() && reuses_buffers());
    drop(before); // its memory is that of the allocator before
    assert_eq!(kept_buffer_bytes(), 0);

    let first = tensor(40 << 20, 1);
    let address = first.data_ptr();
    drop(first);
    assert_eq!(kept_buffer_bytes(), 40 << 20);
    // about the same size: the very buffer
    let again = tensor((40 << 20) - 100_000, 2);
    assert_eq!(again.data_ptr(), address);
    assert!(kept_buffer_bytes() == 0 && holds(&again, 2));
    drop(again);
    // a third smaller: it still, whole
    let again = tensor(28 << 20, 6);
    assert!(again.data_ptr() == address && kept_buffer_bytes() == 0 && holds(&again, 6));
    drop(again);
    assert_eq!(kept_buffer_bytes(), 40 << 20);
    // twice as large, and then a quarter of that: the buffer stretched, and cut
    let larger = tensor(80 << 20, 3);
    assert!(kept_buffer_bytes() == 0 && holds(&larger, 3));
    drop(larger);
    assert_eq!(kept_buffer_bytes(), 80 << 20);
    let smaller = tensor(20 << 20, 4);
    assert!(kept_buffer_bytes() == 0 && holds(&smaller, 4));
    drop(smaller);
    // a few buffers of other sizes are left as they are
    let smaller = tensor(2 << 20, 4);
    assert!(kept_buffer_bytes() == 20 << 20 && holds(&smaller, 4));
    release_buffers();
    // small tensors are none of its business
    drop(tensor(100_000, 5));
    assert_eq!(kept_buffer_bytes(), 0);

    // many of many sizes at one time, from several threads: none is given to two tensors
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for round in 0..20 {
                    let numbers: Vec<i64> = (0..5).map(|index| thread * 1000 + round * 10 + index).collect();
                    let tensors: Vec<Tensor> =
                        numbers.iter().map(|&n| tensor((300_000 + 77_777 * (n % 31)) / 8 * 8, n)).collect();
                    for (tensor, &number) in tensors.iter().zip(&numbers) {
                        assert!(holds(tensor, number));
                    }
                }
            });
        }
    });
    assert!(holds(&smaller, 4));
    assert!(kept_buffer_bytes() > 0);
    release_buffers();
    assert_eq!(kept_buffer_bytes(), 0);
    assert!(holds(&smaller, 4));

    // a size that nobody has is libtorch's own error
    for elements in [1 << 50, i64::MAX / 16] {
        let error = Tensor::f_empty([elements], (Kind::Float, Device::Cpu)).unwrap_err().to_string();
        assert!(error.contains("memory") || error.contains("overflow"), "{error}");
    }
}
