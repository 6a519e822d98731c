//! `cargo xtask setup`: libtorch and the demo model, made once in the cache and linked into the checkout.
//!
//! Afterwards plain cargo commands find both: `.cargo/config.toml` points `LIBTORCH` to the link `.libtorch`.

mod compiler;
mod libtorch;
mod model;
mod unpack;
mod wheel;

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

pub use compiler::check as compiler;
pub use libtorch::examine as libtorch;
pub use model::Model;
pub use wheel::{check_pip as pip, remedy as pip_remedy};

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
    provide().context(NotReady)
}

/// Marks errors whose cause is the machine, or what its user has set.
#[derive(Debug)]
pub struct NotReady;

impl fmt::Display for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the set-up is not complete")
    }
}

fn provide() -> Result<Model> {
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
