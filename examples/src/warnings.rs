//! The libraries' warnings, for the person at the terminal.

use crate::complain;
use ferrotune::trainer::TOLD;
use std::io;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{Layer, filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// From here on each warning of a library is a line on standard error, unless the program says it anyway.
pub(crate) fn show() {
    let lines = fmt::layer()
        .without_time()
        .with_level(false)
        .with_target(false)
        .with_ansi(false)
        .with_writer(|| Lines)
        .with_filter(Targets::new().with_default(LevelFilter::WARN).with_target(TOLD, LevelFilter::OFF));
    // A program that has a subscriber of its own keeps it.
    let _ = tracing_subscriber::registry().with(lines).try_init();
}

/// Writes what it is given, an event at a time, as a warning.
struct Lines;

impl io::Write for Lines {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        complain(format_args!("warning: {}", String::from_utf8_lossy(event).trim_end()));
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
