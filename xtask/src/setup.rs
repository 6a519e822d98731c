//! `cargo xtask setup`: libtorch and the demo model, made once in the cache and linked into the checkout.
//!
//! Afterwards plain cargo commands find both: `.cargo/config.toml` points `LIBTORCH` to the link `.libtorch`.

mod compiler;
mod libtorch;
mod model;
mod unpack;
mod wheel;

use std::fs;
use std::path::Path;

use anyhow::Result;

pub use model::Model;

use crate::{files, workspace};

/// Links in the checkout, ignored by git, into the cache.
const LIBTORCH_LINK: &str = ".libtorch";
const MODELS_LINK: &str = ".models";
const DATA_LINK: &str = ".data";

/// Provides everything that the build and the tests need, and returns where the demo model is.
///
/// # Errors
/// With the remedy: something is missing on this machine, or could not be fetched.
pub fn run() -> Result<Model> {
    let cache = workspace::cache()?;
    compiler::check()?;
    let _lock = files::Lock::acquire(&cache, "setup")?;
    libtorch::provide(&cache)?;
    let model = model::provide(&cache)?;
    link(MODELS_LINK, &cache.join("models"))?;
    link_data(&cache)?;
    Ok(model)
}

/// Makes `.data`, so that recipes can name the demo data from the root of the checkout.
pub fn link_data(cache: &Path) -> Result<()> {
    link(DATA_LINK, &cache.join("data"))
}

fn link(name: &str, target: &Path) -> Result<()> {
    if name != LIBTORCH_LINK {
        fs::create_dir_all(target)?;
    }
    files::link(&workspace::root().join(name), target)
}
