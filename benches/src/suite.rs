//! The frame of every benchmark: settings, names, and a check that what is compared computes the same.

use crate::{Clock, SEED};
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use std::time::Duration;
use tch::Tensor;

/// What runs in turn under one criterion group, a kernel.
pub struct Suite<'a> {
    kernel: &'a str,
    criterion: Criterion<Clock>,
}

/// One way to compute something: its name, and the computation, whose results are compared.
pub type Variant<'a> = (&'a str, &'a dyn Fn() -> Vec<Tensor>);

/// What the variants of a comparison have in common.
#[derive(Debug, Clone, Copy)]
pub struct Comparison<'a> {
    /// `forward`, `forward_backward` or another word for what is computed.
    pub pass: &'a str,
    /// The sizes.
    pub shape: &'a str,
    /// Elements, or floating-point operations where they are what counts, of one computation.
    pub elements: u64,
}

impl<'a> Suite<'a> {
    /// Runs the benchmarks of `kernel` with the settings of the command line and of `FERROTUNE_BENCH_CLOCK`.
    pub fn run(kernel: &'a str, benchmarks: impl FnOnce(&mut Self)) {
        let clock = if std::env::var_os("FERROTUNE_BENCH_CLOCK").is_some_and(|clock| clock == "thread") {
            tch::set_num_threads(1);
            Clock::THREAD
        } else {
            Clock::WALL
        };
        tch::manual_seed(SEED);
        // Settings on the command line win over these.
        let criterion = Criterion::default()
            .with_measurement(clock)
            .sample_size(10)
            .warm_up_time(Duration::from_millis(100))
            .measurement_time(Duration::from_millis(500))
            .nresamples(10_000)
            .configure_from_args();
        let mut suite = Self { kernel, criterion };
        benchmarks(&mut suite);
        suite.criterion.final_summary();
    }

    /// Measures ours beside the same in libtorch's operators, the reference.
    ///
    /// # Panics
    /// If they do not compute the same: a comparison of things that differ would be worth nothing.
    pub fn compare(
        &mut self,
        comparison: Comparison,
        ours: &dyn Fn() -> Vec<Tensor>,
        libtorch: &dyn Fn() -> Vec<Tensor>,
    ) {
        let variants = [("ours", ours), ("libtorch", libtorch)];
        self.check(comparison, &variants);
        self.measure(comparison, &variants);
    }

    /// Measures variants that compute the same beside a frozen layer, the reference, which does less: so many elements.
    ///
    /// # Panics
    /// As [`Suite::compare`].
    pub fn compare_with_frozen(
        &mut self,
        comparison: Comparison,
        variants: &[Variant],
        (frozen, elements): (&dyn Fn() -> Vec<Tensor>, u64),
    ) {
        self.check(comparison, variants);
        self.measure(comparison, variants);
        self.measure(Comparison { elements, ..comparison }, &[("frozen", frozen)]);
    }

    fn check(&self, Comparison { pass, shape, .. }: Comparison, variants: &[Variant]) {
        let Some(((first, expected), others)) = variants.split_first() else { return };
        let expected = expected();
        for (variant, compute) in others {
            let results = compute();
            assert_eq!(results.len(), expected.len());
            for (index, (result, expected)) in results.iter().zip(&expected).enumerate() {
                let error = relative_error(result, expected);
                assert!(
                    error <= 1e-4,
                    "{}/{pass}/{variant}/{shape}: result {index} differs from that of {first} by {error:e}",
                    self.kernel
                );
            }
        }
    }

    /// As `kernel/pass/variant/shape`; side by side, so that a machine that slows down slows all of them.
    fn measure(&mut self, Comparison { pass, shape, elements }: Comparison, variants: &[Variant]) {
        let mut group = self.criterion.benchmark_group(self.kernel);
        group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Elements(elements));
        for (variant, compute) in variants {
            let id = BenchmarkId::new(format!("{pass}/{variant}"), shape);
            group.bench_function(id, |bencher| bencher.iter(compute));
        }
        group.finish();
    }
}

/// The largest difference, by the largest number.
fn relative_error(result: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(result.size(), expected.size());
    let largest = |tensor: &Tensor| tensor.abs().max().double_value(&[]);
    largest(&(result - expected)) / largest(expected).max(f64::MIN_POSITIVE)
}

/// The gradients of `inputs` where the derivative of the loss by `y` is `grad`, a dense tensor such as the next layer hands back.
/// They are returned and not added to the tensors, so there is nothing to reset between two passes.
pub fn gradients(y: &Tensor, grad: &Tensor, inputs: &[&Tensor]) -> Vec<Tensor> {
    let loss = y.reshape([-1]).dot(&grad.view([-1]));
    Tensor::run_backward(&[loss], inputs, false, false)
}
