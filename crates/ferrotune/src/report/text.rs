//! Text of models and files made safe to show, and numbers made easy to read.

use maud::{Escaper, Render};
use std::fmt::Write;

/// Text that nobody vouches for. Markup is escaped, and what does not show, or shuffles what does (control
/// characters, marks that turn the writing direction), is written as a visible code.
pub(super) struct Untrusted<'a>(pub(super) &'a str);

impl Render for Untrusted<'_> {
    fn render_to(&self, buffer: &mut String) {
        for character in visible(self.0).chars() {
            match character {
                '\'' => buffer.push_str("&#39;"),
                // Writing to a string cannot fail.
                _ => drop(Escaper::new(buffer).write_char(character)),
            }
        }
    }
}

/// Text in which everything shows: what does not, or shuffles what does, is written as a code such as `⟨U+001B⟩`. Line ends and
/// tabs stay.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' => shown.push(character),
            '\r' => {}
            _ if character.is_control() || is_invisible(character) => {
                shown.push_str(&format!("\u{27e8}U+{:04X}\u{27e9}", u32::from(character)));
            }
            _ => shown.push(character),
        }
    }
    shown
}

/// Direction marks and overrides, zero-width characters (but for the joiners that scripts and emoji need), line
/// separators, tags, the byte order mark.
fn is_invisible(character: char) -> bool {
    matches!(character,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The start of a text of at most so many characters, and how many are left out.
pub(super) fn clip(text: &str, limit: usize) -> (&str, usize) {
    match text.char_indices().nth(limit) {
        Some((byte, _)) => {
            let (start, rest) = text.split_at(byte);
            (start, rest.chars().count())
        }
        None => (text, 0),
    }
}

/// `1,234,567`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 step`, `1,234 steps`.
pub(super) fn plural(number: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(number), if number == 1 { "" } else { "s" })
}

/// `950`, `4.88 M`, `1.24 B`.
pub(super) fn count(number: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let value = number as f64;
    match number {
        0..100_000 => grouped(number),
        100_000..1_000_000 => format!("{:.0} K", value / 1e3),
        1_000_000..1_000_000_000 => format!("{} M", digits(value / 1e6)),
        _ => format!("{} B", digits(value / 1e9)),
    }
}

/// Three significant digits.
fn digits(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// `12 min 5 s`, `3 h 20 min`, `4.2 s`.
pub(crate) fn duration(seconds: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a cast of a float saturates"
    )]
    let whole = seconds.round().max(0.0) as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// `870 MiB`, `2.8 GiB`.
pub(super) fn mebibytes(mib: f64) -> String {
    if mib < 999.5 { format!("{mib:.0} MiB") } else { format!("{:.1} GiB", mib / 1024.0) }
}

/// A rate: `166`, `8.4`.
pub(super) fn rate(value: f64) -> String {
    if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

/// A minus that is as wide as the plus.
pub(super) fn signed(value: f64) -> String {
    format!("{value:+.1}").replace('-', "\u{2212}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_and_invisible_characters_are_shown_as_text() {
        let text = "<b>\"&'\u{202e}\0\u{1b}[31m\r\n\té\u{200d}";
        assert_eq!(
            Untrusted(text).render().into_string(),
            "&lt;b&gt;&quot;&amp;&#39;⟨U+202E⟩⟨U+0000⟩⟨U+001B⟩[31m\n\té\u{200d}"
        );
    }

    #[test]
    fn numbers_are_easy_to_read() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(count(99_999), "99,999");
        assert_eq!(count(460_800), "461 K");
        assert_eq!(count(4_884_480), "4.88 M");
        assert_eq!(count(134_515_008), "135 M");
        assert_eq!(count(8_030_261_248), "8.03 B");
        assert_eq!(duration(4.23), "4.2 s");
        assert_eq!(duration(59.6), "1 min 0 s");
        assert_eq!(duration(725.0), "12 min 5 s");
        assert_eq!(duration(12_000.0), "3 h 20 min");
        assert_eq!(duration(f64::NAN), "NaN s");
        assert_eq!(mebibytes(870.4), "870 MiB");
        assert_eq!(mebibytes(1_011.0), "1.0 GiB");
        assert_eq!(mebibytes(2_900.0), "2.8 GiB");
        assert_eq!(signed(-1.25), "−1.2");
        assert_eq!(signed(16.7), "+16.7");
    }

    #[test]
    fn long_text_is_clipped_between_characters() {
        assert_eq!(clip("héllo", 2), ("hé", 3));
        assert_eq!(clip("héllo", 5), ("héllo", 0));
    }
}
