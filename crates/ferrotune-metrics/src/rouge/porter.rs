//! The Porter stemmer in the variant that rouge-score uses (NLTK's `NLTK_EXTENSIONS` mode).
//!
//! Eight steps strip or rewrite suffixes; nearly all of it is in the tables below. Within a step the first suffix that
//! matches decides: if its condition fails, the step leaves the word alone. A condition looks at the stem before the
//! suffix, mostly at its measure `m`, the number of vowel-consonant turns in it.
//!
//! # References
//! Porter 1980, "An algorithm for suffix stripping", Program 14(3); `nltk.stem.porter.PorterStemmer`. The places where
//! that class leaves the paper are marked "NLTK" below.

use std::borrow::Cow;

/// Stems a lower-case ASCII word.
///
/// Words with other characters than `a-z` and `0-9` come back as they are; a digit counts as a consonant.
///
/// # Examples
/// ```
/// use ferrotune_metrics::rouge::stem;
/// assert_eq!(stem("relational"), "relat");
/// assert_eq!(stem("flies"), "fli");
/// assert_eq!(stem("dying"), "die");
/// ```
#[must_use]
pub fn stem(word: &str) -> Cow<'_, str> {
    if !word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) {
        return Cow::Borrowed(word);
    }
    let mut letters = word.as_bytes().to_vec();
    stem_in_place(&mut letters);
    if letters == word.as_bytes() {
        return Cow::Borrowed(word);
    }
    String::from_utf8(letters).map_or(Cow::Borrowed(word), Cow::Owned)
}

/// [`stem`] on the bytes of a word of `a-z` and `0-9`.
pub(super) fn stem_in_place(word: &mut Vec<u8>) {
    if let Some((_, irregular)) = IRREGULAR.iter().find(|(form, _)| form.as_bytes() == word.as_slice()) {
        word.clear();
        word.extend_from_slice(irregular.as_bytes());
        return;
    }
    if word.len() <= 2 {
        return;
    }
    plural(word);
    past_and_progressive(word);
    final_y(word);
    // NLTK: -alli is taken off first, and what remains goes through the whole table.
    if word.strip_suffix(b"alli").is_some_and(positive) {
        word.truncate(word.len() - 2);
    }
    apply(DOUBLE_SUFFIXES, word);
    apply(ICATE_FUL_NESS, word);
    apply(SINGLE_SUFFIXES, word);
    final_e(word);
    if word.ends_with(b"ll") && measure(&word[..word.len() - 1]) > 1 {
        word.pop();
    }
}

/// A suffix, what replaces it, and what its stem must fulfil.
type Rule = (&'static str, &'static str, fn(&[u8]) -> bool);

/// NLTK: words that the rules would get wrong.
const IRREGULAR: &[(&str, &str)] = &[
    ("sky", "sky"),
    ("skies", "sky"),
    ("dying", "die"),
    ("lying", "lie"),
    ("tying", "tie"),
    ("news", "news"),
    ("innings", "inning"),
    ("inning", "inning"),
    ("outings", "outing"),
    ("outing", "outing"),
    ("cannings", "canning"),
    ("canning", "canning"),
    ("howe", "howe"),
    ("proceed", "proceed"),
    ("exceed", "exceed"),
    ("succeed", "succeed"),
];

/// Step 1a.
const PLURAL: &[Rule] =
    &[("sses", "ss", always), ("ies", "i", always), ("ss", "ss", always), ("s", "", always)];

/// Step 1b, after -ed or -ing has gone.
const RESTORED_E: &[Rule] = &[("at", "ate", always), ("bl", "ble", always), ("iz", "ize", always)];

/// Step 2.
const DOUBLE_SUFFIXES: &[Rule] = &[
    ("ational", "ate", positive),
    ("tional", "tion", positive),
    ("enci", "ence", positive),
    ("anci", "ance", positive),
    ("izer", "ize", positive),
    ("bli", "ble", positive), // NLTK: the paper has abli -> able
    ("alli", "al", positive),
    ("entli", "ent", positive),
    ("eli", "e", positive),
    ("ousli", "ous", positive),
    ("ization", "ize", positive),
    ("ation", "ate", positive),
    ("ator", "ate", positive),
    ("alism", "al", positive),
    ("iveness", "ive", positive),
    ("fulness", "ful", positive),
    ("ousness", "ous", positive),
    ("aliti", "al", positive),
    ("iviti", "ive", positive),
    ("biliti", "ble", positive),
    ("fulli", "ful", positive),        // NLTK
    ("logi", "log", positive_after_l), // NLTK
];

/// Step 3.
const ICATE_FUL_NESS: &[Rule] = &[
    ("icate", "ic", positive),
    ("ative", "", positive),
    ("alize", "al", positive),
    ("iciti", "ic", positive),
    ("ical", "ic", positive),
    ("ful", "", positive),
    ("ness", "", positive),
];

/// Step 4.
const SINGLE_SUFFIXES: &[Rule] = &[
    ("al", "", above_one),
    ("ance", "", above_one),
    ("ence", "", above_one),
    ("er", "", above_one),
    ("ic", "", above_one),
    ("able", "", above_one),
    ("ible", "", above_one),
    ("ant", "", above_one),
    ("ement", "", above_one),
    ("ment", "", above_one),
    ("ent", "", above_one),
    ("ion", "", above_one_and_s_or_t),
    ("ou", "", above_one),
    ("ism", "", above_one),
    ("ate", "", above_one),
    ("iti", "", above_one),
    ("ous", "", above_one),
    ("ive", "", above_one),
    ("ize", "", above_one),
];

/// Applies the first rule whose suffix matches; tells whether a suffix matched, even if its condition failed.
fn apply(rules: &[Rule], word: &mut Vec<u8>) -> bool {
    for (suffix, replacement, condition) in rules {
        let Some(stem) = word.strip_suffix(suffix.as_bytes()) else { continue };
        if condition(stem) {
            word.truncate(stem.len());
            word.extend_from_slice(replacement.as_bytes());
        }
        return true;
    }
    false
}

/// Step 1a.
fn plural(word: &mut Vec<u8>) {
    // NLTK: dies -> die, where longer words lose the e (flies -> fli).
    if word.len() == 4 && word.ends_with(b"ies") {
        word.pop();
    } else {
        apply(PLURAL, word);
    }
}

/// Step 1b.
fn past_and_progressive(word: &mut Vec<u8>) {
    // NLTK: died -> die, where longer words lose the e (spied -> spi).
    if word.ends_with(b"ied") {
        word.truncate(word.len() - if word.len() == 4 { 1 } else { 2 });
        return;
    }
    if let Some(stem) = word.strip_suffix(b"eed") {
        if positive(stem) {
            word.pop();
        }
        return;
    }
    let stems = [word.strip_suffix(b"ed"), word.strip_suffix(b"ing")];
    let Some(stem) = stems.into_iter().flatten().find(|stem| contains_vowel(stem)) else { return };
    word.truncate(stem.len());
    if apply(RESTORED_E, word) {
        return;
    }
    if ends_in_double_consonant(word) {
        if !word.ends_with(b"l") && !word.ends_with(b"s") && !word.ends_with(b"z") {
            word.pop();
        }
    } else if measure(word) == 1 && ends_in_short_syllable(word) {
        word.push(b'e');
    }
}

/// Step 1c. NLTK: only after a consonant that is not the whole stem (the paper asks for a vowel in the stem).
fn final_y(word: &mut [u8]) {
    if let Some((last, stem)) = word.split_last_mut()
        && *last == b'y'
        && stem.len() > 1
        && consonants(stem).last() == Some(true)
    {
        *last = b'i';
    }
}

/// Step 5a.
fn final_e(word: &mut Vec<u8>) {
    if let Some(stem) = word.strip_suffix(b"e")
        && (measure(stem) > 1 || measure(stem) == 1 && !ends_in_short_syllable(stem))
    {
        word.pop();
    }
}

/// Per letter whether it is a consonant; a y is one unless a consonant precedes it.
fn consonants(stem: &[u8]) -> impl Iterator<Item = bool> {
    stem.iter().scan(false, |previous, letter| {
        *previous = match letter {
            b'a' | b'e' | b'i' | b'o' | b'u' => false,
            b'y' => !*previous,
            _ => true,
        };
        Some(*previous)
    })
}

/// `m`: how often a consonant follows a vowel.
fn measure(stem: &[u8]) -> usize {
    let mut after_vowel = false;
    consonants(stem).filter(|&consonant| consonant & std::mem::replace(&mut after_vowel, !consonant)).count()
}

fn always(_stem: &[u8]) -> bool {
    true
}

fn positive(stem: &[u8]) -> bool {
    measure(stem) > 0
}

/// Whether the measure of the stem and a following l is positive.
fn positive_after_l(stem: &[u8]) -> bool {
    contains_vowel(stem)
}

fn above_one(stem: &[u8]) -> bool {
    measure(stem) > 1
}

fn above_one_and_s_or_t(stem: &[u8]) -> bool {
    matches!(stem.last(), Some(b's' | b't')) && above_one(stem)
}

fn contains_vowel(stem: &[u8]) -> bool {
    consonants(stem).any(|consonant| !consonant)
}

fn ends_in_double_consonant(word: &[u8]) -> bool {
    matches!(word, [.., before, last] if before == last) && consonants(word).last() == Some(true)
}

/// Consonant, vowel, consonant other than w, x, y. NLTK: or the whole word is a vowel and a consonant.
fn ends_in_short_syllable(word: &[u8]) -> bool {
    let kinds: Vec<bool> = consonants(word).collect();
    match kinds.as_slice() {
        [.., true, false, true] => !matches!(word.last(), Some(b'w' | b'x' | b'y')),
        kinds => kinds == [false, true],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measure_counts_turns_from_vowel_to_consonant() {
        for (stem, m) in
            [("tr", 0), ("tree", 0), ("by", 0), ("trouble", 1), ("ivy", 1), ("private", 2), ("orrery", 2)]
        {
            assert_eq!(measure(stem.as_bytes()), m, "{stem}");
        }
    }

    #[test]
    fn a_run_of_y_alternates() {
        assert_eq!(consonants(b"yyyya").collect::<Vec<_>>(), [true, false, true, false, false]);
    }

    #[test]
    fn words_outside_ascii_are_left_alone() {
        assert_eq!(stem("naïvely"), "naïvely");
        assert_eq!(stem("Running"), "Running");
    }

    #[test]
    fn the_extensions_are_in() {
        for (word, expected) in
            [("skies", "sky"), ("dies", "die"), ("died", "die"), ("enjoy", "enjoy"), ("fly", "fli")]
        {
            assert_eq!(stem(word), expected);
        }
        assert_eq!(stem("rationalli"), "ration");
        assert_eq!(stem("geologi"), "geolog");
    }
}
