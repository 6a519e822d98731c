//! Text to stemmed tokens, as rouge-score's default tokenizer does with `use_stemmer=True`.

use std::collections::HashMap;

use super::porter::stem_in_place;

/// Calls `emit` with every token of `text`.
///
/// The text is lower-cased, every run of characters outside `a-z0-9` separates, and tokens of more than three letters are
/// stemmed. Of all other characters only two have a lower case with an ASCII letter in it: the Kelvin sign (`k`), and
/// İ, whose `i` is followed by a combining dot, which separates.
pub(super) fn for_each_token(text: &str, mut emit: impl FnMut(&[u8])) {
    let mut token = Vec::new();
    let mut finish = |token: &mut Vec<u8>| {
        if token.len() > 3 {
            stem_in_place(token);
        }
        if !token.is_empty() {
            emit(token);
            token.clear();
        }
    };
    for character in text.chars() {
        match character {
            'a'..='z' | '0'..='9' => token.push(character as u8),
            'A'..='Z' => token.push((character as u8).to_ascii_lowercase()),
            '\u{212A}' => token.push(b'k'),
            '\u{130}' => {
                token.push(b'i');
                finish(&mut token);
            }
            _ => finish(&mut token),
        }
    }
    finish(&mut token);
}

/// Numbers tokens, so that comparing two of them is comparing two integers.
#[derive(Default)]
pub(super) struct Vocabulary(HashMap<Vec<u8>, u32>);

impl Vocabulary {
    fn id(&mut self, token: &[u8]) -> u32 {
        if let Some(id) = self.0.get(token) {
            return *id;
        }
        // One text cannot hold 2^32 different tokens: their letters alone would be tens of gigabytes.
        let id = self.0.len() as u32;
        self.0.insert(token.to_vec(), id);
        id
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Tokenizes a text and remembers where its lines end.
    pub(super) fn encode(&mut self, text: &str) -> Encoded {
        let mut encoded = Encoded::default();
        for line in text.split('\n') {
            for_each_token(line, |token| encoded.tokens.push(self.id(token)));
            encoded.line_ends.push(encoded.tokens.len());
        }
        encoded
    }
}

/// The tokens of a text and where its lines end.
#[derive(Clone, Debug, Default)]
pub(super) struct Encoded {
    pub(super) tokens: Vec<u32>,
    line_ends: Vec<usize>,
}

impl Encoded {
    /// The lines that hold a token; each is a sentence to ROUGE-Lsum.
    pub(super) fn lines(&self) -> impl Iterator<Item = &[u32]> {
        let starts = std::iter::once(0).chain(self.line_ends.iter().copied());
        starts
            .zip(&self.line_ends)
            .map(|(start, &end)| &self.tokens[start..end])
            .filter(|line| !line.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Vec<String> {
        let mut found = Vec::new();
        for_each_token(text, |token| found.push(String::from_utf8(token.to_vec()).unwrap()));
        found
    }

    #[test]
    fn no_other_character_lower_cases_to_ascii() {
        for character in '\u{80}'..=char::MAX {
            let lower: String = character.to_lowercase().filter(char::is_ascii_alphanumeric).collect();
            assert_eq!(tokens(&character.to_string()).concat(), lower, "{character:?}");
        }
    }

    #[test]
    fn punctuation_and_other_scripts_separate() {
        assert_eq!(
            tokens("Don't re-use 3.14 naïve 東京 flies!"),
            ["don", "t", "re", "use", "3", "14", "na", "ve", "fli"]
        );
        assert_eq!(tokens("\u{130}stanbul 5\u{212A}"), ["i", "stanbul", "5k"]);
        assert_eq!(tokens("... —\n"), Vec::<String>::new());
    }

    #[test]
    fn lines_without_tokens_are_no_sentences() {
        let encoded = Vocabulary::default().encode("\na b\n...\n\nc\n");
        assert_eq!(encoded.lines().collect::<Vec<_>>(), [&[0, 1][..], &[2][..]]);
    }
}
