//! One long sequence: no matrix of all queries by all keys is ever in memory. The only test of its process, whose memory it watches.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // also in the helpers of tests

use ferrotune_kernels::{AttentionOptions, SequenceLayout, causal_attention};
use tch::{Device, Kind, Tensor};

/// A line of the process's status, in MiB.
fn memory(line: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|text| text.strip_prefix(line)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<usize>().unwrap() >> 10
}

#[test]
fn memory_does_not_grow_with_the_square_of_the_length() {
    const TOKENS: i64 = 6144; // squared: 144 MiB in f32, a mask or the scores of one head
    let layout = SequenceLayout::from_cu_seqlens(&[0, TOKENS]).unwrap();
    let leaf = |heads: i64| {
        let x = Tensor::ones([TOKENS, heads, 4], (Kind::Float, Device::Cpu));
        x.set_requires_grad(true)
    };
    let run = |tokens: Option<i64>| {
        let options = AttentionOptions { scale: 0.5, sliding_window: tokens };
        let (q, k, v) = (leaf(2), leaf(1), leaf(1));
        causal_attention(&q, &k, &v, &layout, options).unwrap().sum(Kind::Float).backward();
        // Equal keys share the weight equally, and each query adds up to one of it.
        assert!((v.grad().sum(Kind::Double).double_value(&[]) - (2 * 4 * TOKENS) as f64).abs() < 1.0);
    };
    let before = memory("VmRSS");
    run(None);
    run(Some(700));
    run(Some(TOKENS - 1));
    let grown = memory("VmHWM") - before;
    assert!(grown < 100, "{grown} MiB");
}
