//! libtorch: the user's own, else the CPU libraries and headers out of the wheels, in the cache.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::unpack::{Take, unpack};
use super::wheel::{self, Wheel};
use super::{LIBTORCH_LINK, link};
use crate::{files, process, workspace};

/// The one that `tch` wants.
const VERSION: &str = "2.13.0";
const VERSION_FILE: &str = "build-version";
/// Where the version numbers are in the headers: since 2.9 or so, and before.
const VERSION_HEADERS: [&str; 2] =
    ["include/torch/headeronly/version.h", "include/torch/csrc/api/include/torch/version.h"];
/// Bytes needed while unpacking: the largest wheel twice (pip copies it), and what is unpacked.
const SPACE: u64 = 1_700_000_000;

/// `torch-sys` links `-ltorch`. The wheel's `libtorch.so` would bring in the CUDA libraries; this linker script does
/// not, and without `libtorch_cuda.so` beside it a binary needs no more than the files below.
const LINKER_SCRIPT: (&str, &str) = ("lib/libtorch.so", "INPUT(libtorch_cpu.so libc10.so)\n");

/// The wheels, and what is taken from each. All libraries lie flat in `lib`, where `$ORIGIN` of their RPATH finds them;
/// the two of CUDA are only what `libtorch_cpu.so` names as needed.
const PARTS: [(Wheel, &[Take]); 3] = [
    (
        Wheel {
            name: "torch",
            version: VERSION,
            file: "torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl",
            sha256: "60fcdcb2f3876e21146cb4524ef06397d727ca9ad5f020818547e25075fe3cb7",
            platform: Some("manylinux_2_28_x86_64"),
        },
        &[
            Take { from: "torch/include/", to: "include/" },
            Take { from: "torch/lib/libtorch_cpu.so", to: "lib/libtorch_cpu.so" },
            Take { from: "torch/lib/libc10.so", to: "lib/libc10.so" },
            Take { from: "torch/lib/libgomp.so.1", to: "lib/libgomp.so.1" },
        ],
    ),
    (
        Wheel {
            name: "nvidia-cuda-cupti",
            version: "13.0.85",
            file: "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
            sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
            platform: Some("manylinux_2_25_x86_64"),
        },
        &[Take { from: "nvidia/cu13/lib/libcupti.so.13", to: "lib/libcupti.so.13" }],
    ),
    (
        Wheel {
            name: "nvidia-cuda-runtime",
            version: "13.0.96",
            file: "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
            sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
            platform: Some("manylinux2014_x86_64"),
        },
        &[Take { from: "nvidia/cu13/lib/libcudart.so.13", to: "lib/libcudart.so.13" }],
    ),
];

/// Which libtorch the builds use.
#[derive(Debug, PartialEq)]
enum Choice {
    /// `LIBTORCH_USE_PYTORCH`: the one of the active Python.
    Python,
    /// `LIBTORCH`: a folder of the user's.
    Folder(PathBuf),
    /// None is given: ours.
    Cache,
}

/// The order is that of `torch-sys`. Cargo itself sets `LIBTORCH` to our link where the user has none.
fn choose(use_pytorch: Option<OsString>, libtorch: Option<OsString>, ours: &Path) -> Choice {
    let is_ours = |path: &Path| {
        let same_folder = || Some(path.parent()?.canonicalize().ok()? == ours.parent()?.canonicalize().ok()?);
        path == ours || path.file_name() == ours.file_name() && same_folder().unwrap_or(false)
    };
    match (use_pytorch, libtorch.map(PathBuf::from)) {
        (Some(_), _) => Choice::Python,
        (None, Some(path)) if !is_ours(&path) => Choice::Folder(path),
        _ => Choice::Cache,
    }
}

/// Checks the user's libtorch, or makes ours and links it. Hold the lock of the set-up.
pub fn provide(cache: &Path) -> Result<()> {
    let ours = workspace::root().join(LIBTORCH_LINK);
    match choose(env::var_os("LIBTORCH_USE_PYTORCH"), env::var_os("LIBTORCH"), &ours) {
        Choice::Python => {
            let version = python_version()?;
            check_version(&version, "the PyTorch of the active Python (LIBTORCH_USE_PYTORCH is set)")?;
            println!("setup: libtorch {VERSION} of the active Python, as LIBTORCH_USE_PYTORCH says");
        }
        Choice::Folder(folder) => {
            check_folder(&folder)?;
            println!("setup: libtorch {VERSION} in {}, as LIBTORCH says", folder.display());
        }
        Choice::Cache if ours.is_dir() && !ours.is_symlink() => {
            check_folder(&ours)?;
            println!("setup: libtorch {VERSION} in {}", ours.display());
        }
        Choice::Cache => {
            let folder = cache.join(format!("libtorch-{VERSION}-cpu"));
            if !is_complete(&folder) {
                make(cache, &folder)?;
            }
            link(LIBTORCH_LINK, &folder)?;
            println!("setup: libtorch {VERSION} in {}", folder.display());
        }
    }
    Ok(())
}

/// The libtorch that a build would use now: version, place, kind and how it was chosen.
///
/// # Errors
/// With the remedy: there is none, or it is not one that fits.
pub fn examine(cache: &Path) -> Result<String> {
    let ours = workspace::root().join(LIBTORCH_LINK);
    match choose(env::var_os("LIBTORCH_USE_PYTORCH"), env::var_os("LIBTORCH"), &ours) {
        Choice::Python => {
            let version = python_version()?;
            check_version(&version, "the PyTorch of the active Python (LIBTORCH_USE_PYTORCH is set)")?;
            Ok(format!("{version} of the active Python, as LIBTORCH_USE_PYTORCH says"))
        }
        Choice::Folder(folder) => {
            check_folder(&folder)?;
            Ok(format!("{} as LIBTORCH says", described(&folder)))
        }
        Choice::Cache => {
            let folder = cache.join(format!("libtorch-{VERSION}-cpu"));
            let linked = ours.canonicalize().ok();
            let is_ours = linked.is_some() && linked == folder.canonicalize().ok();
            match linked {
                Some(other) if !is_ours => check_folder(&other)?,
                _ => ensure!(
                    is_ours && is_complete(&folder),
                    "there is none, or it is not whole: `cargo xtask setup`"
                ),
            }
            Ok(format!("{} through the link {}", described(&ours), ours.display()))
        }
    }
}

fn described(folder: &Path) -> String {
    let version = version_of(folder).unwrap_or_else(|| "of an unknown version".into());
    let kind = if folder.join("lib/libtorch_cuda.so").exists() { "CUDA" } else { "CPU" };
    let place = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    format!("{version}, for {kind}, in {},", place.display())
}

fn python_version() -> Result<String> {
    let python = if env::var_os("VIRTUAL_ENV").is_some() { "python" } else { "python3" };
    let printed =
        process::output(Command::new(python).args(["-c", "import torch; print(torch.__version__)"]));
    printed.map(|version| version.trim().to_string()).with_context(|| {
        format!("LIBTORCH_USE_PYTORCH is set, but `{python}` has no PyTorch: `{python} -m pip install torch=={VERSION}`, or unset it")
    })
}

fn check_version(found: &str, what: &str) -> Result<()> {
    // 2.13.0+cpu and 2.13.0+cu130 are builds of 2.13.0.
    if found.trim().split('+').next() != Some(VERSION)
        && env::var_os("LIBTORCH_BYPASS_VERSION_CHECK").is_none()
    {
        bail!(
            "{what} is version {}, and {VERSION} is needed: unset the variable to let `cargo xtask setup` fetch it",
            found.trim()
        );
    }
    Ok(())
}

/// A folder of the user's must have the libraries, the headers, the ABI that the bindings are compiled for, and where it
/// says so the right version.
fn check_folder(folder: &Path) -> Result<()> {
    ensure!(
        folder.is_absolute(),
        "LIBTORCH is {folder:?}, expected an absolute path: build scripts run in other folders; name it from the root, or \
         unset it to let `cargo xtask setup` fetch a libtorch {VERSION}"
    );
    let libraries = ["lib/libtorch_cpu.so", "lib/libtorch_cpu.dylib"];
    for (what, there) in [
        (libraries[0], libraries.iter().any(|path| folder.join(path).exists())),
        ("include/torch", folder.join("include/torch").exists() || env::var_os("LIBTORCH_INCLUDE").is_some()),
    ] {
        ensure!(
            there,
            "LIBTORCH is {}, where there is no {what}: point it to an unpacked libtorch {VERSION}, or unset it to let \
             `cargo xtask setup` fetch one",
            folder.display()
        );
    }
    if let Some(version) = version_of(folder) {
        check_version(&version, &format!("the libtorch in {} (LIBTORCH)", folder.display()))?;
    }
    let asked = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".into());
    match abi_of(folder) {
        Some(found) if found != asked => bail!(
            "the libtorch in {} has the C++ ABI {found} (_GLIBCXX_USE_CXX11_ABI), and the bindings are compiled for {asked}: take \
             a build with the C++11 ABI and leave LIBTORCH_CXX11_ABI unset",
            folder.display()
        ),
        _ => Ok(()),
    }
}

fn version_of(folder: &Path) -> Option<String> {
    let header = |path: &&str| header_version(&fs::read_to_string(folder.join(path)).ok()?);
    let version = fs::read_to_string(folder.join(VERSION_FILE)).ok();
    Some(version.or_else(|| VERSION_HEADERS.iter().find_map(header))?.trim().to_string())
}

/// `1` or `0`, as the names of the functions tell that take strings.
fn abi_of(folder: &Path) -> Option<&'static str> {
    let library = fs::read(folder.join("lib/libc10.so")).ok()?;
    let has = |name: &[u8]| library.windows(name.len()).any(|window| window == name);
    match (has(b"NSt7__cxx1112basic_string"), has(b"_ZN3c105Error")) {
        (true, _) => Some("1"),
        (false, true) => Some("0"),
        (false, false) => None,
    }
}

/// `#define TORCH_VERSION_MAJOR 2` and so on.
fn header_version(header: &str) -> Option<String> {
    let number = |part: &str| {
        let name = format!("#define TORCH_VERSION_{part} ");
        header.lines().find_map(|line| line.trim().strip_prefix(&name)?.trim().parse::<u32>().ok())
    };
    Some(format!("{}.{}.{}", number("MAJOR")?, number("MINOR")?, number("PATCH")?))
}

/// The folder was renamed into place whole; this finds out whether someone has thinned it out since.
fn is_complete(folder: &Path) -> bool {
    let files = PARTS.iter().flat_map(|(_, takes)| takes.iter()).map(|take| take.to);
    files
        .chain([LINKER_SCRIPT.0])
        .all(|file| fs::metadata(folder.join(file)).is_ok_and(|it| it.is_dir() || it.len() > 0))
        && fs::read_to_string(folder.join(VERSION_FILE)).is_ok_and(|version| version.trim() == VERSION)
}

fn make(cache: &Path, folder: &Path) -> Result<()> {
    ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu")),
        "only Linux on x86-64 with the GNU C library is tried: unpack libtorch {VERSION} for this machine yourself and set \
         LIBTORCH to its folder"
    );
    if files::free_space(cache).is_some_and(|free| free < SPACE) {
        bail!(
            "{} has less than {:.1} GB left: {}",
            cache.display(),
            SPACE as f64 / 1e9,
            files::disk_full(cache)
        );
    }
    let downloads = cache.join("downloads");
    let mut wheels = Vec::new();
    for (wheel, takes) in &PARTS {
        wheels.push((wheel::fetch(wheel, &downloads)?, *takes));
    }
    files::make_folder(folder, |partial| {
        for (wheel, takes) in &wheels {
            unpack(wheel, takes, partial)?;
        }
        fs::write(partial.join(LINKER_SCRIPT.0), LINKER_SCRIPT.1)?;
        fs::write(partial.join(VERSION_FILE), format!("{VERSION}\n"))?;
        Ok(())
    })?;
    files::remove(&downloads)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_libtorch_comes_first_and_our_link_is_not_the_users() {
        let root = tempfile::tempdir().unwrap();
        let ours = root.path().join(".libtorch");
        let choice = |python: Option<&str>, libtorch: Option<&Path>| {
            choose(python.map(Into::into), libtorch.map(Into::into), &ours)
        };
        assert_eq!(choice(None, None), Choice::Cache);
        assert_eq!(choice(None, Some(&ours)), Choice::Cache);
        assert_eq!(
            choice(None, Some(&root.path().join("x/../.libtorch"))),
            Choice::Folder(root.path().join("x/../.libtorch"))
        );
        fs::create_dir(root.path().join("x")).unwrap();
        assert_eq!(choice(None, Some(&root.path().join("x/../.libtorch"))), Choice::Cache);
        assert_eq!(choice(None, Some(Path::new("/opt/libtorch"))), Choice::Folder("/opt/libtorch".into()));
        assert_eq!(choice(Some("1"), Some(&ours)), Choice::Python);
    }

    #[test]
    fn a_folder_of_the_users_is_checked() {
        let root = tempfile::tempdir().unwrap();
        let error = || format!("{:#}", check_folder(root.path()).unwrap_err());
        assert!(error().contains("no lib/libtorch_cpu.so"), "{}", error());
        fs::create_dir_all(root.path().join("lib")).unwrap();
        fs::write(root.path().join("lib/libtorch_cpu.so"), "").unwrap();
        assert!(error().contains("no include/torch"), "{}", error());
        fs::create_dir_all(root.path().join("include/torch/headeronly")).unwrap();
        check_folder(root.path()).unwrap();
        let header =
            "#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 9\n#define TORCH_VERSION_PATCH 1\n";
        fs::write(root.path().join(VERSION_HEADERS[0]), header).unwrap();
        assert!(error().contains("version 2.9.1"), "{}", error());
        fs::write(root.path().join(VERSION_FILE), "2.13.0+cpu\n").unwrap();
        check_folder(root.path()).unwrap();
        let library = root.path().join("lib/libc10.so");
        fs::write(&library, "_ZN3c105ErrorC1ENS_14SourceLocationENSt7__cxx1112basic_stringIcE").unwrap();
        check_folder(root.path()).unwrap();
        fs::write(&library, "_ZN3c105ErrorC1ENS_14SourceLocationESs").unwrap();
        assert!(error().contains("C++ ABI 0"), "{}", error());
        assert!(described(root.path()).starts_with("2.13.0+cpu, for CPU, in "));
        let relative = check_folder(Path::new("libtorch")).unwrap_err().to_string();
        assert!(relative.contains("an absolute path"), "{relative}");
    }

    #[test]
    fn a_folder_without_one_of_its_files_is_made_again() {
        let root = tempfile::tempdir().unwrap();
        let files: Vec<&str> = PARTS.iter().flat_map(|(_, takes)| takes.iter()).map(|take| take.to).collect();
        fs::create_dir_all(root.path().join("lib")).unwrap();
        for file in files.iter().chain([&LINKER_SCRIPT.0]) {
            if file.ends_with('/') {
                fs::create_dir_all(root.path().join(file)).unwrap();
            } else {
                fs::write(root.path().join(file), "x").unwrap();
            }
        }
        assert!(!is_complete(root.path()));
        fs::write(root.path().join(VERSION_FILE), "2.13.0\n").unwrap();
        assert!(is_complete(root.path()));
        fs::remove_file(root.path().join("lib/libcupti.so.13")).unwrap();
        assert!(!is_complete(root.path()));
    }
}
