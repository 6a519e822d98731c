//! Damaged recipes: never a panic, and every problem has a place.

use super::*;
use proptest::prelude::*;

/// As many cases as `PROPTEST_CASES` says.
fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases.unwrap_or(default)) }
}

const PIECES: [&str; 28] = [
    "=",
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "\"",
    "\"\"\"",
    "'",
    "\n",
    "\r",
    "\0",
    "#",
    ".",
    ",",
    "-",
    "1e999",
    "0x",
    "nan",
    "true",
    "1979-05-27",
    "99999999999999999999",
    "[lora]\n",
    "data.",
    "\\u{d800}",
    "é\u{feff}",
    "seed = 1\n",
];

/// The recipe of the documentation with some spans cut, doubled or replaced.
fn damaged() -> impl Strategy<Value = String> {
    let edits = proptest::collection::vec((any::<[u16; 2]>(), 0usize..3, 0..PIECES.len()), 0..6);
    edits.prop_map(|edits| {
        let whole = values::everything().to_toml().unwrap();
        let mut text: Vec<char> = whole.chars().collect();
        for ([a, b], action, piece) in edits {
            let start = usize::from(a) % (text.len() + 1);
            let end = (start + usize::from(b) % 24).min(text.len());
            let span: Vec<char> = match action {
                0 => vec![],
                1 => text[start..end].repeat(2),
                _ => PIECES[piece].chars().collect(),
            };
            text.splice(start..end, span);
        }
        text.into_iter().collect()
    })
}

fn check(text: &str, result: crate::Result<Recipe>) -> Result<(), TestCaseError> {
    match result {
        Ok(recipe) => {
            // What is accepted is written so that it is accepted again.
            let again = parse(&recipe.to_toml().unwrap());
            prop_assert_eq!(again.ok(), Some(recipe));
        }
        Err(Error::Recipe { problems, .. }) => {
            prop_assert!(!problems.is_empty());
            for Problem { place, kind } in &problems {
                match place {
                    Place::Line { line, column, .. } => {
                        let written = text.split('\n').nth(line - 1);
                        prop_assert!(
                            written.is_some_and(|written| *column <= written.chars().count() + 1),
                            "{}:{} in {:?}",
                            line,
                            column,
                            text
                        );
                    }
                    Place::Override(_) => {}
                    // Only what was not written has no line.
                    Place::File(_) => prop_assert!(
                        matches!(kind, ProblemKind::Missing { .. } | ProblemKind::Contradiction { .. }),
                        "{:?} in {:?}",
                        kind,
                        text
                    ),
                }
            }
        }
        Err(error) => prop_assert!(false, "{}", error),
    }
    Ok(())
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn damaged_recipes_are_read_or_placed(text in damaged()) {
        check(&text, parse(&text))?;
    }

    #[test]
    fn random_recipes_are_read_or_placed(pieces in proptest::collection::vec(0..PIECES.len(), 0..30)) {
        let text: String = pieces.into_iter().map(|piece| PIECES[piece]).collect();
        check(&text, parse(&text))?;
    }

    #[test]
    fn random_overrides_are_read_or_placed(text in "([a-z_]{0,8}[.])?[a-z_]{0,12} ?=? ?.{0,20}") {
        check(MINIMAL, Recipe::parse(MINIMAL, "recipe.toml", &[text]))?;
    }
}
