//! Each library as someone uses it who takes it alone: a project of its own outside the workspace, whose program is the
//! first one of the crate's page, built with what the page says and run.
//!
//! The projects share the lock file, the profile and the target folder of the workspace, so that libtorch's bindings
//! are not compiled again.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{PROFILE, metadata};
use crate::{process, workspace};

pub fn check() -> Result<()> {
    let metadata = metadata()?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let target = metadata["target_directory"].as_str().context("cargo metadata has no target folder")?;
    let crates = workspace::root().join("crates");
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    for package in packages {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
        let Some(source) = manifest.parent().filter(|folder| folder.starts_with(&crates)) else { continue };
        let name = package["name"].as_str().unwrap_or_default();
        one(name, package, source, &folder.path().join(name), Path::new(target))
            .with_context(|| format!("the program of {}/README.md", source.display()))?;
    }
    Ok(())
}

fn one(name: &str, package: &Value, source: &Path, project: &Path, target: &Path) -> Result<()> {
    let page = fs::read_to_string(source.join("README.md")).context("cannot read it")?;
    let program = first_program(&page, source).context("there is none: no block of Rust")?;
    let binary = format!("alone-{name}");
    fs::create_dir_all(project.join("src"))?;
    fs::write(project.join("src/main.rs"), &program.code)?;
    fs::write(project.join("Cargo.toml"), project_manifest(&binary, package, source, &program.code))?;
    fs::copy(workspace::root().join("Cargo.lock"), project.join("Cargo.lock"))?;

    // In the project's folder, the settings of the workspace do not reach cargo.
    let mut cargo = workspace::cargo([if program.runs { "run" } else { "build" }, "--quiet"]);
    cargo.args(PROFILE).env_remove("LD_LIBRARY_PATH");
    cargo.arg("--target-dir").arg(target).current_dir(project).stdout(Stdio::null());
    let uses_libtorch = depends_on(package, "tch");
    if !uses_libtorch {
        cargo.env("LIBTORCH", "/nonexistent").env_remove("LIBTORCH_USE_PYTORCH");
    }
    println!("  {name}: {}", if program.runs { "build and run" } else { "build" });
    process::run(&mut cargo)?;
    // Started by itself, a program finds the libraries as those of `tch` do.
    if let (true, true, Some(libtorch)) = (program.runs, uses_libtorch, env::var_os("LIBTORCH")) {
        let mut started = workspace::program(target.join("debug").join(&binary));
        started.env("LD_LIBRARY_PATH", PathBuf::from(libtorch).join("lib")).current_dir(project);
        process::run(started.stdout(Stdio::null()))?;
    }
    Ok(())
}

struct Program {
    code: String,
    /// The page does not say `no_run`.
    runs: bool,
}

/// The first block of Rust on a page, made whole as rustdoc does it. Files of the crate's tests are those in `source`.
fn first_program(page: &str, source: &Path) -> Option<Program> {
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(language) = line.strip_prefix("```") else { continue };
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let mut words = language.split(',');
        if language.is_empty() || words.clone().any(|word| word == "rust" || word == "no_run") {
            let shown = block.iter().map(|line| line.strip_prefix("# ").unwrap_or(line));
            let code = shown.filter(|line| *line != "#").collect::<Vec<_>>().join("\n");
            let code =
                code.replace("env!(\"CARGO_MANIFEST_DIR\")", &format!("{:?}", source.display().to_string()));
            return Some(Program { code: whole(&code), runs: words.all(|word| word != "no_run") });
        }
    }
    None
}

fn whole(code: &str) -> String {
    if code.contains("fn main()") {
        code.to_string()
    } else if code.trim_end().ends_with("(())") {
        format!(
            "fn main() {{\nfn inner() -> Result<(), impl std::fmt::Debug> {{\n{code}\n}}\ninner().unwrap()\n}}\n"
        )
    } else {
        format!("fn main() {{\n{code}\n}}\n")
    }
}

/// Depends on the crate by its path, and on those of the crate's own dependencies that the program names.
fn project_manifest(binary: &str, package: &Value, source: &Path, code: &str) -> String {
    let name = package["name"].as_str().unwrap_or_default();
    let mut manifest = format!(
        "[package]\nname = {binary:?}\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n[dependencies]\n{name} = {{ path = {:?} }}\n",
        source.display().to_string()
    );
    let mut named: Vec<String> = dependencies(package)
        .filter(|it| {
            code.contains(&format!("{}::", it["name"].as_str().unwrap_or_default().replace('-', "_")))
        })
        .map(|it| match it["path"].as_str() {
            Some(path) => format!("{} = {{ path = {path:?} }}\n", it["name"].as_str().unwrap_or_default()),
            None => format!("{} = {}\n", it["name"].as_str().unwrap_or_default(), it["req"]),
        })
        .collect();
    named.sort();
    named.dedup();
    manifest.extend(named);
    manifest
}

fn dependencies(package: &Value) -> impl Iterator<Item = &Value> {
    package["dependencies"].as_array().into_iter().flatten()
}

fn depends_on(package: &Value, name: &str) -> bool {
    dependencies(package).any(|dependency| dependency["name"] == name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn program(page: &str) -> Option<(String, bool)> {
        first_program(page, Path::new("/c")).map(|program| (program.code, program.runs))
    }

    #[test]
    fn the_first_block_of_rust_is_the_program() {
        let page = "```toml\nx = 1\n```\ntext\n```rust,no_run\nfn main() {}\n```\n```rust\nother\n```\n";
        assert_eq!(program(page), Some(("fn main() {}".into(), false)));
        assert_eq!(program("```text\nfn main() {}\n```\n"), None);
    }

    #[test]
    fn a_part_of_a_program_is_made_whole_with_its_hidden_lines() {
        let page = "```\n# use a::b;\n#\nb(env!(\"CARGO_MANIFEST_DIR\"))?;\n# Ok::<(), a::E>(())\n```\n";
        let (code, runs) = program(page).unwrap();
        assert!(runs && code.contains("use a::b;\nb(\"/c\")?;\nOk::<(), a::E>(())\n}"), "{code}");
        assert_eq!(program("```rust\nlet x = 1;\n```\n").unwrap().0, "fn main() {\nlet x = 1;\n}\n");
    }

    #[test]
    fn the_project_depends_on_the_crate_and_on_what_its_program_names() {
        let package = json!({ "name": "ours", "dependencies": [
            { "name": "tch", "req": "^0.26" },
            { "name": "serde", "req": "^1" },
            { "name": "our-other", "req": "^0.1", "path": "/c/other" },
            { "name": "our-other", "req": "^0.1", "path": "/c/other" },
        ] });
        let code = "use our_other::X; tch::Tensor::new();";
        let manifest = project_manifest("alone", &package, Path::new("/c/ours"), code);
        let dependencies = manifest.split_once("[dependencies]\n").unwrap().1;
        assert_eq!(
            dependencies,
            "ours = { path = \"/c/ours\" }\nour-other = { path = \"/c/other\" }\ntch = \"^0.26\"\n"
        );
        assert!(manifest.contains("[workspace]\n"));
        assert!(depends_on(&package, "tch") && !depends_on(&package, "torch"));
    }
}
