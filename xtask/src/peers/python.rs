//! The Python side: an interpreter with pinned packages, made once in the cache, and its programs in `xtask/peers`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use super::{BadInput, child};
use crate::{files, process, setup, workspace};

const REQUIREMENTS: &str = include_str!("../../peers/requirements.txt");
/// The environment, in the folder of the cache.
const ENVIRONMENT: &str = "venv";
/// In the environment, once all packages are in it; holds the requirements that it was made from.
const MARK: &str = "ferrotune-requirements.txt";
/// torch's wheels carry CUDA: what pip downloads, and what it makes of it.
const NEEDED_BYTES: u64 = 12_000_000_000;

pub struct Python {
    interpreter: PathBuf,
    /// What libraries may write into.
    scratch: PathBuf,
    is_given: bool,
}

impl Python {
    /// The interpreter `given`, else that of an environment in `cache`, which is made unless it is there, whole.
    ///
    /// # Errors
    /// [`BadInput`], with the remedy: something is missing on this machine, or could not be fetched.
    pub fn provide(cache: &Path, given: Option<&Path>) -> Result<Self> {
        let folder = cache.join("peers");
        let scratch = folder.join("scratch");
        fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
        let interpreter = match given {
            // Not canonical: the link is what makes the environment.
            Some(path) => std::path::absolute(path)?,
            None => environment(&folder).map_err(|error| anyhow!(BadInput(format!("{error:#}"))))?,
        };
        Ok(Self { interpreter, scratch, is_given: given.is_some() })
    }

    /// A program of `xtask/peers` on so many threads.
    pub fn program(&self, name: &str, threads: usize) -> Command {
        let mut command = workspace::program(&self.interpreter);
        command.arg(programs().join(name));
        command.env("OMP_NUM_THREADS", threads.to_string());
        command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", &self.scratch);
        // A processor is measured, and nothing is told to anybody.
        command.env("CUDA_VISIBLE_DEVICES", "").env("HF_HUB_DISABLE_TELEMETRY", "1");
        command
    }

    /// The versions of what is compared; with it the packages are compiled, and in memory.
    ///
    /// # Errors
    /// [`BadInput`] if something cannot be imported.
    pub fn versions(&self, threads: usize, log: &Path) -> Result<Value> {
        let told =
            child::run(&mut self.program("versions.py", threads), log).and_then(|it| it.done("").cloned());
        told.map_err(|error| {
            let interpreter = self.interpreter.display();
            let remedy = if self.is_given {
                format!(
                    "`{interpreter} -m pip install -r xtask/peers/requirements.txt`, or leave out `--python`"
                )
            } else {
                format!("remove {} and start again", self.scratch.with_file_name(ENVIRONMENT).display())
            };
            anyhow!(BadInput(format!("{interpreter} cannot import what is compared: {remedy}: {error:#}")))
        })
    }
}

fn programs() -> PathBuf {
    workspace::root().join("xtask/peers")
}

fn environment(folder: &Path) -> Result<PathBuf> {
    let _lock = files::Lock::acquire(folder, "environment")?;
    let environment = folder.join(ENVIRONMENT);
    let interpreter = environment.join("bin/python");
    let mark = environment.join(MARK);
    let is_whole = fs::read_to_string(&mark).is_ok_and(|text| text == REQUIREMENTS)
        && runs(&interpreter, &["-c", "import torch"]);
    if is_whole {
        return Ok(interpreter);
    }
    check_python()?;
    if let Some(free) = files::free_space(folder).filter(|free| *free < NEEDED_BYTES) {
        bail!(
            "{:.1} GB are free at {}, and the Python packages need {:.0} GB while they are installed: free some, set \
             XDG_CACHE_HOME to a folder on another disk, or name an interpreter that has them with `--python`",
            free as f64 / 1e9,
            folder.display(),
            NEEDED_BYTES as f64 / 1e9
        );
    }
    // An environment cannot be moved, so it is made in its place, and what an interrupted set-up left is removed: half a
    // package may look like a whole one. What was downloaded is still in pip's own cache.
    files::remove(&environment)?;
    let temporary = folder.join("temporary");
    files::remove(&temporary)?;
    fs::create_dir_all(&temporary)?;
    eprintln!("peers: making {}", environment.display());
    let mut command = Command::new("python3");
    command.args(["-m", "venv"]).arg(&environment).stdout(Stdio::null());
    let (status, _) = process::run_keeping_errors(&mut command)?;
    if !status.success() || !runs(&interpreter, &["-m", "pip", "--version"]) {
        bail!(
            "python3 cannot make a virtual environment with pip: `apt-get install python3-venv`, or name an interpreter that \
             has the packages of xtask/peers/requirements.txt with `--python`"
        );
    }
    eprintln!("peers: installing {}", REQUIREMENTS.trim().replace('\n', " "));
    let mut command = Command::new(&interpreter);
    command.args(["-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--requirement"]);
    command.arg(programs().join("requirements.txt"));
    // /tmp is in memory on many machines.
    command.env("TMPDIR", &temporary).stdout(Stdio::null());
    let (status, errors) = process::run_keeping_errors(&mut command)?;
    files::remove(&temporary)?;
    if !status.success() {
        bail!("the Python packages were not installed: {}", setup::pip_remedy(&errors, folder));
    }
    files::write(&mark, REQUIREMENTS.as_bytes())?;
    Ok(interpreter)
}

fn check_python() -> Result<()> {
    if !runs(Path::new("python3"), &["-c", "import venv"]) {
        bail!(
            "there is no `python3` with the module venv: `apt-get install python3-venv`, or name an interpreter that has the \
             packages of xtask/peers/requirements.txt with `--python`"
        );
    }
    Ok(())
}

fn runs(program: &Path, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
