//! Where the log of a run lies.

use std::path::{Path, PathBuf};

use time::OffsetDateTime;

/// `OUTPUT_DIR/runs/Nov27_15-25-00_HOST`, as transformers calls it, at this moment; the time is UTC.
pub fn default_logging_dir(output_dir: &Path) -> PathBuf {
    let moment = month_day_time(OffsetDateTime::now_utc());
    output_dir.join("runs").join(format!("{moment}_{}", host_name()))
}

/// The name of this machine.
pub(super) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() || name.contains('/') { "localhost".into() } else { name.into() }
}

/// `%b%d_%H-%M-%S`.
fn month_day_time(moment: OffsetDateTime) -> String {
    let month = moment.month().to_string();
    let (hour, minute, second) = moment.to_hms();
    format!("{month:.3}{:02}_{hour:02}-{minute:02}-{second:02}", moment.day())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_strftime_does() {
        for (seconds, expected) in [
            (0, "Jan01_00-00-00"),
            (951_782_399, "Feb28_23-59-59"),
            (951_782_400, "Feb29_00-00-00"),
            (1_795_794_305, "Nov27_15-45-05"),
            (1_798_761_599, "Dec31_23-59-59"),
        ] {
            assert_eq!(month_day_time(OffsetDateTime::from_unix_timestamp(seconds).unwrap()), expected);
        }
    }

    #[test]
    fn the_folder_is_below_the_output() {
        let folder = default_logging_dir(Path::new("out"));
        assert_eq!(folder.parent(), Some(Path::new("out/runs")));
        assert!(folder.to_string_lossy().ends_with(&host_name()));
    }
}
