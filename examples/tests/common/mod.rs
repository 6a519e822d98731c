//! Runs the example programs as processes, on a tiny model and on data that the test writes.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "test code, shared by several tests"
)]

use serde_json::Value;
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{OnceLock, mpsc},
    thread,
    time::Duration,
};
use tempfile::TempDir;

/// No program may take longer; the longest takes some seconds.
const LIMIT: Duration = Duration::from_secs(120);

/// A template with tokens of the tiny model's vocabulary.
pub const CHAT_TEMPLATE: &str = "\
{% for message in messages %}<|turn|>{{ message['role'] }}
{{ message['content'] }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|turn|>assistant
{% endif %}";

pub const RECIPE: &str = r#"
output_dir = "out"
[model]
path = "MODEL"
[data]
train = "train.jsonl"
validation = "validation.jsonl"
test = "test.jsonl"
max_length = 128
[lora]
r = 4
lora_alpha = 8
[training]
num_train_epochs = 1
per_device_train_batch_size = 2
gradient_accumulation_steps = 1
learning_rate = 1e-3
logging_steps = 1
[generation]
max_new_tokens = 6
batch_size = 2
[runtime]
threads = 1
"#;

/// The program of an example; cargo builds them before the integration tests of their package.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    // target/<profile>/deps/<test>
    let profile = test.parent().and_then(Path::parent).unwrap();
    let program = profile.join("examples").join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    assert!(
        program.is_file(),
        "{} is absent: run `cargo test -p ferrotune-examples`, or `cargo build -p ferrotune-examples --examples` first",
        program.display()
    );
    program
}

pub fn tiny_gguf() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../crates/ferrotune-models/tests/fixtures/import_tiny_llama/tiny.gguf")
}

/// The tiny model as a Hugging Face directory, made once by the `import` example. It is shared: change only a [`copy_of`] it.
pub fn model() -> &'static Path {
    static MODEL: OnceLock<PathBuf> = OnceLock::new();
    MODEL.get_or_init(|| {
        let folder = shared_folder();
        let output = folder.join("tiny");
        let gguf = tiny_gguf();
        run(
            "import",
            &folder,
            [OsStr::new("--gguf"), gguf.as_os_str(), OsStr::new("--output"), output.as_os_str()],
        )
        .succeeded();
        fs::write(output.join("chat_template.jinja"), CHAT_TEMPLATE).unwrap();
        output
    })
}

/// A new folder for what the tests of one program share. Nobody knows which of them is the last, so it stays; old ones go.
pub fn shared_folder() -> PathBuf {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("examples");
    fs::create_dir_all(&place).unwrap();
    for entry in fs::read_dir(&place).unwrap().flatten() {
        let age = entry.metadata().and_then(|metadata| metadata.modified()).map(|time| time.elapsed());
        if matches!(age, Ok(Ok(age)) if age > Duration::from_secs(3600)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    tempfile::tempdir_in(place).unwrap().keep()
}

/// An adapter of the tiny model that a run with these settings made, for several tests.
pub fn shared_adapter(settings: &[&str]) -> PathBuf {
    let job = Job::new();
    job.finetune(&[settings, &["evaluation.before=false", "evaluation.after=false"]].concat()).succeeded();
    let adapter = shared_folder().join("adapter");
    copy_of(&job.path("out/adapter"), &adapter);
    adapter
}

/// Copies a directory of files.
pub fn copy_of(directory: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// How a program ended and what it said.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    #[track_caller]
    pub fn succeeded(&self) -> &Self {
        self.ended_with(0)
    }

    /// The exit code is as expected, and in no case that of a panic.
    #[track_caller]
    pub fn ended_with(&self, code: i32) -> &Self {
        assert!(!self.stderr.contains("panicked"), "a panic: {self}");
        assert_eq!(self.code, Some(code), "{self}");
        self
    }

    /// The program refused its input and said each of these things about it.
    #[track_caller]
    pub fn refused(&self, words: &[&str]) -> &Self {
        self.ended_with(2);
        for words in words {
            assert!(self.stderr.contains(words), "{words:?} is not in: {self}");
        }
        self
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { code, stdout, stderr } = self;
        write!(f, "exit code {code:?}\n--- standard output\n{stdout}\n--- standard error\n{stderr}")
    }
}

/// An example program that is to run in `folder`.
pub fn command<I: IntoIterator<Item: AsRef<OsStr>>>(name: &str, folder: &Path, arguments: I) -> Command {
    let mut command = Command::new(program(name));
    command
        .args(arguments)
        .current_dir(folder)
        .env("XDG_CACHE_HOME", folder.join("cache"))
        // Idle threads of one program must not take the cores from another.
        .env("GOMP_SPINCOUNT", "0")
        .stdin(Stdio::null());
    command
}

pub fn run<I: IntoIterator<Item: AsRef<OsStr>>>(name: &str, folder: &Path, arguments: I) -> Run {
    let mut command = command(name, folder, arguments);
    finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

/// Reads what a program says until it ends.
pub fn finish(child: Child) -> Run {
    let pid = child.id();
    let (done, is_done) = mpsc::channel::<()>();
    let watch = thread::spawn(move || {
        if is_done.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
            signal(pid, "KILL");
        }
    });
    let output = child.wait_with_output().unwrap();
    drop(done);
    watch.join().unwrap();
    Run {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Sends a signal; the shell has `kill` built in.
pub fn signal(pid: u32, name: &str) {
    let _ = Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).stderr(Stdio::null()).status();
}

/// Runs a shell script in the job's folder, in a name space of its own where `disk` is a file system of `kib` KiB; `None`, and a word about
/// it, where this system does not let us mount one.
#[cfg(target_os = "linux")]
pub fn on_small_disk(job: &Job, kib: u32, script: &str) -> Option<Run> {
    let mount = format!("mount -t tmpfs -o size={kib}k tmpfs disk");
    fs::create_dir_all(job.path("disk")).unwrap();
    let try_as = |options: &str, script: &str| {
        let mut command = Command::new("unshare");
        command.args([options, "sh", "-c", &format!("{mount} && {script}")]).current_dir(job.folder());
        command.env("XDG_CACHE_HOME", job.path("cache")).env("GOMP_SPINCOUNT", "0");
        command
    };
    let works = |options: &&str| try_as(options, "true").output().is_ok_and(|run| run.status.success());
    // The first as root, the second where everybody may have a name space.
    let Some(options) = ["-m", "-rm"].into_iter().find(works) else {
        eprintln!("skipped: this system allows no mount");
        return None;
    };
    let output = try_as(options, script).output().unwrap();
    Some(Run {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    })
}

/// Every file of `disk` as the job's folder then has it in `found`; the exit code is that of what ran before.
#[cfg(target_os = "linux")]
pub const COPY_OUT: &str = "code=$?; rm -rf found; cp -r disk found; exit $code";

/// A folder with data, a recipe and what the programs write.
pub struct Job {
    folder: TempDir,
}

impl Job {
    /// Four examples to train on, two to validate and three to test on.
    pub fn new() -> Self {
        let job = Self { folder: tempfile::tempdir().unwrap() };
        job.write_examples(
            "train.jsonl",
            &[
                ("the cat sat on the mat", "one two three"),
                ("the dog sat on the log", "123 and 4567, then a longer answer"),
                ("return value", "for (i = 0; i < 10; i++)"),
                ("were they sleeping while the cat sat on the mat?", "they were"),
            ],
        );
        job.write_examples(
            "validation.jsonl",
            &[("the dog", "sat on the mat"), ("the cat", "sat on the log")],
        );
        job.write_examples(
            "test.jsonl",
            &[
                ("and the dog?", "the log"),
                ("the mat & the cat \"sat\"", "the log and the mat"),
                ("one two three", "4567"),
            ],
        );
        job.write("recipe.toml", RECIPE.replace("MODEL", model().to_str().unwrap()));
        job
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        fs::write(self.path(name), contents).unwrap();
    }

    pub fn write_examples(&self, name: &str, examples: &[(&str, &str)]) {
        let line = |(instruction, output): &(&str, &str)| {
            format!("{}\n", serde_json::json!({ "instruction": instruction, "output": output }))
        };
        self.write(name, examples.iter().map(line).collect::<String>());
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.read(name)).unwrap()
    }

    pub fn json_lines(&self, name: &str) -> Vec<Value> {
        json_lines(&self.read(name))
    }

    /// A copy of the tiny model that this test may change.
    pub fn own_model(&self) -> PathBuf {
        let own = self.path("model");
        if !own.exists() {
            copy_of(model(), &own);
            self.write("recipe.toml", RECIPE.replace("MODEL", "model"));
        }
        own
    }

    pub fn run(&self, name: &str, arguments: &[&str]) -> Run {
        run(name, self.folder(), arguments)
    }

    /// Runs `recipe.toml` with `--set` for each of the settings.
    pub fn finetune(&self, settings: &[&str]) -> Run {
        self.run("finetune", &self.finetune_arguments(settings))
    }

    pub fn finetune_arguments<'a>(&self, settings: &[&'a str]) -> Vec<&'a str> {
        let mut arguments = vec!["recipe.toml"];
        arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        arguments
    }

    /// `--model` with the tiny model, or with this test's copy of it where there is one, and what else is given.
    pub fn tool(&self, name: &str, arguments: &[&str]) -> Run {
        let own = self.path("model");
        let model = if own.exists() { own.as_path() } else { model() };
        let model = model.to_str().unwrap();
        self.run(name, &[&["--model", model, "--threads", "1"], arguments].concat())
    }
}

pub fn json_lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect()
}

/// Every file under a folder with its bytes; folders have none.
pub fn snapshot(folder: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files.insert(path.clone(), None);
                folders.push(path);
            } else {
                // A link that leads nowhere has no bytes.
                files.insert(path.clone(), fs::read(&path).ok());
            }
        }
    }
    files
}

/// The number at a path such as `/train/seconds`, which is finite.
#[track_caller]
pub fn number(json: &Value, pointer: &str) -> f64 {
    let value = json.pointer(pointer).unwrap_or_else(|| panic!("{pointer} is not in {json:#}"));
    let number = value.as_f64().unwrap_or_else(|| panic!("{pointer} is {value}"));
    assert!(number.is_finite(), "{pointer}");
    number
}
