//! Writes libtorch's place into the programs of this package, so that they also start outside cargo with no variable set.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // `torch-sys` says where its library lies, unless it was built without libtorch (its feature `doc-only`).
    let Some(lib) = env::var_os("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from) else { return };
    if env::var("CARGO_CFG_TARGET_FAMILY").is_ok_and(|family| family == "unix") {
        // Absolute, with links followed: the loader would look up a relative place from wherever the program is started.
        let lib = fs::canonicalize(&lib).unwrap_or(lib);
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    }
}
