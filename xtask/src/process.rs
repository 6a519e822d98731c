//! Child processes: shown, timed, and with an error that says what to run again.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

/// The command as a person would type it.
pub fn shown(command: &Command) -> String {
    let word = |word: &std::ffi::OsStr| {
        let word = word.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:+,@%".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word.into_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    let program = std::path::Path::new(command.get_program());
    let program = program.file_name().unwrap_or(command.get_program());
    std::iter::once(program).chain(command.get_args()).map(word).collect::<Vec<_>>().join(" ")
}

/// Runs a command on our own terminal; an error if it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// Standard output of a command; an error with its standard error if it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed ({}): {}", shown(command), output.status, error.trim());
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{}` printed something else than UTF-8", shown(command)))
}

/// Runs a command on our own terminal, and keeps what it wrote to standard error, to tell why it failed.
pub fn run_keeping_errors(command: &mut Command) -> Result<(ExitStatus, String)> {
    let context = format!("cannot start `{}`", shown(command));
    let mut child = command.stderr(Stdio::piped()).spawn().context(context)?;
    let mut kept = String::new();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            eprintln!("{line}");
            kept.push_str(&line);
            kept.push('\n');
        }
    }
    Ok((child.wait()?, kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_it_would_be_typed() {
        let mut command = Command::new("/usr/bin/cargo");
        command.args(["test", "a b", "it's", "--set=x.y", ""]);
        assert_eq!(shown(&command), r"cargo test 'a b' 'it'\''s' --set=x.y ''");
    }

    #[test]
    fn errors_are_kept() {
        let (status, kept) =
            run_keeping_errors(Command::new("sh").args(["-c", "echo why >&2; exit 3"])).unwrap();
        assert_eq!(status.code(), Some(3));
        assert_eq!(kept, "why\n");
        assert!(
            output(Command::new("sh").args(["-c", "echo why >&2; exit 3"]))
                .unwrap_err()
                .to_string()
                .contains("why")
        );
    }
}
