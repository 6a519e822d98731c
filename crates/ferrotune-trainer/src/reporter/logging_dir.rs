//! Where the log of a run lies.

use std::path::{Path, PathBuf};

use super::wall_time;

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// `OUTPUT_DIR/runs/Nov27_15-25-00_HOST`, as transformers calls it, at this moment; the time is UTC.
pub fn default_logging_dir(output_dir: &Path) -> PathBuf {
    let moment = month_day_time(wall_time() as u64);
    output_dir.join("runs").join(format!("{moment}_{}", host_name()))
}

/// The name of this machine.
pub(super) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() || name.contains('/') { "localhost".into() } else { name.into() }
}

/// `%b%d_%H-%M-%S` of the seconds since 1970.
fn month_day_time(seconds: u64) -> String {
    let mut days = seconds / 86_400;
    let mut year = 1970;
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = "Dec";
    for (name, length) in MONTHS.into_iter().zip(lengths) {
        if days < length {
            month = name;
            break;
        }
        days -= length;
    }
    let time = seconds % 86_400;
    format!("{month}{:02}_{:02}-{:02}-{:02}", days + 1, time / 3600, time / 60 % 60, time % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_strftime_does() {
        assert_eq!(month_day_time(0), "Jan01_00-00-00");
        assert_eq!(month_day_time(951_782_399), "Feb28_23-59-59");
        assert_eq!(month_day_time(951_782_400), "Feb29_00-00-00");
        assert_eq!(month_day_time(1_795_794_305), "Nov27_15-45-05");
        assert_eq!(month_day_time(1_798_761_599), "Dec31_23-59-59");
    }

    #[test]
    fn the_folder_is_below_the_output() {
        let folder = default_logging_dir(Path::new("out"));
        assert_eq!(folder.parent(), Some(Path::new("out/runs")));
        assert!(folder.to_string_lossy().ends_with(&host_name()));
    }
}
