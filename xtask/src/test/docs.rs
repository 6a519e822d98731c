//! The pages against the checkout: links lead somewhere, and commands name what exists.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Parser as _;

use super::none_wrong;
use crate::{Arguments, workspace};

/// Members outside `crates`.
const NO_LIBRARIES: [&str; 3] = ["ferrotune-examples", "ferrotune-benches", "xtask"];

pub fn check() -> Result<()> {
    let root = workspace::root();
    let mut wrong = Vec::new();
    for page in pages(&root)? {
        let text = fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
        let shown = page.strip_prefix(&root).unwrap_or(&page).display();
        let faults = faults(&page, &text, &root);
        wrong.extend(faults.into_iter().map(|(line, fault)| format!("{shown}:{line}: {fault}")));
    }
    none_wrong("the pages name what is not there", wrong)
}

/// The pages that people read: those of the root, of `docs`, and the one of each crate.
fn pages(root: &Path) -> Result<Vec<PathBuf>> {
    let mut pages: Vec<PathBuf> =
        ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| root.join(name)).into();
    for entry in fs::read_dir(root.join("docs"))? {
        pages.push(entry?.path());
    }
    for entry in fs::read_dir(root.join("crates"))? {
        pages.push(entry?.path().join("README.md"));
    }
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
    pages.sort();
    Ok(pages)
}

/// What is wrong on a page, with the number of the line.
fn faults(page: &Path, text: &str, root: &Path) -> Vec<(usize, String)> {
    let mut faults = Vec::new();
    for (number, line) in lines(text) {
        let commands: Vec<&str> = match line {
            Line::Code(line) => vec![line],
            Line::Prose(line) => {
                let (prose, spans) = without_code_spans(line);
                faults.extend(links(&prose).filter_map(|link| {
                    broken(page, text, link).map(|why| (number, format!("the link {link:?} {why}")))
                }));
                spans
            }
        };
        faults.extend(commands.into_iter().filter_map(|command| {
            let error = check_command(command, root).err()?;
            Some((number, format!("`{}`: {error:#}", command.trim())))
        }));
    }
    faults
}

enum Line<'a> {
    Prose(&'a str),
    Code(&'a str),
}

/// The lines with their numbers, told apart by the fences around code; the fences are left out.
fn lines(text: &str) -> impl Iterator<Item = (usize, Line<'_>)> {
    let mut fence: Option<&str> = None;
    (1..).zip(text.lines()).filter_map(move |(number, line)| {
        let trimmed = line.trim_start();
        let ticks = &trimmed[..trimmed.len() - trimmed.trim_start_matches('`').len()];
        match fence {
            None if ticks.len() >= 3 => fence = Some(ticks),
            Some(open) if ticks.len() >= open.len() && trimmed.trim_end() == ticks => fence = None,
            Some(_) => return Some((number, Line::Code(line))),
            None => return Some((number, Line::Prose(line))),
        }
        None
    })
}

/// The line with its code spans blanked, and the spans.
fn without_code_spans(line: &str) -> (String, Vec<&str>) {
    let parts: Vec<&str> = line.split('`').collect();
    let even = |wanted: bool| move |(index, _): &(usize, &&str)| (index % 2 == 0) == wanted;
    let prose: Vec<&str> = parts.iter().enumerate().filter(even(true)).map(|(_, part)| *part).collect();
    let spans = parts.iter().enumerate().filter(even(false)).map(|(_, part)| *part).collect();
    (prose.join("code"), spans)
}

/// Targets of `[text](target)` and of `[name]: target`.
fn links(prose: &str) -> impl Iterator<Item = &str> {
    let inline = prose.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
    let definition =
        prose.strip_prefix('[').and_then(|rest| rest.split_once("]: ")).map(|(_, target)| target.trim());
    inline.chain(definition)
}

/// Why a link does not lead anywhere, if it is one into the checkout.
fn broken(page: &Path, text: &str, link: &str) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
    let target = if path.is_empty() { page.to_path_buf() } else { page.parent()?.join(path) };
    if !path.is_empty() && !target.exists() {
        return Some("leads to no file".into());
    }
    let anchor = anchor?;
    let headings = if path.is_empty() { anchors(text) } else { anchors(&fs::read_to_string(&target).ok()?) };
    (!headings.iter().any(|heading| heading == anchor)).then(|| "leads to no heading".into())
}

/// The anchors of the headings, as GitHub makes them.
fn anchors(text: &str) -> Vec<String> {
    let mut anchors: Vec<String> = Vec::new();
    for (_, line) in lines(text) {
        let Line::Prose(line) = line else { continue };
        let Some(heading) = line.strip_prefix('#').map(|rest| rest.trim_start_matches('#')) else { continue };
        let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c));
        let anchor: String = kept.collect::<String>().to_lowercase().replace(' ', "-");
        let earlier = anchors.iter().filter(|other| **other == anchor).count();
        anchors.push(if earlier == 0 { anchor } else { format!("{anchor}-{earlier}") });
    }
    anchors
}

/// A command of ours must parse; one of cargo's must name packages, examples and benches that there are.
fn check_command(line: &str, root: &Path) -> Result<()> {
    let line = line.split([';', '|', '>', '&']).next().unwrap_or_default();
    let words = line.split_whitespace().skip_while(|word| *word == "$" || word.contains('='));
    let words: Vec<&str> = words.take_while(|word| !word.starts_with('#')).collect();
    let ["cargo", command, arguments @ ..] = words.as_slice() else { return Ok(()) };
    if *command == "xtask" {
        return match Arguments::try_parse_from(["cargo xtask"].iter().chain(arguments)) {
            Err(error) if error.use_stderr() && !arguments.is_empty() => {
                bail!("{}", error.to_string().lines().next().unwrap_or_default())
            }
            _ => Ok(()),
        };
    }
    for pair in arguments.split(|word| *word == "--").next().unwrap_or_default().windows(2) {
        let [option, name] = pair else { continue };
        let (what, places): (_, &[&str]) = match *option {
            "--example" => ("example", &["examples/examples/NAME.rs", "examples/examples/NAME/main.rs"]),
            "--bench" => ("bench", &["benches/benches/NAME.rs"]),
            "-p" | "--package" if NO_LIBRARIES.contains(name) => continue,
            "-p" | "--package" => ("package", &["crates/NAME/Cargo.toml"]),
            _ => continue,
        };
        let is_placeholder = name.chars().all(|c| c.is_uppercase() || "_-<>".contains(c));
        if !is_placeholder && !places.iter().any(|place| root.join(place.replace("NAME", name)).exists()) {
            bail!("there is no {what} {name}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults_of(text: &str) -> Vec<String> {
        let root = workspace::root();
        let faults = faults(&root.join("docs/page.md"), text, &root);
        faults.into_iter().map(|(line, fault)| format!("{line}: {fault}")).collect()
    }

    #[test]
    fn links_lead_to_files_and_headings() {
        let text =
            "# A `b` c: d\n[up](../README.md) [out](https://x.org/y) [here](#a-b-c-d)\n[r]: ../LICENSE\n";
        assert_eq!(faults_of(text), Vec::<String>::new());
        let text =
            "[a](nowhere.md) `[not](a-link)`\n[b](#nothing) [c](../README.md#no-such)\n\n[r]: gone.md\n";
        assert_eq!(
            faults_of(text),
            [
                "1: the link \"nowhere.md\" leads to no file",
                "2: the link \"#nothing\" leads to no heading",
                "2: the link \"../README.md#no-such\" leads to no heading",
                "4: the link \"gone.md\" leads to no file",
            ]
        );
    }

    #[test]
    fn code_is_no_prose_and_a_longer_fence_holds_a_shorter_one() {
        assert_eq!(faults_of("````md\n[a](gone.md)\n```\n# heading\n```\n````\n"), Vec::<String>::new());
        assert_eq!(faults_of("```\nx\n```\n[a](gone.md)\n").len(), 1);
    }

    #[test]
    fn equal_headings_get_numbers() {
        assert_eq!(
            anchors("# Use\n## Use\n```\n# no heading\n```\n### What it *does*, and why\n"),
            ["use", "use-1", "what-it-does-and-why"]
        );
    }

    #[test]
    fn commands_name_what_there_is() {
        let fine = "```console\n$ cargo xtask test graph docs # why\ncargo xtask demo && ls\nA=1 cargo run -p ferrotune-examples \
                    --example score -- --example x\ncargo test -p CRATE\ncargo build -p xtask\n```\n`cargo xtask data --record`\n";
        assert_eq!(faults_of(fine), Vec::<String>::new());
        for (command, said) in [
            ("cargo xtask demos", "demos"),
            ("cargo xtask test clipy", "clipy"),
            ("cargo xtask data --recrod", "--recrod"),
            ("cargo run --example nothing", "no example nothing"),
            ("cargo run --example xtask", "no example xtask"),
            ("cargo test -p ferrotune-nothing", "no package ferrotune-nothing"),
            ("$ RUST_LOG=x cargo bench --bench nothing", "no bench nothing"),
        ] {
            for text in [format!("```console\n{command}\n```\n"), format!("`{command}`\n")] {
                let faults = faults_of(&text);
                assert!(faults.len() == 1 && faults[0].contains(said), "{command}: {faults:?}");
            }
        }
    }
}
