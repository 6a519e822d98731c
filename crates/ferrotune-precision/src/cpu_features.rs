//! Which instruction sets the processor offers: what a measured figure must be read against.

use std::fmt;

/// The vector and matrix instruction sets of this processor that matter to tensor arithmetic.
///
/// On x86-64 names are those of `/proc/cpuinfo` on Linux (`avx2`, `avx512_bf16`, `amx_int8`, ...); on aarch64 those of Rust.
///
/// ```
/// use ferrotune_precision::CpuFeatures;
/// let features = CpuFeatures::detect();
/// for name in features.names() {
///     assert!(features.contains(name));
/// }
/// assert!(!features.contains("abacus"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuFeatures {
    names: Vec<&'static str>,
}

impl CpuFeatures {
    /// Asks the processor.
    pub fn detect() -> Self {
        let mut names = detected();
        names.extend(matrix_extensions(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default()));
        Self { names }
    }

    /// The names of the features, from the oldest to the newest.
    pub fn names(&self) -> Vec<&str> {
        self.names.to_vec()
    }

    /// Whether the processor has the feature.
    pub fn contains(&self, name: &str) -> bool {
        self.names.contains(&name)
    }
}

impl fmt::Display for CpuFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.names.is_empty() { f.write_str("none known") } else { f.write_str(&self.names.join(" ")) }
    }
}

#[cfg(target_arch = "x86_64")]
fn detected() -> Vec<&'static str> {
    // The macro takes a literal, and its spelling of the AVX-512 parts lacks the underscore of /proc/cpuinfo.
    macro_rules! present {
        ($($feature:tt => $name:literal),* $(,)?) => {
            [$(($name, std::is_x86_feature_detected!($feature))),*]
        };
    }
    let table = present!(
        "sse4.2" => "sse4_2", "avx" => "avx", "f16c" => "f16c", "fma" => "fma", "avx2" => "avx2",
        "avx512f" => "avx512f", "avx512bw" => "avx512bw", "avx512dq" => "avx512dq", "avx512vl" => "avx512vl",
        "avx512vnni" => "avx512_vnni", "avx512bf16" => "avx512_bf16", "avx512fp16" => "avx512_fp16",
        "avxvnni" => "avx_vnni",
    );
    table.into_iter().filter_map(|(name, present)| present.then_some(name)).collect()
}

#[cfg(target_arch = "aarch64")]
fn detected() -> Vec<&'static str> {
    macro_rules! present {
        ($($feature:tt),* $(,)?) => {
            [$(($feature, std::arch::is_aarch64_feature_detected!($feature))),*]
        };
    }
    let table = present!("neon", "fp16", "dotprod", "i8mm", "bf16", "sve", "sve2");
    table.into_iter().filter_map(|(name, present)| present.then_some(name)).collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detected() -> Vec<&'static str> {
    Vec::new()
}

/// The AMX features among the `flags` of the first processor: the standard library's detection of them is not stable.
fn matrix_extensions(cpuinfo: &str) -> Vec<&'static str> {
    let flags: Vec<&str> = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("flags"))
        .map(|rest| rest.trim_start_matches([' ', '\t', ':']).split_whitespace().collect())
        .unwrap_or_default();
    ["amx_tile", "amx_int8", "amx_bf16", "amx_fp16"].into_iter().filter(|name| flags.contains(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amx_is_read_from_the_flags_of_the_first_processor_alone() {
        let text =
            "processor\t: 0\nflags\t\t: fpu avx2 amx_tile amx_bf16\nprocessor\t: 1\nflags\t\t: amx_int8\n";
        assert_eq!(matrix_extensions(text), ["amx_tile", "amx_bf16"]);
        assert!(matrix_extensions("").is_empty());
        assert!(matrix_extensions("bugs : amx_tile").is_empty());
    }

    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[test]
    fn every_detected_name_is_a_name_of_proc_cpuinfo() {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap();
        for name in CpuFeatures::detect().names() {
            assert!(flags.split_whitespace().any(|flag| flag == name), "{name} is not in {flags}");
        }
    }
}
