//! Outputs side by side: the best, the worst, the most changed, and a list.

use maud::{Markup, html};

use super::Output;
use super::text::{Untrusted, clip, grouped, plural, signed};

/// So many outputs are shown as they are, without groups.
const FEW: usize = 10;
/// Outputs of a group at most.
const GROUP: usize = 5;
/// Outputs of the list at most.
const LIST: usize = 50;
/// Bytes of the list from which no further output is added.
const LIST_BYTES: usize = 200_000;
/// Characters of a prompt and of an answer that are shown at most.
const PROMPT_CHARS: usize = 2_000;
const ANSWER_CHARS: usize = 1_500;
/// Words of a text that are compared at most; the comparison is quadratic.
const MAX_WORDS: usize = 400;

/// The section's content.
pub(super) fn examples(outputs: &[Output], metric: &str, cut: Option<&str>, file: Option<&str>) -> Markup {
    let groups = groups(outputs);
    let grouped_any = groups.iter().any(|(_, _, indices)| !indices.is_empty());
    html! {
        (verdict(outputs))
        @if let Some(cut) = cut {
            p class="cut" {
                // Keys stand between backticks.
                @for (index, piece) in cut.split('`').enumerate() {
                    @if index % 2 == 1 { code { (Untrusted(piece)) } } @else { (Untrusted(piece)) }
                }
                "."
            }
        }
        p class="note" {
            "Words that an answer shares with the reference, in the same order, are "
            mark { "marked" } "."
            @if !metric.is_empty() { " The numbers are " (Untrusted(metric)) ", from 0 to 100." }
        }
        @for (title, note, indices) in &groups {
            @if !indices.is_empty() {
                h3 { (title) }
                p class="note" { (note) }
                @for index in indices { (card(*index, &outputs[*index], metric)) }
            }
        }
        @let list = list(outputs, metric);
        @let title = match list.len() {
            all if all == outputs.len() => format!("All {}", plural(all as u64, "output")),
            first => format!("The first {first} of {} outputs", grouped(outputs.len() as u64)),
        };
        @if grouped_any {
            details class="all" {
                summary { h3 { (title) } }
                @for card in &list { (card) }
            }
        } @else {
            h3 { (title) }
            @for card in &list { (card) }
        }
        @if let Some(file) = file {
            p class="note" { "All outputs are in " code { (Untrusted(file)) } "." }
        }
    }
}

/// The first outputs, as many as the page can well hold.
fn list(outputs: &[Output], metric: &str) -> Vec<Markup> {
    let mut bytes = 0;
    let cards = outputs.iter().take(LIST).enumerate().map(|(index, output)| card(index, output, metric));
    cards
        .take_while(|card| {
            let has_room = bytes < LIST_BYTES;
            bytes += card.0.len();
            has_room
        })
        .collect()
}

/// How many answers got better, and how many worse.
fn verdict(outputs: &[Output]) -> Markup {
    let changes: Vec<f64> = outputs.iter().filter_map(change).collect();
    if changes.is_empty() {
        return html! {};
    }
    let better = changes.iter().filter(|change| **change > 0.05).count();
    let worse = changes.iter().filter(|change| **change < -0.05).count();
    let same = changes.len() - better - worse;
    #[expect(clippy::cast_precision_loss, reason = "a share in pixels")]
    let share = |count: usize| 1000.0 * count as f64 / changes.len() as f64;
    html! {
        div class="verdict" {
            svg viewBox="0 0 1000 12" preserveAspectRatio="none" aria-hidden="true" {
                rect class="better" x="0" y="0" width=(format!("{:.1}", share(better))) height="12" {}
                rect class="same" x=(format!("{:.1}", share(better))) y="0" width=(format!("{:.1}", share(same))) height="12" {}
                rect class="worse" x=(format!("{:.1}", share(better + same))) y="0" width=(format!("{:.1}", share(worse))) height="12" {}
            }
            p {
                "Of " (grouped(changes.len() as u64)) " answers, "
                b class="up" { (grouped(better as u64)) " got better" } ", "
                b { (grouped(same as u64)) " stayed level" } " and "
                b class="down" { (grouped(worse as u64)) " got worse" } "."
            }
        }
    }
}

fn change(output: &Output) -> Option<f64> {
    Some(output.after_score? - output.before_score?).filter(|change| change.is_finite())
}

/// Titles, notes and indices of the groups. No output is shown in two of them; few outputs make small groups, and very few none.
fn groups(outputs: &[Output]) -> Vec<(&'static str, &'static str, Vec<usize>)> {
    let mut shown: Vec<usize> = vec![];
    let size = if outputs.len() > FEW { GROUP.min(outputs.len() / 3) } else { 0 };
    // The best first; equal ones in the order of the file.
    let mut top = |score: &dyn Fn(&Output) -> Option<f64>| {
        let mut ranked: Vec<(usize, f64)> = outputs
            .iter()
            .enumerate()
            .filter(|(index, _)| !shown.contains(index))
            .filter_map(|(index, output)| Some((index, score(output).filter(|score| score.is_finite())?)))
            .collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        let indices: Vec<usize> = ranked.into_iter().take(size).map(|(index, _)| index).collect();
        shown.extend(&indices);
        indices
    };
    let best = top(&|output| output.after_score);
    let worst = top(&|output| Some(-output.after_score?));
    let changed = top(&|output| Some(change(output)?.abs()));
    vec![
        ("Best", "The highest scores after training.", best),
        ("Worst", "The lowest scores after training.", worst),
        (
            "Most changed",
            "The largest differences between before and after, up or down, among the rest.",
            changed,
        ),
    ]
}

fn card(index: usize, output: &Output, metric: &str) -> Markup {
    let (prompt, left_out) = clip(output.prompt.trim_end(), PROMPT_CHARS);
    html! {
        article class="card" {
            header {
                span class="number" { "Prompt " (index + 1) }
                @if let Some(change) = change(output) {
                    span class={ "delta " (if change > 0.05 { "up" } else if change < -0.05 { "down" } else { "level" }) } {
                        (Untrusted(metric)) " " (signed(change))
                    }
                }
            }
            pre class="prompt" dir="auto" tabindex="0" { (Untrusted(prompt)) (more(left_out)) }
            div class="answers" {
                (answer("Reference", "reference", Some(&output.reference), None, None))
                (answer("Before", "before", output.before.as_deref(), output.before_score, Some(&output.reference)))
                (answer("After", "after", output.after.as_deref(), output.after_score, Some(&output.reference)))
            }
        }
    }
}

fn answer(
    title: &str,
    class: &str,
    text: Option<&str>,
    score: Option<f64>,
    reference: Option<&str>,
) -> Markup {
    let Some(text) = text else { return html! {} };
    let (text, left_out) = clip(text.trim(), ANSWER_CHARS);
    let shared = reference.map(|reference| joined(text, shared_words(reference, text))).unwrap_or_default();
    html! {
        section class={ "answer " (class) } {
            h4 { (title) @if let Some(score) = score { span class="score" { (format!("{score:.0}")) } } }
            div class="said" dir="auto" {
                @if text.is_empty() { em { "(empty)" } }
                @for (piece, is_shared) in pieces(text, &shared) {
                    @if is_shared { mark { (Untrusted(piece)) } } @else { (Untrusted(piece)) }
                }
                (more(left_out))
            }
        }
    }
}

fn more(characters: usize) -> Markup {
    html! { @if characters > 0 { span class="more" { " … " (grouped(characters as u64)) " more characters" } } }
}

/// The bytes of each word: a run of letters and digits.
fn words(text: &str) -> Vec<(usize, usize)> {
    let mut words: Vec<(usize, usize)> = vec![];
    let mut start = None;
    for (byte, character) in text.char_indices().chain([(text.len(), ' ')]) {
        match (start, character.is_alphanumeric()) {
            (None, true) => start = Some(byte),
            (Some(from), false) => {
                words.push((from, byte));
                start = None;
            }
            _ => {}
        }
    }
    words
}

/// The words of `text` that lie on a longest common subsequence with `reference`, whatever their case.
fn shared_words(reference: &str, text: &str) -> Vec<(usize, usize)> {
    let spans = words(text);
    let lower = |text: &str, spans: &[(usize, usize)]| -> Vec<String> {
        spans.iter().take(MAX_WORDS).map(|(from, to)| text[*from..*to].to_lowercase()).collect()
    };
    let (a, b) = (lower(reference, &words(reference)), lower(text, &spans));
    // length[i][j]: of a longest common subsequence of a[i..] and b[j..].
    let mut length = vec![vec![0_u16; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            length[i][j] =
                if a[i] == b[j] { length[i + 1][j + 1] + 1 } else { length[i + 1][j].max(length[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut shared) = (0, 0, vec![]);
    while i < a.len() && j < b.len() {
        if a[i] == b[j] {
            shared.push(spans[j]);
            (i, j) = (i + 1, j + 1);
        } else if length[i + 1][j] >= length[i][j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    shared
}

/// Marks neighbours that only blanks divide as one.
fn joined(text: &str, spans: Vec<(usize, usize)>) -> Vec<(usize, usize)> {
    let mut joined: Vec<(usize, usize)> = vec![];
    for (from, to) in spans {
        match joined.last_mut() {
            Some(last) if text[last.1..from].chars().all(|between| between == ' ') => last.1 = to,
            _ => joined.push((from, to)),
        }
    }
    joined
}

/// The text cut at the marked spans.
fn pieces<'a>(text: &'a str, marked: &[(usize, usize)]) -> Vec<(&'a str, bool)> {
    let mut pieces = vec![];
    let mut end = 0;
    for (from, to) in marked {
        pieces.push((&text[end..*from], false));
        pieces.push((&text[*from..*to], true));
        end = *to;
    }
    pieces.push((&text[end..], false));
    pieces.retain(|(piece, _)| !piece.is_empty());
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared<'a>(reference: &str, text: &'a str) -> Vec<&'a str> {
        shared_words(reference, text).into_iter().map(|(from, to)| &text[from..to]).collect()
    }

    #[test]
    fn shared_words_keep_their_order() {
        let text = "It returns a list: the length, sorted.";
        assert_eq!(shared("Returns the length of the list.", text), ["returns", "the", "length"]);
        assert_eq!(shared("Größe der Liste", "GRÖSSE: größe, LISTE!"), ["größe", "LISTE"]);
        assert_eq!(shared("", "nothing"), Vec::<&str>::new());
        assert_eq!(shared("x", ""), Vec::<&str>::new());
    }

    #[test]
    fn neighbours_are_marked_as_one() {
        let text = "a few words, more";
        assert_eq!(joined(text, shared_words(text, text)), [(0, 11), (13, 17)]);
    }

    #[test]
    fn pieces_make_the_text_again() {
        let text = " a, b  c";
        let pieces = pieces(text, &[(1, 2), (4, 5)]);
        assert_eq!(pieces.iter().map(|(piece, _)| *piece).collect::<String>(), text);
        assert_eq!(pieces.iter().filter(|(_, marked)| *marked).count(), 2);
    }

    fn scored(scores: &[(f64, f64)]) -> Vec<Output> {
        scores
            .iter()
            .map(|(before, after)| Output {
                before: Some(String::new()),
                after: Some(String::new()),
                before_score: Some(*before),
                after_score: Some(*after),
                ..Output::default()
            })
            .collect()
    }

    #[test]
    fn groups_are_disjoint_and_in_order() {
        let few = [(0.0, 50.0), (90.0, 100.0), (50.0, 0.0), (80.0, 40.0), (10.0, 10.0), (20.0, 30.0)];
        let outputs = scored(&[&few[..], &[(41.0, 42.0); 6]].concat());
        let groups: Vec<Vec<usize>> = groups(&outputs).into_iter().map(|(_, _, indices)| indices).collect();
        assert_eq!(groups, [vec![1, 0, 6, 7], vec![2, 4, 5, 3], vec![8, 9, 10, 11]]);
    }

    #[test]
    fn few_outputs_are_shown_once() {
        for (outputs, grouped) in [(scored(&[(1.0, 2.0); 10]), false), (scored(&[(1.0, 2.0); 11]), true)] {
            let html = examples(&outputs, "ROUGE-L", None, None).into_string();
            assert_eq!(html.contains("<h3>Best</h3>"), grouped);
            assert_eq!(html.contains("<details"), grouped);
            let cards = outputs.len() + if grouped { 9 } else { 0 };
            assert_eq!(html.matches("<article").count(), cards);
        }
    }

    #[test]
    fn unscored_outputs_form_no_group() {
        let outputs = vec![Output::default(); 20];
        assert!(groups(&outputs).iter().all(|(_, _, indices)| indices.is_empty()));
        let html = examples(&outputs, "ROUGE-L", None, None).into_string();
        assert!(html.contains("<h3>All 20 outputs</h3>") && !html.contains("<details"), "{html}");
        assert!(!html.contains("got better"));
    }

    #[test]
    fn better_and_worse_are_counted() {
        let outputs = scored(&[(0.0, 50.0), (90.0, 80.0), (5.0, 5.0), (1.0, 2.0)]);
        let html = examples(&outputs, "ROUGE-L", Some("2 were cut by `key`"), None).into_string();
        for expected in
            ["2 got better", "1 stayed level", "1 got worse", ">2 were cut by <code>key</code>.</p>"]
        {
            assert!(html.contains(expected), "{expected}");
        }
    }

    #[test]
    fn the_list_stops_at_fifty_and_long_text_is_clipped() {
        let mut outputs = vec![Output::default(); 300];
        outputs[0].prompt = "x".repeat(1_000_000);
        outputs[0].after = Some("word ".repeat(200_000));
        let html = examples(&outputs, "", None, Some("predictions.jsonl")).into_string();
        assert!(html.contains("The first 50 of 300 outputs"));
        assert!(html.contains("998,000 more characters"));
        assert!(html.len() < 100_000, "{}", html.len());
    }
}
