//! The first sentence of a doc comment, and whether it makes a good target.

/// Fewest and most words of a summary.
const WORDS: std::ops::RangeInclusive<usize> = 4..=18;

/// After these a full stop ends no sentence.
const ABBREVIATIONS: [&str; 16] = [
    "e.g.", "i.e.", "eg.", "ie.", "etc.", "vs.", "cf.", "approx.", "incl.", "resp.", "no.", "fig.", "sec.",
    "ca.", "et.", "al.",
];

/// Words of someone who has not written the documentation yet, or who points elsewhere.
const PLACEHOLDERS: [&str; 14] = [
    "todo",
    "fixme",
    "xxx",
    "tbd",
    "wip",
    "???",
    "placeholder",
    "undocumented",
    "missing docs",
    "no docs",
    "not documented",
    "lorem ipsum",
    "see also",
    "see the",
];

/// A summary that starts so tells what else to read, not what the item is.
const EMPTY_STARTS: [&str; 21] = [
    "see ",
    "same as",
    "the same as",
    "same, but",
    "like ",
    "similar to",
    "refer to",
    "please",
    "note",
    "warning",
    "safety",
    "deprecated",
    "internal",
    "private",
    "for internal",
    "helper",
    "alias",
    "this is",
    "this duplicates",
    "added in",
    "many different",
];

/// The first sentence of the first paragraph, on one line. `None` if the comment opens with something else than prose.
pub fn first_sentence(docs: &str) -> Option<String> {
    let lines = docs.lines().map(str::trim).skip_while(|line| line.is_empty());
    let mut paragraph = Vec::new();
    for line in lines {
        if line.is_empty() || opens_a_block(line) {
            break;
        }
        paragraph.extend(line.split_whitespace());
    }
    let mut in_code = false;
    let mut end = paragraph.len();
    for (index, word) in paragraph.iter().enumerate() {
        // A full stop inside `code` ends nothing; one after the closing tick does.
        if word.matches('`').count() % 2 == 1 {
            in_code = !in_code;
        }
        let next = paragraph.get(index + 1).copied();
        if !in_code && ends_sentence(word, next) {
            end = index + 1;
            break;
        }
    }
    let sentence = paragraph[..end].join(" ");
    (!sentence.is_empty()).then_some(sentence)
}

/// A heading, list, table, quotation or code block.
fn opens_a_block(line: &str) -> bool {
    let list = |line: &str| {
        let number = line.trim_start_matches(|c: char| c.is_ascii_digit());
        number.len() < line.len() && (number.starts_with(". ") || number.starts_with(") "))
    };
    ["#", "```", "~~~", "- ", "* ", "+ ", "|", ">", "---", "==="].iter().any(|mark| line.starts_with(mark))
        || list(line)
}

fn ends_sentence(word: &str, next: Option<&str>) -> bool {
    let bare = word.trim_end_matches([')', '"', '\'', '*', '_']);
    if bare.ends_with(['!', '?']) {
        return true;
    }
    if !bare.ends_with('.') || bare.ends_with("..") {
        return false;
    }
    let lower = bare.trim_start_matches(['(', '"', '\'', '*', '_']).to_ascii_lowercase();
    if ABBREVIATIONS.contains(&lower.as_str()) {
        return next.is_none();
    }
    // A new sentence starts with a capital, a number or code.
    next.is_none_or(|next| {
        let first = next.trim_start_matches(['(', '"', '\'', '*', '_']).chars().next();
        first.is_some_and(|c| c.is_uppercase() || c.is_ascii_digit() || c == '`' || c == '[')
    })
}

/// The text without its `code`.
pub fn without_code(text: &str) -> String {
    text.split('`').step_by(2).collect::<Vec<_>>().join("`")
}

/// Whether the sentence says something by itself: plain ASCII prose of 4 to 18 words without links and placeholders.
pub fn is_good(summary: &str) -> bool {
    let prose = without_code(summary);
    let lower = prose.to_ascii_lowercase();
    let count = |c| prose.matches(c).count();
    let words = summary.split_whitespace().count();
    let spoken =
        prose.split_whitespace().filter(|word| word.bytes().any(|b| b.is_ascii_alphabetic())).count();
    WORDS.contains(&words)
        && spoken >= 3
        && summary.is_ascii()
        && summary.matches('`').count().is_multiple_of(2)
        && !summary.contains("``")
        && summary.starts_with(|c: char| c.is_ascii_alphabetic() || c == '`')
        // Links, references, HTML, formulas.
        && !prose.contains(['[', ']', '<', '>', '{', '}', '\\', '|', '$', '=', '@', '#'])
        && !lower.contains("://")
        && !lower.contains("www.")
        && !lower.contains("rfc")
        && count('(') == count(')')
        && count('"').is_multiple_of(2)
        && count('*') == 0
        && !summary.ends_with([':', ',', ';', '-', '(', '?'])
        && !PLACEHOLDERS.iter().any(|word| lower.contains(word))
        && !EMPTY_STARTS.iter().any(|start| lower.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(docs: &str) -> String {
        first_sentence(docs).unwrap_or_default()
    }

    #[test]
    fn the_first_sentence_ends_where_a_reader_would_end_it() {
        assert_eq!(first("Adds two\nnumbers. Then more."), "Adds two numbers.");
        assert_eq!(first("\n\n  Adds numbers\n\nMore."), "Adds numbers");
        assert_eq!(
            first("Takes a path, e.g. `a.b`, i.e. The one. Next."),
            "Takes a path, e.g. `a.b`, i.e. The one."
        );
        assert_eq!(first("Calls `foo. Bar` once. Next."), "Calls `foo. Bar` once.");
        assert_eq!(first("Is version 1.2 of x. Next"), "Is version 1.2 of x.");
        assert_eq!(first("Returns it (the last one.) Next."), "Returns it (the last one.)");
        assert_eq!(first("Stops here! Next."), "Stops here!");
        assert_eq!(first("Waits... then goes on. Next."), "Waits... then goes on.");
        assert_eq!(first("Reads foo.rs and more.\n- item"), "Reads foo.rs and more.");
        assert_eq!(first("Reads it\n# Errors\nNone."), "Reads it");
    }

    #[test]
    fn a_comment_without_prose_has_no_sentence() {
        for docs in
            ["", "# Safety\nFine.", "```\ncode\n```", "- one\n- two", "1. one", "| a | b |", "> quoted"]
        {
            assert_eq!(first_sentence(docs), None, "{docs}");
        }
    }

    #[test]
    fn good_summaries_are_kept() {
        for text in [
            "Returns the number of bytes written so far.",
            "`Vec<u8>` of the message (without its header)",
            "Parses `[a, b]` from a string slice.",
            "returns true if the set is empty",
        ] {
            assert!(is_good(text), "{text}");
        }
    }

    #[test]
    fn summaries_that_say_nothing_or_point_elsewhere_are_dropped() {
        for text in [
            "Creates a value.",
            "One two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen.",
            "Returns the [`Foo`] of this value.",
            "Returns the [foo](bar) of this value.",
            "Reads https://example.org and returns it.",
            "Returns the na\u{ef}ve mean of the values.",
            "TODO: write what this is for.",
            "See the documentation of the trait.",
            "Same as the other one, but by value.",
            "Returns one of the following values:",
            "Returns the first `item of the list.",
            "Wraps an <b>important</b> value of it.",
            "`a` `b` `c` `d` `e` f",
            "Closes a bracket) that was never opened.",
        ] {
            assert!(!is_good(text), "{text}");
        }
    }
}
