//! Exact and near duplicates, found one candidate at a time against those already taken.

use std::collections::{HashMap, HashSet};

use super::summary::without_code;

/// Consecutive tokens that make one shingle.
const SHINGLE: usize = 5;
/// Two pieces of code are near duplicates from this share of common shingles on.
const SIMILARITY: f64 = 0.6;
/// Examples whose summaries differ in nothing but `code` and numbers.
const SAME_TEMPLATE: usize = 2;

/// What has been taken so far.
#[derive(Default)]
pub struct Taken {
    summaries: HashSet<String>,
    templates: HashMap<String, usize>,
    shapes: HashSet<String>,
    /// Shingle -> the codes that hold it.
    index: HashMap<u64, Vec<usize>>,
    /// Number of shingles of each code.
    sizes: Vec<usize>,
}

impl Taken {
    /// Takes the pair unless it repeats what was taken before; says whether it did.
    pub fn take(&mut self, code: &str, summary: &str) -> bool {
        let words = words(summary);
        let template = template(summary);
        let tokens = tokens(code);
        let shape = shape(&tokens);
        let shingles = shingles(&tokens);
        if self.summaries.contains(&words)
            || self.templates.get(&template).is_some_and(|&count| count >= SAME_TEMPLATE)
            || self.shapes.contains(&shape)
            || self.has_similar(&shingles)
        {
            return false;
        }
        self.summaries.insert(words);
        *self.templates.entry(template).or_default() += 1;
        self.shapes.insert(shape);
        for &shingle in &shingles {
            self.index.entry(shingle).or_default().push(self.sizes.len());
        }
        self.sizes.push(shingles.len());
        true
    }

    fn has_similar(&self, shingles: &HashSet<u64>) -> bool {
        let mut common = HashMap::<usize, usize>::new();
        for code in shingles.iter().filter_map(|shingle| self.index.get(shingle)).flatten() {
            *common.entry(*code).or_default() += 1;
        }
        common.into_iter().any(|(code, common)| {
            let union = self.sizes[code] + shingles.len() - common;
            common as f64 >= SIMILARITY * union as f64
        })
    }
}

/// The words of a text in lower case, without punctuation.
fn words(text: &str) -> String {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join(" ")
}

/// The words with `code` and numbers left out.
fn template(summary: &str) -> String {
    let prose = words(&without_code(summary));
    prose.split(' ').map(|word| word.trim_matches(|c: char| c.is_ascii_digit())).collect::<Vec<_>>().join(" ")
}

/// Identifiers, numbers and single marks. Comments and strings are cut up the same way, which is fine for comparing.
fn tokens(code: &str) -> Vec<&str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut tokens = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let length =
            if is_word(first) { rest.find(|c| !is_word(c)).unwrap_or(rest.len()) } else { first.len_utf8() };
        let (token, after) = rest.split_at(length);
        tokens.push(token);
        rest = after.trim_start();
    }
    tokens
}

/// The code with every name and number replaced by one letter: what the members of a family made by copying share.
fn shape(tokens: &[&str]) -> String {
    tokens
        .iter()
        .map(
            |token| {
                if token.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') { "a" } else { token }
            },
        )
        .collect()
}

fn shingles(tokens: &[&str]) -> HashSet<u64> {
    let hash = |tokens: &[&str]| {
        // FNV-1a: the standard hasher may change between releases of Rust.
        let bytes = tokens.iter().flat_map(|token| token.bytes().chain([0]));
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        })
    };
    if tokens.len() < SHINGLE {
        return HashSet::from([hash(tokens)]);
    }
    tokens.windows(SHINGLE).map(hash).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: &str = "pub fn push(&mut self, value: T) -> usize {\n    self.items.push(value);\n    self.count += 1;\n    self.items.len()\n}";
    const OTHER: &str =
        "fn area(width: f64, height: f64) -> f64 { if width < 0.0 { return 0.0; } width * height }";

    fn second(first: (&str, &str), second: (&str, &str)) -> bool {
        let mut taken = Taken::default();
        assert!(taken.take(first.0, first.1));
        taken.take(second.0, second.1)
    }

    #[test]
    fn different_pairs_are_both_taken() {
        assert!(second((CODE, "Appends a value to the list."), (OTHER, "Returns the area of a rectangle.")));
    }

    #[test]
    fn a_summary_is_taken_once() {
        assert!(!second((CODE, "Appends a value to the list."), (OTHER, "appends a value, to the `list`")));
    }

    #[test]
    fn code_that_differs_in_space_names_or_a_line_is_taken_once() {
        let spaced = CODE.replace("    ", "  ").replace("\n}", "}");
        assert!(!second((CODE, "One of the two summaries."), (&spaced, "Another text for it here.")));
        let renamed = CODE.replace("items", "entries").replace("value", "entry").replace("count", "total");
        assert!(!second((CODE, "One of the two summaries."), (&renamed, "Another text for it here.")));
        let longer = CODE.replace("self.count += 1;", "self.count += 1;\n    self.dirty = true;");
        assert!(!second((CODE, "One of the two summaries."), (&longer, "Another text for it here.")));
    }

    #[test]
    fn a_template_is_taken_twice() {
        let mut taken = Taken::default();
        let codes = [
            CODE,
            OTHER,
            "struct Point { x: f32, y: f32, z: f32, w: Option<Box<Point>>, name: String, id: [u8; 16] }",
        ];
        let taken: Vec<bool> =
            (0..3).map(|i| taken.take(codes[i], &format!("Reads a `u{i}` from part {i}."))).collect();
        assert_eq!(taken, [true, true, false]);
    }

    #[test]
    fn tokens_are_names_and_single_marks() {
        assert_eq!(tokens(" a_1 ::b( 2)\n"), ["a_1", ":", ":", "b", "(", "2", ")"]);
        assert_eq!(shape(&tokens("let x = y2;")), "aa=a;");
        assert_eq!(shingles(&tokens("a b")).len(), 1);
    }
}
