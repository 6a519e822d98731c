//! Processor, memory and GPU, as Linux tells of them.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use super::{Finding, State};
use crate::process;

/// Names of `/proc/cpuinfo` that change how fast a matrix product is.
const FEATURES: [&str; 8] =
    ["avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8"];
/// Training the demo took 1.9 GiB.
const DEMO_MIB: u64 = 2048;

pub fn findings() -> Vec<Finding> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let variable = |name: &str| env::var(name).ok();
    vec![
        threads(cores, quota(Path::new("/sys/fs/cgroup")), &variable),
        features(&read("/proc/cpuinfo")),
        memory(&read("/proc/meminfo"), memory_limit(Path::new("/sys/fs/cgroup"))),
        cuda("nvidia-smi"),
    ]
}

/// The processor, and which of its features matter here.
pub fn cpu() -> String {
    features(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()).text
}

fn threads(cores: usize, quota: Option<f64>, variable: &dyn Fn(&str) -> Option<String>) -> Finding {
    let mut text = format!("{cores} for this process");
    if let Some(quota) = quota {
        text += &format!(", cgroup quota {quota:.1}");
    }
    let mut state = State::Good;
    for name in ["OMP_NUM_THREADS", "RAYON_NUM_THREADS"] {
        let Some(value) = variable(name) else { continue };
        text += &format!(", {name}={value}");
        if !value.parse::<usize>().is_ok_and(|count| (1..=cores).contains(&count)) {
            state = State::Note;
            text +=
                &format!(" (expected a number from 1 to {cores}: more threads than cores slow each other)");
        }
    }
    Finding::new("threads", state, text)
}

/// Cores that the control group may use: version 2 (`cpu.max`), else version 1.
fn quota(group: &Path) -> Option<f64> {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    let read = |file: &str| fs::read_to_string(group.join(file)).ok();
    let (quota, period) = match read("cpu.max") {
        Some(text) => {
            text.split_once(' ').and_then(|(quota, period)| Some((number(quota)?, number(period)?)))?
        }
        None => (number(&read("cpu/cpu.cfs_quota_us")?)?, number(&read("cpu/cpu.cfs_period_us")?)?),
    };
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

fn memory_limit(group: &Path) -> Option<u64> {
    let read = |file: &str| fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok();
    // Version 1 writes a number near 2^63 for no limit.
    read("memory.max").or_else(|| read("memory/memory.limit_in_bytes")).filter(|bytes| *bytes < 1 << 60)
}

fn features(cpuinfo: &str) -> Finding {
    let value = |name: &str| {
        let line =
            cpuinfo.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
        Some(line.split_once(':')?.1.trim())
    };
    let flags: Vec<&str> = value("flags").unwrap_or_default().split_whitespace().collect();
    let model = value("model name").unwrap_or("of an unknown model");
    let (there, absent): (Vec<&str>, Vec<&str>) = FEATURES.iter().partition(|name| flags.contains(name));
    let state = if there.contains(&"avx2") { State::Good } else { State::Note };
    let list = |names: &[&str]| if names.is_empty() { "nothing".into() } else { names.join(" ") };
    Finding::new("cpu", state, format!("{model}; has {}, lacks {}", list(&there), list(&absent)))
}

fn memory(meminfo: &str, limit: Option<u64>) -> Finding {
    let mib = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? / 1024)
    };
    let (Some(total), Some(available)) = (mib("MemTotal"), mib("MemAvailable")) else {
        return Finding::new("memory", State::Note, "not known: there is no /proc/meminfo");
    };
    let limit = limit.map(|bytes| bytes >> 20);
    let mut text = format!("{total} MiB, {available} MiB of it available");
    if let Some(limit) = limit {
        text += &format!(", cgroup limit {limit} MiB");
    }
    if limit.unwrap_or(available).min(available) >= DEMO_MIB {
        return Finding::new("memory", State::Good, text);
    }
    text += &format!(
        "; the demo takes up to {DEMO_MIB} MiB: close other programs, or build with `cargo build -j 1` and take a smaller model"
    );
    Finding::new("memory", State::Note, text)
}

fn cuda(program: &str) -> Finding {
    let mut command = Command::new(program);
    command.args(["--query-gpu=name,driver_version", "--format=csv,noheader"]);
    let text = match process::output(&mut command) {
        Ok(text) if !text.trim().is_empty() => text.trim().replace('\n', "; "),
        Ok(_) => "no GPU".into(),
        Err(_) => format!("no GPU that `{program}` shows; none is needed"),
    };
    Finding::new("cuda", State::Good, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_threads_than_cores_are_noted() {
        let with = |value: Option<&str>| {
            let value = value.map(str::to_string);
            threads(4, Some(2.5), &move |name| value.clone().filter(|_| name == "OMP_NUM_THREADS"))
        };
        assert_eq!(with(None).text, "4 for this process, cgroup quota 2.5");
        assert_eq!(with(Some("4")).state, State::Good);
        for bad in ["5", "0", "many", ""] {
            assert_eq!(with(Some(bad)).state, State::Note, "{bad:?}");
        }
    }

    #[test]
    fn limits_of_both_kinds_of_control_groups_are_read() {
        let group = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(group.path().join(file), text).unwrap();
        assert_eq!((quota(group.path()), memory_limit(group.path())), (None, None));
        fs::create_dir_all(group.path().join("cpu")).unwrap();
        fs::create_dir_all(group.path().join("memory")).unwrap();
        write("cpu/cpu.cfs_quota_us", "-1\n");
        write("cpu/cpu.cfs_period_us", "100000\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!((quota(group.path()), memory_limit(group.path())), (None, None));
        write("cpu/cpu.cfs_quota_us", "50000\n");
        write("memory/memory.limit_in_bytes", "1048576\n");
        assert_eq!((quota(group.path()), memory_limit(group.path())), (Some(0.5), Some(1 << 20)));
        write("cpu.max", "max 100000\n");
        write("memory.max", "max\n");
        assert_eq!(quota(group.path()), None);
        write("cpu.max", "150000 100000\n");
        write("memory.max", "2097152\n");
        assert_eq!((quota(group.path()), memory_limit(group.path())), (Some(1.5), Some(2 << 20)));
    }

    #[test]
    fn features_are_told_apart_from_those_that_lack() {
        let finding = features("model name\t: A CPU\nflags\t\t: fpu avx2 fma amx_tile\nflags : avx512f\n");
        assert!(finding.text.starts_with("A CPU; has avx2 fma amx_tile, lacks avx512f "), "{}", finding.text);
        assert_eq!(finding.state, State::Good);
        assert_eq!(features("").state, State::Note);
    }

    #[test]
    fn little_memory_is_noted_whether_of_the_machine_or_of_the_group() {
        let meminfo = "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n";
        assert_eq!(memory(meminfo, None).text, "8192 MiB, 4096 MiB of it available");
        assert_eq!(memory(meminfo, Some(8 << 30)).state, State::Good);
        assert_eq!(memory(meminfo, Some(1 << 30)).state, State::Note);
        assert_eq!(memory("MemTotal: 8388608 kB\nMemAvailable: 1048576 kB\n", None).state, State::Note);
        assert_eq!(memory("", None).state, State::Note);
    }

    #[test]
    fn no_gpu_is_no_fault() {
        let finding = cuda("no-such-program");
        assert!(finding.state == State::Good && finding.text.contains("none is needed"));
        assert!(cuda("echo").text.contains("--query-gpu"));
    }
}
