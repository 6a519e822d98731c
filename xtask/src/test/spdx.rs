//! SPDX licence expressions, as far as crates use them: `OR`, `AND`, `WITH`, brackets, and the old `/` for `OR`.

use anyhow::{Result, bail};

/// Licences that ask for no more than a notice.
const PERMISSIVE: [&str; 17] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "NCSA",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    "Unlicense",
    "Zlib",
    "bzip2-1.0.6",
];

/// Whether one may choose only permissive licences under the expression. No expression, or one that cannot be read,
/// permits nothing.
pub fn is_permissive(expression: &str) -> bool {
    evaluate(expression, &|licence| {
        PERMISSIVE.iter().any(|permissive| permissive.eq_ignore_ascii_case(licence))
    })
    .unwrap_or(false)
}

/// The value of the expression when `allowed` says the value of each licence.
fn evaluate(expression: &str, allowed: &dyn Fn(&str) -> bool) -> Result<bool> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { words: &words, allowed };
    let value = parser.either()?;
    match parser.words {
        [] => Ok(value),
        [word, ..] => bail!("{word:?} is not expected in the licence {expression:?}"),
    }
}

struct Parser<'a> {
    words: &'a [&'a str],
    allowed: &'a dyn Fn(&str) -> bool,
}

impl Parser<'_> {
    fn accept(&mut self, expected: &str) -> bool {
        let found = self.words.first().is_some_and(|word| word.eq_ignore_ascii_case(expected));
        if found {
            self.words = &self.words[1..];
        }
        found
    }

    fn either(&mut self) -> Result<bool> {
        let mut value = self.both()?;
        while self.accept("OR") {
            value |= self.both()?;
        }
        Ok(value)
    }

    fn both(&mut self) -> Result<bool> {
        let mut value = self.one()?;
        while self.accept("AND") {
            value &= self.one()?;
        }
        Ok(value)
    }

    fn one(&mut self) -> Result<bool> {
        if self.accept("(") {
            let value = self.either()?;
            if !self.accept(")") {
                bail!("a bracket is not closed");
            }
            return Ok(value);
        }
        let Some((licence, rest)) = self.words.split_first() else { bail!("a licence is missing") };
        if ["OR", "AND", "WITH", ")"].iter().any(|word| word.eq_ignore_ascii_case(licence)) {
            bail!("a licence is missing before {licence:?}");
        }
        self.words = rest;
        if !self.accept("WITH") {
            return Ok((self.allowed)(licence));
        }
        let Some((exception, rest)) = self.words.split_first() else { bail!("an exception is missing") };
        self.words = rest;
        Ok((self.allowed)(&format!("{licence} WITH {exception}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_permissive_choice_is_enough_for_or_and_all_are_needed_for_and() {
        for expression in [
            "MIT",
            "MIT OR Apache-2.0",
            "MIT/Apache-2.0",
            "Apache-2.0 / MIT",
            "GPL-3.0-only OR MIT",
            "(MIT OR GPL-2.0-only) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0-only",
            "mit or apache-2.0",
            "MIT AND (GPL-3.0-only OR (BSD-3-Clause AND ISC))",
            "GPL-2.0-only AND MPL-2.0 OR MIT",
        ] {
            assert!(is_permissive(expression), "{expression}");
        }
        for expression in [
            "",
            "GPL-3.0-only",
            "LGPL-3.0-or-later OR MPL-2.0",
            "MIT AND GPL-3.0-only",
            "MIT AND (GPL-3.0-only OR MPL-2.0)",
            "MIT WITH Unknown-exception",
            "GPL-2.0-only WITH LLVM-exception",
            "MIT OR",
            "(MIT",
            "MIT)",
            "MIT Apache-2.0",
            "OR MIT",
            "non-standard",
        ] {
            assert!(!is_permissive(expression), "{expression}");
        }
    }
}
