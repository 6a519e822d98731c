//! The names that a recipe takes are those that the crates below know.

use ferrotune::recipe::{COMPUTE_DTYPES, DEVICES, EVAL_STRATEGIES, LR_SCHEDULER_TYPES, METRICS};

#[test]
fn metrics() {
    let mut known = ferrotune::metrics::Metric::ALL.map(ferrotune::metrics::Metric::name).to_vec();
    known.sort_unstable();
    let mut taken = METRICS.to_vec();
    taken.sort_unstable();
    assert_eq!(taken, known);
}

#[test]
fn schedules() {
    assert_eq!(LR_SCHEDULER_TYPES, ferrotune::trainer::SchedulerType::ALL.map(|schedule| schedule.name()));
}

#[test]
fn evaluation_strategies() {
    assert_eq!(EVAL_STRATEGIES, ferrotune::trainer::IntervalStrategy::ALL.map(|strategy| strategy.name()));
}

#[test]
fn devices_and_dtypes() {
    for device in DEVICES {
        // Known, whether or not this machine has it.
        let parsed = ferrotune::precision::parse_device(device);
        let absent = matches!(parsed, Err(ferrotune::precision::Error::DeviceNotAvailable { .. }));
        assert!(parsed.is_ok() || absent, "{device}");
    }
    for dtype in COMPUTE_DTYPES {
        let dtype: ferrotune::precision::ComputeDtype = dtype.parse().unwrap();
        ferrotune::precision::DtypePolicy::for_compute(dtype).unwrap();
    }
}
