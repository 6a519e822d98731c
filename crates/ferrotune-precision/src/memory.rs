//! How much memory the machine has, and how much the process has needed.

/// The largest resident set that this process has had so far, in MiB; `None` where the system does not say.
///
/// ```
/// # #[cfg(target_os = "linux")]
/// assert!(ferrotune_precision::peak_rss_mib().is_some_and(|mib| mib > 0.5));
/// ```
pub fn peak_rss_mib() -> Option<f64> {
    field_mib(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM")
}

/// The main memory of the machine in MiB; `None` where the system does not say. A container's own limit is not looked at.
pub fn total_memory_mib() -> Option<f64> {
    field_mib(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemTotal")
}

/// The main memory that new work can have without swapping, in MiB; `None` where the system does not say.
pub fn available_memory_mib() -> Option<f64> {
    field_mib(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable")
}

/// The value of a `Name:  1234 kB` line.
fn field_mib(text: &str, name: &str) -> Option<f64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: f64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "MemTotal:       16384 kB\nMemTotalHuge:  1 kB\nVmHWM:\t  2048 kB\nOdd: many\n";
        assert_eq!(field_mib(text, "MemTotal"), Some(16.0));
        assert_eq!(field_mib(text, "VmHWM"), Some(2.0));
        assert_eq!(field_mib(text, "Mem"), None);
        assert_eq!(field_mib(text, "Odd"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_peak_grows_with_what_is_touched() {
        let before = peak_rss_mib().unwrap();
        let block = vec![1u8; 96 << 20];
        assert!(block.iter().step_by(4096).map(|&byte| u64::from(byte)).sum::<u64>() > 0);
        assert!(peak_rss_mib().unwrap() > before + 48.0);
        assert!(total_memory_mib().unwrap() > available_memory_mib().unwrap());
    }
}
