//! The C++ compiler, asked for before anything large is downloaded.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The headers of libtorch want C++20, and its parallel loops want OpenMP.
const FLAGS: [&str; 5] = ["-std=c++20", "-fopenmp", "-fsyntax-only", "-x", "c++"];
const PROGRAM: &[u8] = b"#include <concepts>\n#include <omp.h>\ntemplate <std::integral T> T one() { return 1; }\nint main() { return one<int>() - omp_get_max_threads(); }\n";
const REMEDY: &str = "install one, for example with `apt-get install g++` or `dnf install gcc-c++`, or name yours in the variable CXX";

/// The compiler's command, tried.
pub fn check() -> Result<String> {
    let compiler =
        std::env::var("CXX").ok().filter(|name| !name.trim().is_empty()).unwrap_or_else(|| "c++".into());
    check_one(&compiler).map(|()| compiler)
}

fn check_one(compiler: &str) -> Result<()> {
    // CXX may hold a launcher before the compiler, or flags behind it.
    let mut words = compiler.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("c++"));
    command
        .args(words)
        .args(FLAGS)
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let Ok(mut child) = command.spawn() else {
        bail!("there is no C++ compiler `{compiler}`: {REMEDY}");
    };
    if let Some(mut stdin) = child.stdin.take() {
        // A compiler that fails early closes its input: its exit status tells.
        let _ = stdin.write_all(PROGRAM);
    }
    let output = child.wait_with_output().context("the C++ compiler could not be waited for")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().find(|line| line.contains("error")).unwrap_or_default();
        bail!(
            "the C++ compiler `{compiler}` does not compile C++20 with OpenMP ({said}); GCC 10 or newer does: {REMEDY}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_and_a_failing_compiler_come_with_the_remedy() {
        for (compiler, said) in [("no-such-compiler", "there is no"), ("false", "does not compile")] {
            let error = check_one(compiler).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains("apt-get install g++"), "{error}");
        }
        assert!(check_one("true --with-a-flag").is_ok());
    }
}
