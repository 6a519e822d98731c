//! Whitespace as Python's `str.split` and `str.rstrip` see it.

/// Unicode white space, and the four ASCII separators that Python counts in and Rust does not.
pub(crate) fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1C}'..='\u{1F}').contains(&character)
}
