//! Python's regular expressions, as far as linear-time matching can express them.
//!
//! PEFT matches module names with Python's `re`. This module translates a pattern to the syntax of the `regex` crate where the two
//! write the same thing differently, and refuses what has no counterpart (look-around, back-references) or would mean
//! something else (possessive quantifiers, set operations), so that a pattern never matches other modules than it does in Python.

use crate::error::{Error, Result};
use regex::Regex;
use std::iter::Peekable;
use std::str::CharIndices;

/// `re.fullmatch(pattern, path)`.
pub(crate) fn full_match(key: &str, pattern: &str) -> Result<Regex> {
    let translated = translate(pattern, true).map_err(|reason| refuse(key, pattern, reason))?;
    compile(key, pattern, &translated, format!(r"\A(?:{translated})\z"))
}

/// `re.match(rf"(.*\.)?({pattern})$", path)`: how PEFT matches the keys of `rank_pattern` and `alpha_pattern`.
pub(crate) fn suffix_match(key: &str, pattern: &str) -> Result<Regex> {
    let translated = translate(pattern, false).map_err(|reason| refuse(key, pattern, reason))?;
    compile(key, pattern, &translated, format!(r"\A(?:(?:.*\.)?(?:{translated}))\z"))
}

/// `re.match(rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.", path)`: how PEFT finds a layer's number. The pattern stands without a group
/// around it, as there.
pub(crate) fn layer_index(key: &str, pattern: &str) -> Result<Regex> {
    let translated = translate(pattern, false).map_err(|reason| refuse(key, pattern, reason))?;
    compile(key, pattern, &translated, format!(r"\A(?:(?:^|.*?\.){translated}\.(?P<idx>\d+)\.)"))
}

fn refuse(key: &str, pattern: &str, reason: impl ToString) -> Error {
    Error::Pattern { key: key.to_owned(), pattern: pattern.to_owned(), reason: reason.to_string() }
}

fn compile(key: &str, pattern: &str, alone: &str, whole: String) -> Result<Regex> {
    // By itself first: `a)|(b` is no pattern, though it would be one inside the parentheses.
    Regex::new(alone).and_then(|_| Regex::new(&whole)).map_err(|error| match error {
        regex::Error::CompiledTooBig(limit) => {
            refuse(key, pattern, format!("compiles to more than {limit} bytes; simplify it"))
        }
        // The last line of the parser's drawing says what is wrong.
        error => {
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
            refuse(key, pattern, format!("not a valid regular expression: {last}"))
        }
    })
}

/// What the translation has read last, for quantifiers.
#[derive(Clone, Copy, PartialEq)]
enum Last {
    Item,
    Quantifier,
    LazyQuantifier,
}

fn translate(pattern: &str, global_flags: bool) -> std::result::Result<String, String> {
    let mut output = String::with_capacity(pattern.len() + 8);
    let mut characters = pattern.char_indices().peekable();
    let mut last = Last::Item;
    while let Some((at, character)) = characters.next() {
        let mut now = Last::Item;
        match character {
            '\\' => escape(&mut characters, &mut output)?,
            '[' => class(&mut characters, &mut output)?,
            '(' => {
                output.push('(');
                if pattern[at + 1..].starts_with('?') {
                    group(&pattern[at + 2..], global_flags && at == 0)?;
                    // The `?` belongs to the group, it is no quantifier.
                    characters.next();
                    output.push('?');
                }
            }
            '*' | '+' | '?' | '{' => {
                let quantifier = match character {
                    '{' => match bounds(&pattern[at + 1..]) {
                        None => {
                            output.push_str(r"\{");
                            last = Last::Item;
                            continue;
                        }
                        Some((text, length)) => {
                            for _ in 0..length {
                                characters.next();
                            }
                            text
                        }
                    },
                    other => other.to_string(),
                };
                now = match (last, character) {
                    (Last::Item, _) => Last::Quantifier,
                    (Last::Quantifier, '?') => Last::LazyQuantifier,
                    (Last::Quantifier, '+') => {
                        return Err("possessive quantifiers are not supported; drop the second `+`".into());
                    }
                    _ => return Err("a quantifier follows a quantifier; put the first in `(?:...)`".into()),
                };
                output.push_str(&quantifier);
            }
            '}' => output.push_str(r"\}"),
            other => output.push(other),
        }
        last = now;
    }
    Ok(output)
}

/// Checks what follows `(?`.
fn group(rest: &str, global_flags: bool) -> std::result::Result<(), String> {
    let unsupported = |what: &str| Err(format!("{what} are not supported; list the module names instead"));
    let start = |prefix: &str| rest.starts_with(prefix);
    if start(":") || start("P<") {
        return Ok(());
    }
    if start("=") || start("!") || start("<=") || start("<!") {
        return Err("look-around is not supported; use `exclude_modules`, or list the module names".into());
    }
    if start("P=") || start("(") {
        return unsupported("references to groups");
    }
    if start(">") {
        return unsupported("atomic groups");
    }
    if start("#") {
        return unsupported("comments");
    }
    let Some(end) = rest.find([':', ')']) else { return Err("a group is not closed".into()) };
    let flags = &rest[..end];
    if flags.is_empty() || !flags.chars().all(|flag| matches!(flag, 'i' | 'm' | 's' | 'u' | '-')) {
        return Err(format!("`(?{flags}` is not supported"));
    }
    if rest[end..].starts_with(')') && (!global_flags || flags.contains('-')) {
        return Err(format!("a flag for the whole pattern is not allowed here; write `(?{flags}:...)`"));
    }
    Ok(())
}

/// What follows `{`, as a quantifier and the number of its characters; `None` where Python reads a brace as itself.
fn bounds(rest: &str) -> Option<(String, usize)> {
    let body = &rest[..rest.find('}')?];
    let number = |text: &str| text.chars().all(|digit| digit.is_ascii_digit());
    let text = match body.split_once(',') {
        None if !body.is_empty() && number(body) => format!("{{{body}}}"),
        Some((low, high)) if number(low) && number(high) => {
            format!("{{{},{high}}}", if low.is_empty() { "0" } else { low })
        }
        _ => return None,
    };
    Some((text, body.len() + 1))
}

type Characters<'a> = Peekable<CharIndices<'a>>;

fn escape(characters: &mut Characters<'_>, output: &mut String) -> std::result::Result<(), String> {
    let Some((_, escaped)) = characters.next() else { return Err("it ends with a backslash".into()) };
    let next = characters.peek().map(|&(_, next)| next);
    match escaped {
        'Z' => output.push_str(r"\z"),
        '0'..='9' => {
            return Err(format!(
                "`\\{escaped}` (a reference to a group, or an octal number) is not supported"
            ));
        }
        'b' | 'x' if next == Some('{') => return Err(format!("`\\{escaped}{{` is not Python's")),
        'A' | 'b' | 'B' => output.extend(['\\', escaped]),
        _ => one_character(escaped, output)?,
    }
    Ok(())
}

/// An escape that stands for a character or a class of characters, inside and outside of `[...]`.
fn one_character(escaped: char, output: &mut String) -> std::result::Result<(), String> {
    match escaped {
        'd' | 'D' | 's' | 'S' | 'w' | 'W' | 'a' | 'f' | 'n' | 'r' | 't' | 'v' | 'x' | 'u' | 'U' => {
            output.extend(['\\', escaped]);
        }
        letter if letter.is_ascii_alphanumeric() => return Err(format!("`\\{letter}` is not supported")),
        '<' | '>' => output.push(escaped), // `\<` would be the start of a word
        punctuation if punctuation.is_ascii_punctuation() => output.extend(['\\', punctuation]),
        other => output.push(other),
    }
    Ok(())
}

fn class(characters: &mut Characters<'_>, output: &mut String) -> std::result::Result<(), String> {
    output.push('[');
    if characters.next_if(|&(_, character)| character == '^').is_some() {
        output.push('^');
    }
    if characters.next_if(|&(_, character)| character == ']').is_some() {
        output.push_str(r"\]");
    }
    while let Some((_, character)) = characters.next() {
        match character {
            ']' => {
                output.push(']');
                return Ok(());
            }
            '\\' => match characters.next() {
                Some((_, 'b')) => output.push_str(r"\x08"),
                Some((_, 'x')) if characters.peek().is_some_and(|&(_, next)| next == '{') => {
                    return Err(r"`\x{` is not Python's".into());
                }
                Some((_, escaped)) => one_character(escaped, output)?,
                None => break,
            },
            // Set operations and nested classes of the other syntax; plain characters in Python's.
            '[' | '&' | '~' => output.extend(['\\', character]),
            '-' if characters.peek().is_some_and(|&(_, next)| next == '-') => {
                return Err("`--` in a class is not supported; write `\\-`".into());
            }
            other => output.push(other),
        }
    }
    Err("a class `[...]` is not closed".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pattern, text, and what `re.fullmatch(pattern, text)` says.
    const FULL: &[(&str, &str, bool)] = &[
        (r"model\.layers\.\d+\.self_attn\.(q|v)_proj", "model.layers.11.self_attn.v_proj", true),
        (r"model\.layers\.\d+\.self_attn\.(q|v)_proj", "model.layers.11.self_attn.v_proj.x", false),
        (r".*_proj", "model.layers.0.mlp.up_proj", true),
        ("q_proj", "model.q_proj", false),
        ("a|ab", "ab", true),
        (r".*\.q_proj\Z", "a.q_proj", true),
        ("(?i).*Q_PROJ", "a.q_proj", true),
        ("(?i:Q)_proj", "q_proj", true),
        (r"layers\.[0-9]{,2}\.x", "layers.11.x", true),
        (r"layers\.[0-9]{2}\.x", "layers.1.x", false),
        ("a{b}", "a{b}", true),
        ("[a&&b]+", "&b", true),
        ("[[a]+", "[a", true),
        ("[]a]+", "]a", true),
        (r"\<a\>", "<a>", true),
        ("a.*?b", "axbxb", true),
        ("", "", true),
    ];

    #[test]
    fn full_match_is_pythons() {
        for &(pattern, text, expected) in FULL {
            assert_eq!(full_match("t", pattern).unwrap().is_match(text), expected, "{pattern} on {text}");
        }
    }

    #[test]
    fn suffix_match_is_bounded_by_a_dot() {
        let matches =
            |pattern: &str, text: &str| suffix_match("rank_pattern", pattern).unwrap().is_match(text);
        assert!(matches("q_proj", "a.b.q_proj"));
        assert!(matches("q_proj", "q_proj"));
        assert!(!matches("_proj", "a.q_proj"));
        assert!(matches(r".*_proj", "a.q_proj"));
        assert!(matches("^a.b", "a.b"));
        assert!(!matches("^b", "a.b"));
        assert!(matches("k|q", "a.q"));
        assert!(!matches("q", "a.q.b"));
    }

    #[test]
    fn what_cannot_be_expressed_is_refused_with_a_reason() {
        for (pattern, reason) in [
            (r"(?!lm_head).*", "look-around"),
            (r"(?<=a)b", "look-around"),
            (r"(a)\1", "reference to a group"),
            (r"(?P<n>a)(?P=n)", "references to groups"),
            ("a++", "possessive"),
            ("a**", "quantifier follows"),
            ("(?>a)", "atomic"),
            (r"\p{L}", "not supported"),
            ("(?x) a", "not supported"),
            ("a(?i)b", "whole pattern"),
            ("(?<n>a)", "not supported"),
            ("[a", "not closed"),
            ("a)|(b", "not a valid"),
            ("*a", "not a valid"),
            ("a\\", "backslash"),
            ("(a{1000}){1000}", "bytes"),
        ] {
            let error = full_match("target_modules", pattern).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("target_modules"), "{pattern}: {error}");
        }
        assert!(suffix_match("rank_pattern", "(?i)q").is_err());
    }
}
