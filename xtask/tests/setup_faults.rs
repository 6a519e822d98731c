//! `cargo xtask setup` on machines that lack something, with a false `python3` in place of the real one: no network, nothing
//! large. Each fault is told with its remedy and exit code 2, and leaves nothing that the next run trips over.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // also in the helpers of tests

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// A checkout, a cache and a folder of programs, all empty but for a `python3` that does what the test says.
struct Machine {
    folder: tempfile::TempDir,
    cache: PathBuf,
}

impl Machine {
    fn new(pip: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("a cache, große");
        fs::create_dir_all(folder.path().join("checkout/xtask")).unwrap();
        fs::create_dir_all(folder.path().join("bin")).unwrap();
        fs::create_dir_all(&cache).unwrap();
        let machine = Self { folder, cache };
        for name in ["sh", "df", "sync", "sleep", "true"] {
            let paths = ["/bin", "/usr/bin"].map(|folder| Path::new(folder).join(name));
            let path = paths.iter().find(|path| path.exists()).unwrap();
            symlink(path, machine.folder.path().join("bin").join(name)).unwrap();
        }
        machine.python(pip);
        machine
    }

    /// `$to` is the folder that a download goes to. `pip --version` always works.
    fn python(&self, pip: &str) {
        let path = self.folder.path().join("bin/python3");
        let script = format!(
            "#!/bin/sh\n[ \"$3\" = --version ] && echo pip 1 && exit 0\nfor to in \"$@\"; do :; done\n{pip}\n"
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn setup(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.arg("setup").env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env("CARGO_MANIFEST_DIR", self.folder.path().join("checkout/xtask"));
        command.env("XDG_CACHE_HOME", &self.cache).env("PATH", self.folder.path().join("bin"));
        command.env("CXX", "true");
        command
    }

    fn downloads(&self) -> PathBuf {
        self.cache.join("ferrotune/downloads")
    }

    fn leftovers(&self) -> Vec<String> {
        let entries = fs::read_dir(self.downloads()).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn refused(output: &Output, words: &[&str]) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    for word in words {
        assert!(error.contains(word), "{word:?} is not in {error}");
    }
}

#[test]
fn without_a_network() {
    let machine =
        Machine::new("echo 'WARNING: Retrying after connection broken: Network is unreachable' >&2\nexit 1");
    let output = machine.setup().output().unwrap();
    refused(
        &output,
        &["torch 2.13.0 was not fetched", "the package index was not reached", "pip config list"],
    );
    assert_eq!(machine.leftovers(), Vec::<String>::new());
}

#[test]
fn without_python_or_pip_or_a_compiler() {
    let machine = Machine::new("exit 1");
    let python = machine.folder.path().join("bin/python3");
    fs::write(&python, "#!/bin/sh\nexit 1\n").unwrap();
    refused(&machine.setup().output().unwrap(), &["python3 has no pip", "apt-get install python3-pip"]);
    fs::remove_file(&python).unwrap();
    refused(&machine.setup().output().unwrap(), &["there is no `python3`", "apt-get install python3-pip"]);
    let output = machine.setup().env_remove("CXX").output().unwrap();
    refused(&output, &["there is no C++ compiler `c++`", "apt-get install g++"]);
}

#[test]
fn a_damaged_download() {
    let machine = Machine::new("echo broken > \"$to/torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl\"");
    refused(
        &machine.setup().output().unwrap(),
        &["torch-2.13.0", "has the SHA-256", "expected", "start again"],
    );
    assert_eq!(machine.leftovers(), Vec::<String>::new());
}

#[test]
fn a_full_disk() {
    let machine = Machine::new("echo 'OSError: [Errno 28] No space left on device' >&2\nexit 1");
    refused(&machine.setup().output().unwrap(), &["the disk of", "is full", "XDG_CACHE_HOME"]);
    assert_eq!(machine.leftovers(), Vec::<String>::new());
}

/// Waits for the line that the false pip writes when it is called.
fn wait_for_pip(child: &mut Child) {
    let mut said = Vec::new();
    let stderr = child.stderr.as_mut().unwrap();
    while !said.ends_with(b"fetching\n") {
        let mut byte = [0];
        assert_eq!(stderr.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&said));
        said.push(byte[0]);
    }
}

#[test]
fn killed_while_it_downloads_and_run_again() {
    let machine = Machine::new("echo half > \"$to/half\"; echo fetching >&2; exec sleep 5");
    let mut child = machine.setup().spawn().unwrap();
    wait_for_pip(&mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(machine.leftovers().len(), 1);
    machine.python("exit 1");
    refused(&machine.setup().output().unwrap(), &["was not fetched"]);
    assert_eq!(machine.leftovers(), Vec::<String>::new());
}

#[test]
fn a_second_one_waits_for_the_first() {
    let machine = Machine::new("echo fetching >&2; read line < \"$HOME/go\"; exit 1");
    let go = machine.folder.path().join("go");
    assert!(Command::new("mkfifo").arg(&go).status().unwrap().success());
    let mut first = machine.setup().env("HOME", machine.folder.path()).spawn().unwrap();
    wait_for_pip(&mut first);
    machine.python("exit 1");
    let mut second = machine.setup().spawn().unwrap();
    let mut said = [0; 7];
    second.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"waiting");
    fs::write(&go, "go\n").unwrap();
    refused(&first.wait_with_output().unwrap(), &["was not fetched"]);
    refused(&second.wait_with_output().unwrap(), &["was not fetched"]);
}

#[test]
fn a_cache_that_cannot_be_made_or_is_named_by_a_relative_path() {
    let mut machine = Machine::new("exit 1");
    let file = machine.folder.path().join("file");
    File::create(&file).unwrap();
    machine.cache = file;
    refused(&machine.setup().output().unwrap(), &["cannot make the cache folder", "set XDG_CACHE_HOME"]);
    fs::create_dir_all(machine.folder.path().join("locked/ferrotune/setup.lock")).unwrap();
    machine.cache = machine.folder.path().join("locked");
    refused(&machine.setup().output().unwrap(), &["cannot lock", "set XDG_CACHE_HOME"]);
    machine.cache = "relative".into();
    refused(
        &machine.setup().output().unwrap(),
        &["neither XDG_CACHE_HOME (an absolute path) nor HOME is set"],
    );
    assert!(!Path::new("relative").exists());
}

#[test]
fn a_libtorch_of_the_users_that_does_not_fit() {
    let machine = Machine::new("exit 1");
    let libtorch = machine.folder.path().join("libtorch");
    let with = |value: &Path| machine.setup().env("LIBTORCH", value).output().unwrap();
    refused(&with(&libtorch), &["LIBTORCH is", "there is no lib/libtorch_cpu.so", "unset it"]);
    refused(&with(Path::new("libtorch")), &["expected an absolute path"]);
    refused(&with(Path::new("")), &["expected an absolute path"]);
    fs::create_dir_all(libtorch.join("lib")).unwrap();
    fs::create_dir_all(libtorch.join("include/torch")).unwrap();
    fs::write(libtorch.join("lib/libtorch_cpu.so"), "").unwrap();
    fs::write(libtorch.join("build-version"), "2.5.1+cu124\n").unwrap();
    refused(&with(&libtorch), &["is version 2.5.1+cu124", "2.13.0 is needed", "unset the variable"]);
    fs::write(libtorch.join("build-version"), "2.13.0+cpu\n").unwrap();
    fs::write(libtorch.join("lib/libc10.so"), "_ZN3c105ErrorC1ENS_14SourceLocationESs").unwrap();
    refused(&with(&libtorch), &["C++ ABI 0", "compiled for 1", "LIBTORCH_CXX11_ABI"]);
}
