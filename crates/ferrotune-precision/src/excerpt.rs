//! What a file says, cut to a length that a message can bear.

use std::borrow::Cow;

/// A text from a file, as it stands in a message: of a long one the beginning and the end.
///
/// ```
/// assert_eq!(ferrotune_precision::short_text("lm_head.weight"), "lm_head.weight");
/// assert!(ferrotune_precision::short_text(&"x".repeat(1_000_000)).len() < 1000);
/// ```
pub fn short_text(text: &str) -> Cow<'_, str> {
    const BEGINNING: usize = 200;
    const END: usize = 100;
    let count = text.chars().count();
    if count <= BEGINNING + END {
        return text.into();
    }
    let (beginning, end) = (text.chars().take(BEGINNING), text.chars().skip(count - END));
    beginning.chain(" … ".chars()).chain(end).collect()
}

/// A shape in a message: of one with more dimensions than tensors have, the first.
///
/// ```
/// assert_eq!(ferrotune_precision::short_shape(&[300, -1]), "[300, -1]");
/// assert_eq!(ferrotune_precision::short_shape(&[2; 9]), "[2, 2, 2, 2, 2, 2, 2, 2, …] (9 dimensions)");
/// ```
pub fn short_shape(shape: &[i64]) -> String {
    const SHOWN: usize = 8;
    match shape.get(..SHOWN) {
        Some(first) if shape.len() > SHOWN => {
            let first: Vec<String> = first.iter().map(i64::to_string).collect();
            format!("[{}, …] ({} dimensions)", first.join(", "), shape.len())
        }
        _ => format!("{shape:?}"),
    }
}
