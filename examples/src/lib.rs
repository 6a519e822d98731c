//! What the examples share: exit codes, arguments, devices, and a way to be interrupted.

mod warnings;

use clap::{Args, builder::RangedU64ValueParser};
use ferrotune::{
    Error, Result,
    atomic::check_writable,
    job::{Assistant, ForPrograms, default_cache_dir},
    precision::{ComputeDtype, DtypePolicy, parse_device},
    progress::Event,
};
use std::{
    fmt::Display,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

/// 0 for success, 2 where the input is at fault, 1 for anything else; the error goes to standard error.
pub fn exit_code(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("error: {error}"));
            ExitCode::from(if error.is_bad_input() { 2 } else { 1 })
        }
    }
}

/// The signal that has interrupted the program; 0: none.
static SIGNAL: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// The exit code of a program that was interrupted, as a shell has it: 130 by Ctrl-C, 143 by SIGTERM, 1 by a reader that went away. What
/// it has written is whole.
pub fn interrupted() -> ExitCode {
    complain("interrupted");
    match SIGNAL.get().map_or(0, |signal| signal.load(Ordering::Relaxed)) {
        0 => ExitCode::FAILURE,
        signal => ExitCode::from(128 + signal as u8),
    }
}

/// Runs a job that people watch or, with `json`, a program, which is told of its end if it was interrupted or failed. Either gives the exit
/// code of a job that came to its end, and `None` for one that was interrupted.
pub fn run_observed(
    json: bool,
    for_programs: impl FnOnce(&mut ForPrograms<io::Stdout>, Arc<AtomicBool>) -> Result<Option<ExitCode>>,
    for_people: impl FnOnce(Arc<AtomicBool>) -> Result<Option<ExitCode>>,
) -> ExitCode {
    let interruption = interruption();
    let result = if json {
        let mut observer = ForPrograms::new(io::stdout(), interruption.clone());
        let result = for_programs(&mut observer, interruption);
        match &result {
            Ok(Some(_)) => {}
            Ok(None) => observer.tell(&Event::Interrupted),
            Err(error) => observer.tell(&Event::Error { message: &error.to_string() }),
        }
        result
    } else {
        for_people(interruption)
    };
    match result {
        Ok(Some(code)) => code,
        Ok(None) => interrupted(),
        Err(error) => exit_code(Err(error)),
    }
}

/// Runs a program's body, and shows the libraries' warnings; a panic, which would be a bug, ends it with 1 and the panic's message.
pub fn guarded(body: impl FnOnce() -> ExitCode) -> ExitCode {
    // A write beyond `ulimit -f` then is an error like any other, and does not end the program where it stands.
    #[cfg(unix)]
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default());
    warnings::show();
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(ExitCode::FAILURE)
}

/// Prints a line. A reader that is gone (`... | head -1`) is no failure: `println!` would panic.
pub fn say(text: impl Display) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// Prints a line to standard error, whether anybody reads it or not. What a file has put into a message cannot steer the terminal.
pub fn complain(text: impl Display) {
    let mut line = String::new();
    for char in text.to_string().chars() {
        if char.is_control() && char != '\n' && char != '\t' {
            line.extend(char.escape_unicode());
        } else {
            line.push(char);
        }
    }
    let _ = writeln!(io::stderr(), "{line}");
}

/// A text as a shell reads it as one word.
pub fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+:@=,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

/// The command that this program was started with.
pub fn this_command() -> String {
    std::env::args().map(|word| shell_word(&word)).collect::<Vec<_>>().join(" ")
}

/// Sees, before the work, that the result can be written to `output` and will not replace what it is made from.
///
/// # Errors
/// [`Error::Write`].
pub fn check_output(output: &Path, input: &Path) -> Result<()> {
    check_writable(output)?;
    match (fs::canonicalize(output), fs::canonicalize(input)) {
        (Ok(same), Ok(input)) if same == input => {
            let source =
                io::Error::new(io::ErrorKind::InvalidInput, "it is the input as well; name another file");
            Err(Error::Write { path: output.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Reads an argument that counts something, from 1.
pub fn count() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

/// Reads a number of threads: libtorch takes any at its word, and one thousand million would end the program.
pub fn thread_count() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=1024)
}

/// A flag that Ctrl-C and SIGTERM raise, for the program to stop at the next safe place; the second of them ends it at once.
pub fn interruption() -> Arc<AtomicBool> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let flag = Arc::new(AtomicBool::new(false));
    let which = SIGNAL.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM] {
        // Registered first, so that it sees the flag as it was before this very signal.
        let _ = signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, flag.clone());
        let _ = signal_hook::flag::register_usize(signal, which.clone(), signal as usize);
        let _ = signal_hook::flag::register(signal, flag.clone());
    }
    flag
}

/// Makes the process one that computes: libtorch's number of threads (all cores where none is given), and large buffers kept for reuse.
pub fn prepare_to_compute(threads: Option<usize>) {
    ferrotune::autograd::reuse_buffers();
    let all = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    tch::set_num_threads(threads.unwrap_or(all) as i32);
}

/// The model that a program uses, and how it computes.
#[derive(Args, Debug)]
pub struct ModelArguments {
    /// A Hugging Face model directory or a .gguf file.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// A PEFT adapter directory.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Prompts or examples computed at one time.
    #[arg(long, default_value_t = 8, value_parser = count())]
    pub batch_size: usize,
    /// `cpu`, `cuda` or `cuda:N`.
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Threads to compute with; all cores where absent.
    #[arg(long, value_parser = thread_count())]
    pub threads: Option<usize>,
}

impl ModelArguments {
    /// As [`check_output`]; a file of the model or of the adapter is not replaced either.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn check_output(&self, output: &Path, input: &Path) -> Result<()> {
        check_output(output, input)?;
        let Ok(existing) = fs::canonicalize(output) else { return Ok(()) };
        let ours = [Some(&self.model), self.adapter.as_ref()].into_iter().flatten();
        match ours.filter_map(|path| fs::canonicalize(path).ok()).find(|path| existing.starts_with(path)) {
            Some(path) => {
                let reason =
                    format!("it is a file of {}, which is in use; name another file", path.display());
                let source = io::Error::new(io::ErrorKind::InvalidInput, reason);
                Err(Error::Write { path: output.to_owned(), source })
            }
            None => Ok(()),
        }
    }

    /// Loads the model in f32 with its tokenizer and, perhaps, the adapter.
    ///
    /// # Errors
    /// As [`Assistant::load`] and [`Assistant::load_adapter`].
    pub fn load(&self) -> Result<Assistant> {
        if !self.model.exists() {
            let source = io::Error::from(io::ErrorKind::NotFound);
            return Err(Error::Read { path: self.model.clone(), source });
        }
        let policy = DtypePolicy::for_compute(ComputeDtype::F32)?;
        let device = parse_device(&self.device)?;
        let mut assistant = Assistant::load(&self.model, device, policy, &default_cache_dir())?;
        if let Some(adapter) = &self.adapter {
            assistant.load_adapter(adapter)?;
        }
        Ok(assistant)
    }
}
