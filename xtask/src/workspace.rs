//! Where things are: the checkout, the cache, the cargo that started us.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Root of the checkout.
pub fn root() -> PathBuf {
    // The variable of the run wins over that of the build: a target folder may be shared by several checkouts.
    let manifest_dir = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let manifest_dir = PathBuf::from(manifest_dir);
    manifest_dir.parent().map(Path::to_path_buf).unwrap_or(manifest_dir)
}

/// `$XDG_CACHE_HOME/ferrotune`, else `~/.cache/ferrotune`; made if absent.
pub fn cache() -> Result<PathBuf> {
    let folder = cache_path(env::var_os("XDG_CACHE_HOME"), env::var_os("HOME"))?;
    std::fs::create_dir_all(&folder).with_context(|| {
        format!(
            "cannot make the cache folder {}; set XDG_CACHE_HOME to a folder you can write",
            folder.display()
        )
    })?;
    Ok(folder)
}

fn cache_path(xdg_cache_home: Option<OsString>, home: Option<OsString>) -> Result<PathBuf> {
    // The XDG rules: a relative or empty path is to be ignored.
    let folder = xdg_cache_home.map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = folder
        .or_else(|| home.filter(|home| !home.is_empty()).map(|home| PathBuf::from(home).join(".cache")));
    let folder =
        folder.context("neither XDG_CACHE_HOME (an absolute path) nor HOME is set: set one of them")?;
    ensure!(folder.is_absolute(), "HOME is not an absolute path: {}", folder.display());
    Ok(folder.join("ferrotune"))
}

/// The cargo that runs us, started in the root of the checkout.
pub fn cargo<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = program(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments);
    command
}

/// A program, started in the root of the checkout as the user's shell would start it.
pub fn program(name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(name);
    command.current_dir(root());
    // What `cargo run` set for this program is about this package and must not leak into the next cargo.
    for (name, _) in env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
        {
            command.env_remove(name);
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_xdg_says() {
        let path =
            |xdg: Option<&str>, home: Option<&str>| cache_path(xdg.map(Into::into), home.map(Into::into));
        assert_eq!(path(Some("/x"), Some("/home/a")).unwrap(), Path::new("/x/ferrotune"));
        assert_eq!(path(None, Some("/home/a")).unwrap(), Path::new("/home/a/.cache/ferrotune"));
        assert_eq!(path(Some(""), Some("/home/a")).unwrap(), Path::new("/home/a/.cache/ferrotune"));
        assert_eq!(path(Some("relative"), Some("/home/a")).unwrap(), Path::new("/home/a/.cache/ferrotune"));
        assert!(path(None, None).is_err());
        assert!(path(None, Some("home")).is_err());
    }
}
