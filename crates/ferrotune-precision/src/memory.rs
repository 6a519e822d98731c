//! How much memory the machine has, how much of it a process may take, and how much it has needed.

use std::{fmt, fs, path::Path};

/// The largest resident set that this process has had so far, in MiB; `None` where the system does not say.
///
/// ```
/// # #[cfg(target_os = "linux")]
/// assert!(ferrotune_precision::peak_rss_mib().is_some_and(|mib| mib > 0.5));
/// ```
pub fn peak_rss_mib() -> Option<f64> {
    of_process("VmHWM").map(mib)
}

/// The resident set that this process has now, in bytes; `None` where the system does not say.
pub fn resident_bytes() -> Option<u64> {
    of_process("VmRSS")
}

/// The main memory of the machine in MiB; `None` where the system does not say. A container's own limit is not looked at.
pub fn total_memory_mib() -> Option<f64> {
    of_machine("MemTotal").map(mib)
}

/// The main memory that new work can have without swapping, in MiB; `None` where the system does not say.
pub fn available_memory_mib() -> Option<f64> {
    of_machine("MemAvailable").map(mib)
}

/// What sets the bound of an [`AvailableMemory`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryBound {
    /// The memory of the machine that nothing else uses.
    Machine,
    /// The limit of a control group: of a container, a batch job or a service.
    ControlGroup,
    /// The process's own limit on its address space, `ulimit -v`.
    AddressSpace,
    /// The process's own limit on its data, `ulimit -d`.
    Data,
}

impl fmt::Display for MemoryBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Machine => "free memory of this machine",
            Self::ControlGroup => "memory limit of this container or job (cgroup)",
            Self::AddressSpace => "limit on the address space, `ulimit -v`",
            Self::Data => "limit on the data segment, `ulimit -d`",
        })
    }
}

/// The memory that this process can take in addition to what it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AvailableMemory {
    /// How much.
    pub bytes: u64,
    /// What sets the bound.
    pub bound: MemoryBound,
}

/// The memory that this process can take in addition to what it has: the least of what the machine has left, of the limits of its
/// control groups (versions 1 and 2) and of its own resource limits. `None` where the system does not say.
///
/// ```
/// # #[cfg(target_os = "linux")] {
/// let available = ferrotune_precision::available_memory().expect("/proc is there");
/// println!("{} bytes: {}", available.bytes, available.bound);
/// # }
/// ```
pub fn available_memory() -> Option<AvailableMemory> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let within =
        |limit: &str, used: &str| Some(soft_limit(&limits, limit)?.saturating_sub(of_process(used)?));
    [
        (of_machine("MemAvailable"), MemoryBound::Machine),
        (left_in_groups(&groups, Path::new("/sys/fs/cgroup")), MemoryBound::ControlGroup),
        (within("Max address space", "VmSize"), MemoryBound::AddressSpace),
        (within("Max data size", "VmData"), MemoryBound::Data),
    ]
    .into_iter()
    .filter_map(|(bytes, bound)| Some(AvailableMemory { bytes: bytes?, bound }))
    .min_by_key(|available| available.bytes)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

fn of_process(name: &str) -> Option<u64> {
    field(&fs::read_to_string("/proc/self/status").ok()?, name)
}

fn of_machine(name: &str) -> Option<u64> {
    field(&fs::read_to_string("/proc/meminfo").ok()?, name)
}

/// The value of a `Name:  1234 kB` line, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The soft limit in a line of `/proc/self/limits`; `None` for `unlimited`.
pub(crate) fn soft_limit(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// What the groups named in `/proc/self/cgroup` leave, each of them and those around it. Memory that only caches files counts as free.
fn left_in_groups(groups: &str, root: &Path) -> Option<u64> {
    let mut left = None;
    for line in groups.lines() {
        // `hierarchy:controllers:path`
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let path = path.trim_start_matches('/');
        let (root, limit, usage, cache) = if controllers.is_empty() {
            (root.to_owned(), "memory.max", "memory.current", "inactive_file")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            (root.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        } else {
            continue;
        };
        // In a container the path may be that of the host while the root is the group itself: what is absent is passed over.
        for group in root.join(path).ancestors().take_while(|group| group.starts_with(&root)) {
            let number = |name: &str| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
            let (Some(limit), Some(usage)) = (number(limit), number(usage)) else { continue };
            let statistics = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
            let cached =
                statistics.lines().find_map(|line| line.strip_prefix(cache)?.strip_prefix(' ')?.parse().ok());
            let free = limit.saturating_sub(usage.saturating_sub(cached.unwrap_or(0)));
            left = Some(left.map_or(free, |left: u64| left.min(free)));
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "MemTotal:       16384 kB\nMemTotalHuge:  1 kB\nVmHWM:\t  2048 kB\nOdd: many\n";
        assert_eq!(field(text, "MemTotal"), Some(16 << 20));
        assert_eq!(field(text, "VmHWM"), Some(2 << 20));
        assert_eq!(field(text, "Mem"), None);
        assert_eq!(field(text, "Odd"), None);
    }

    #[test]
    fn a_limit_is_a_number_or_none() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max data size             unlimited            unlimited            bytes     \n\
                    Max address space         4294967296           unlimited            bytes     \n";
        assert_eq!(soft_limit(text, "Max address space"), Some(4 << 30));
        assert_eq!(soft_limit(text, "Max data size"), None);
        assert_eq!(soft_limit(text, "Max something"), None);
    }

    /// Folders and files as the kernel shows them.
    fn groups(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn the_narrowest_group_counts_and_caches_do_not() {
        let second = groups(&[
            ("a/memory.max", "1000\n"),
            ("a/memory.current", "600\n"),
            ("a/memory.stat", "anon 300\ninactive_file 300\nactive_file 0\n"),
            ("a/b/memory.max", "max\n"),
            ("a/b/memory.current", "600\n"),
        ]);
        assert_eq!(left_in_groups("0::/a/b\n", second.path()), Some(700));
        assert_eq!(left_in_groups("0::/../..\n0::/elsewhere\n", second.path()), None);
        let first = groups(&[
            ("memory/job/memory.limit_in_bytes", "5000"),
            ("memory/job/memory.usage_in_bytes", "4000"),
            ("memory/memory.limit_in_bytes", "9223372036854771712"),
            ("memory/memory.usage_in_bytes", "9000"),
        ]);
        let text = "5:cpu:/job\n4:memory,hugetlb:/job\n0::/\nnonsense\n";
        assert_eq!(left_in_groups(text, first.path()), Some(1000));
        // Used beyond the limit: nothing is left.
        fs::write(first.path().join("memory/job/memory.limit_in_bytes"), "3000").unwrap();
        assert_eq!(left_in_groups(text, first.path()), Some(0));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_peak_grows_with_what_is_touched() {
        let (before, resident) = (peak_rss_mib().unwrap(), resident_bytes().unwrap());
        let block = vec![1u8; 96 << 20];
        assert!(block.iter().step_by(4096).map(|&byte| u64::from(byte)).sum::<u64>() > 0);
        assert!(peak_rss_mib().unwrap() > before + 48.0);
        assert!(resident_bytes().unwrap() > resident + (48 << 20));
        assert!(total_memory_mib().unwrap() > available_memory_mib().unwrap());
        assert!(mib(available_memory().unwrap().bytes) <= total_memory_mib().unwrap());
    }
}
