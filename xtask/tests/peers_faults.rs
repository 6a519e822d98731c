//! `cargo xtask peers` on machines that lack something, with a false `python3` in place of the real one: no network, nothing
//! large. Each fault is told with its remedy and exit code 2, and a set-up that was not finished is done again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // also in the helpers of tests

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// What `python3 -m venv FOLDER` does: an interpreter whose pip does what the test says, and whose programs all end well.
const MAKE_ENVIRONMENT: &str = r#"
[ "$2" = venv ] || exit 0
mkdir -p "$3/bin"
cp "$HOME/bin/environment-python" "$3/bin/python"
"#;

/// A checkout, a cache and a folder of programs, all empty but for the false Python.
struct Machine {
    folder: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let machine = Self { folder: tempfile::tempdir().unwrap() };
        for folder in ["checkout/xtask", "bin", "cache"] {
            fs::create_dir_all(machine.path(folder)).unwrap();
        }
        for name in ["sh", "sync", "mkdir", "cp"] {
            let paths = ["/bin", "/usr/bin"].map(|folder| Path::new(folder).join(name));
            let path = paths.iter().find(|path| path.exists()).unwrap();
            symlink(path, machine.path("bin").join(name)).unwrap();
        }
        machine.disk(100_000_000);
        machine.script("python3", MAKE_ENVIRONMENT);
        machine.pip("exit 0");
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn script(&self, name: &str, script: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// What `df` says is free.
    fn disk(&self, kibibytes: u64) {
        self.script("df", &format!("echo head; echo disk 1 1 {kibibytes} 1% /"));
    }

    /// What `pip install` does in the environment; each is written down.
    fn pip(&self, install: &str) {
        let script = format!(
            r#"[ "$2" = pip ] && [ "$3" = install ] && {{ echo install >> "$HOME/installs"; {install}; }}
[ "$1" = -c ] || [ "$2" = pip ] || echo '{{"event":"done"}}'"#
        );
        self.script("environment-python", &script);
    }

    fn installs(&self) -> usize {
        fs::read_to_string(self.path("installs")).unwrap_or_default().lines().count()
    }

    fn peers(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.arg("peers").arg("--out").arg(self.path("out")).args(arguments).env_clear();
        command.stdin(Stdio::null());
        command.env("CARGO_MANIFEST_DIR", self.path("checkout/xtask"));
        command.env("XDG_CACHE_HOME", self.path("cache")).env("PATH", self.path("bin"));
        // Beyond Python, the first thing that is missing on this machine is a compiler.
        command.env("HOME", self.folder.path());
        command.output().unwrap()
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
fn arguments_that_do_not_go_together_or_name_no_file() {
    let machine = Machine::new();
    refused(&machine.peers(&["--train", "a.jsonl"]), &["--test <FILE>"]);
    refused(&machine.peers(&["--repeats", "0"]), &["--repeats", "0 is not in 1.."]);
    refused(&machine.peers(&["--only", "everything"]), &["everything", "training, generation, linear"]);
    let test = machine.path("test.jsonl");
    fs::write(&test, "{}").unwrap();
    let with =
        |train: &Path| machine.peers(&["--train", train.to_str().unwrap(), "--test", test.to_str().unwrap()]);
    refused(&with(&machine.path("train.jsonl")), &["cannot read", "train.jsonl: No such file"]);
    refused(&with(&machine.path("bin")), &["bin is not a file", "JSONL"]);
    assert_eq!(machine.installs(), 0);
}

#[test]
fn a_folder_for_the_results_that_cannot_be_made() {
    let machine = Machine::new();
    fs::write(machine.path("out"), "").unwrap();
    refused(&machine.peers(&[]), &["cannot make", "out/logs"]);
}

#[test]
fn no_python_or_one_without_environments_or_without_room() {
    let machine = Machine::new();
    machine.script("python3", r#"[ "$1" = -c ] || { echo 'ensurepip is not available'; exit 1; }"#);
    refused(&machine.peers(&[]), &["cannot make a virtual environment", "python3-venv", "--python"]);
    fs::remove_file(machine.path("bin/python3")).unwrap();
    refused(&machine.peers(&[]), &["there is no `python3`", "python3-venv", "--python"]);
    machine.script("python3", MAKE_ENVIRONMENT);
    machine.disk(1_000_000);
    refused(&machine.peers(&[]), &["1.0 GB are free", "XDG_CACHE_HOME", "--python"]);
    assert_eq!(machine.installs(), 0);
}

#[test]
fn an_installation_that_fails_is_done_again_and_one_that_succeeds_is_not() {
    let machine = Machine::new();
    machine.pip("echo 'WARNING: Retrying: Network is unreachable' >&2; exit 1");
    refused(&machine.peers(&[]), &["were not installed", "the package index was not reached"]);
    machine.pip("exit 0");
    for _ in 0..2 {
        refused(&machine.peers(&[]), &["the set-up is not complete", "compiler"]);
    }
    assert_eq!(machine.installs(), 2);
    // A mark that was made from other requirements is none.
    let mark = machine.path("cache/ferrotune/peers/venv/ferrotune-requirements.txt");
    fs::write(&mark, "torch==1.0\n").unwrap();
    refused(&machine.peers(&[]), &["the set-up is not complete"]);
    assert_eq!(machine.installs(), 3);
}

#[test]
fn an_interpreter_that_lacks_the_packages() {
    let machine = Machine::new();
    machine.script("theirs", "echo \"ModuleNotFoundError: No module named 'trl'\" >&2; exit 1");
    let theirs = machine.path("bin/theirs");
    let theirs = theirs.to_str().unwrap();
    refused(
        &machine.peers(&["--python", theirs]),
        &["theirs -m pip install -r xtask/peers/requirements.txt", "No module named 'trl'"],
    );
    refused(&machine.peers(&["--python", "/no/such/python"]), &["/no/such/python", "cannot start"]);
    assert_eq!(machine.installs(), 0);
}
