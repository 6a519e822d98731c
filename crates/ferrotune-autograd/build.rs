//! Compiles the C++ parts against the headers of the libtorch that `torch-sys` found.

use std::{
    env,
    path::{Path, PathBuf},
};

fn main() {
    println!("cargo:rerun-if-changed=src/cpp");
    println!("cargo:rerun-if-env-changed=LIBTORCH_INCLUDE");
    println!("cargo:rerun-if-env-changed=LIBTORCH_CXX11_ABI");
    println!("cargo:rustc-check-cfg=cfg(no_libtorch)");
    // `torch-sys` says where its library lies, unless it was built without libtorch (its feature `doc-only`).
    let Some(lib) = env::var_os("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from) else {
        println!("cargo:rustc-cfg=no_libtorch");
        return;
    };
    println!("cargo:rerun-if-changed={}", lib.join("libtorch_cpu.so").display());
    let root = env::var_os("LIBTORCH_INCLUDE")
        .map(PathBuf::from)
        .or_else(|| lib.parent().map(Path::to_path_buf))
        .unwrap_or_else(|| lib.clone());
    let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".to_owned());
    cc::Build::new()
        .cpp(true)
        .pic(true)
        .warnings(false)
        .std("c++17")
        .flag("-fopenmp") // without it `at::parallel_for` runs on one thread and says nothing
        .flag(format!("-D_GLIBCXX_USE_CXX11_ABI={abi}"))
        .include(root.join("include"))
        .include(root.join("include/torch/csrc/api/include"))
        .files(["src/cpp/shim.cpp", "src/cpp/buffers.cpp"])
        .compile("ferrotune_autograd");
    make_tests_find_libtorch(&lib);
}

/// Lets `cargo test`, `cargo run` and doctests of every dependent crate find libtorch with no variable set by hand: cargo puts
/// search paths below its target directory on the library path of what it starts, so a link there leads to libtorch.
#[cfg(unix)]
fn make_tests_find_libtorch(lib: &Path) {
    let Some(out) = env::var_os("OUT_DIR").map(PathBuf::from) else { return };
    let link = out.join("libtorch");
    let _ = std::fs::remove_file(&link);
    let absolute = std::fs::canonicalize(lib).unwrap_or_else(|_| lib.to_path_buf());
    if std::os::unix::fs::symlink(absolute, &link).is_ok() {
        println!("cargo:rustc-link-search=native={}", link.display());
    }
}

#[cfg(not(unix))]
fn make_tests_find_libtorch(_lib: &Path) {}
