//! The programs that the project is built with.

use std::env;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Finding, State};
use crate::{process, setup, workspace};

const MINIMUM: &str = env!("CARGO_PKG_RUST_VERSION");

pub fn findings() -> Vec<Finding> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let rust =
        process::output(Command::new(rustc).arg("--version")).and_then(|text| new_enough(&text, MINIMUM));
    vec![
        Finding::needed("rust", rust),
        component("clippy"),
        component("fmt"),
        Finding::needed("compiler", setup::compiler().map(|name| version_line(&name))),
    ]
}

fn component(name: &'static str) -> Finding {
    match process::output(&mut workspace::cargo([name, "--version"])) {
        Ok(text) => Finding::new(name, State::Good, text.trim()),
        Err(_) => {
            let component = if name == "fmt" { "rustfmt" } else { name };
            Finding::new(
                name,
                State::Note,
                format!("not there; `cargo xtask test` wants it: `rustup component add {component}`"),
            )
        }
    }
}

/// The compiler's command and the first line that it says of itself.
fn version_line(command: &str) -> String {
    let mut words = command.split_whitespace();
    let said =
        words.next().and_then(|name| process::output(Command::new(name).args(words).arg("--version")).ok());
    let said = said.as_deref().and_then(|text| text.lines().next()).unwrap_or("of an unknown version");
    format!("`{command}`, {said}; compiles C++20 with OpenMP")
}

/// `rustc 1.95.0 (59807616e 2026-04-14)` against `1.90`.
fn new_enough(said: &str, minimum: &str) -> Result<String> {
    let said = said.trim();
    let number = |text: &str| {
        let mut parts = text.split(['.', '-']).map(|part| part.parse::<u64>().ok());
        Some((parts.next()??, parts.next()??))
    };
    let found = said.split(' ').nth(1).and_then(number).with_context(|| format!("rustc says {said:?}"))?;
    let wanted = number(minimum).context("the manifest states no Rust version")?;
    ensure!(found >= wanted, "{said}, and {minimum} or newer is needed: `rustup update stable`");
    Ok(format!("{said}; {minimum} or newer is needed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_rust_comes_with_the_remedy() {
        for fine in ["rustc 1.90.0 (x)", "rustc 1.95.0-nightly (x)", "rustc 2.0.0\n"] {
            assert!(new_enough(fine, "1.90").is_ok(), "{fine}");
        }
        for old in ["rustc 1.89.1 (x)", "rustc 1.9.0"] {
            let error = new_enough(old, "1.90").unwrap_err().to_string();
            assert!(error.contains("rustup update"), "{error}");
        }
        assert!(new_enough("something", "1.90").is_err());
    }

    #[test]
    fn a_compiler_is_asked_for_its_version() {
        assert!(version_line("echo GCC").starts_with("`echo GCC`, GCC --version"));
        assert!(version_line("no-such-compiler").contains("unknown version"));
    }
}
