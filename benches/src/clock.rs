//! The clock of a benchmark.

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Wall time, or the time that the calling thread spent computing: what the machine does meanwhile for others does not count in
/// that. With libtorch on one thread, it is all of the work: its backward, too, runs on the thread that calls it.
#[derive(Debug, Clone, Copy)]
pub struct Clock(ClockId);

impl Clock {
    /// Time as a person sees it.
    pub const WALL: Self = Self(ClockId::Monotonic);

    /// Time that the calling thread computed.
    pub const THREAD: Self = Self(ClockId::ThreadCPUTime);

    fn now(self) -> Duration {
        let time = clock_gettime(self.0);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }
}

impl Measurement for Clock {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        self.now()
    }

    fn end(&self, start: Duration) -> Duration {
        self.now() - start
    }

    fn add(&self, left: &Duration, right: &Duration) -> Duration {
        *left + *right
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}
