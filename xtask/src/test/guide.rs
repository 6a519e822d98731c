//! The guide for newcomers, run as it stands: each `console` block of docs/getting-started.md in a shell, from top to bottom.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::{files, process, workspace};

const GUIDE: &str = "docs/getting-started.md";
/// All that the guide makes; its first step has to find nothing of an earlier walk.
const MAKES: &str = "runs/guide";

pub fn run() -> Result<()> {
    let root = workspace::root();
    let text = fs::read_to_string(root.join(GUIDE)).with_context(|| format!("cannot read {GUIDE}"))?;
    let blocks = console_blocks(&text);
    ensure!(!blocks.is_empty(), "{GUIDE} has no console block");
    let made = root.join(MAKES);
    let remove = || files::remove(&made).with_context(|| format!("cannot remove {MAKES}"));
    remove()?;
    fs::create_dir_all(&made).with_context(|| format!("cannot make {MAKES}"))?;
    for block in blocks {
        println!("{}", block.commands.trim_end());
        let mut shell = workspace::program("bash");
        shell.args(["-euo", "pipefail", "-c", block.commands.as_str()]);
        process::run(&mut shell)
            .with_context(|| format!("{GUIDE}:{}: a command of this block failed", block.line))?;
    }
    remove()
}

/// A fenced block of commands, and the line of its fence.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    line: usize,
    commands: String,
}

fn console_blocks(markdown: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = markdown.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let body = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```");
            let commands = body.map(|line| format!("{line}\n")).collect();
            if language == "console" {
                blocks.push(Block { line: index + 1, commands });
            }
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_console_blocks_are_commands() {
        let markdown =
            "# A\n\n```console\necho a\necho b\n```\n\n```text\nconsole\n```\n```console\necho c\n```\n";
        let block = |line, commands: &str| Block { line, commands: commands.into() };
        assert_eq!(console_blocks(markdown), [block(3, "echo a\necho b\n"), block(11, "echo c\n")]);
    }

    #[test]
    fn the_guide_has_commands() {
        let text = fs::read_to_string(workspace::root().join(GUIDE)).unwrap();
        assert!(console_blocks(&text).len() >= 6);
    }
}
