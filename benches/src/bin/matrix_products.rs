//! What this machine makes of a matrix product, for `cargo xtask doctor`: one second in f32, one in bf16, as one line of JSON.
#![allow(clippy::print_stdout, reason = "a command-line program talks to its caller")]

use std::time::{Duration, Instant};

use ferrotune_benches::SEED;
use tch::{Device, Kind, TchError, Tensor};

/// Rows and columns of both factors: large enough that the cores and not the calls are measured.
const SIZE: i64 = 1024;

fn main() -> Result<(), TchError> {
    tch::manual_seed(SEED);
    let [f32, bf16] = [giga_flop_per_second(Kind::Float)?, giga_flop_per_second(Kind::BFloat16)?];
    println!(r#"{{"threads": {}, "f32": {f32:.1}, "bf16": {bf16:.1}}}"#, tch::get_num_threads());
    Ok(())
}

fn giga_flop_per_second(kind: Kind) -> Result<f64, TchError> {
    let factor = Tensor::f_randn([SIZE, SIZE], (Kind::Float, Device::Cpu))?.f_to_kind(kind)?;
    let _ = factor.f_matmul(&factor)?; // the first one prepares
    let mut products = 0;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        let _ = factor.f_matmul(&factor)?;
        products += 1;
    }
    Ok((2 * SIZE.pow(3) * products) as f64 / start.elapsed().as_secs_f64() / 1e9)
}
