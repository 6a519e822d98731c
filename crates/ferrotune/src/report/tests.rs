//! The whole page.

use super::html::{STYLE, STYLE_SHA256};
use super::*;

fn score(value: f64) -> Option<Scores> {
    let interval = Interval { value, low: value - 1.5, high: value + 1.5 };
    Some(["rouge1", "rougeL"].into_iter().map(|metric| (metric, interval)).collect())
}

/// A report in which every text is `text`.
fn filled_with(text: &str) -> Report {
    let own = || text.to_owned();
    let output = |score: f64| Output {
        prompt: own(),
        reference: own(),
        before: Some(own()),
        after: Some(own()),
        before_score: Some(10.0),
        after_score: Some(score),
    };
    let scores: Scores = [(text, Interval { value: 3.0, low: 2.0, high: 4.0 })].into_iter().collect();
    Report {
        model: own(),
        data: own(),
        method: Some(own()),
        metrics: Metrics {
            before: Some(scores.clone()),
            after: Some(scores),
            train: Some(TrainMetrics {
                examples: 2,
                loss: vec![LoggedStep { step: 1, loss: 2.0, ..Default::default() }; 2],
                ..Default::default()
            }),
            stages: vec![StageTime { name: own(), seconds: 1.5 }],
            cpu_features: Some(vec![own()]),
            ..Metrics::default()
        },
        steps: vec![],
        outputs: (0..20).map(|index| output(f64::from(index))).collect(),
        outputs_file: Some(own()),
        splits: vec![Split { name: own(), file: own(), ..Split::default() }],
        lengths: Some(Lengths::of(&[3, 5, 8])),
        preflight: Some(PreflightFacts {
            marked_example: format!("{text}⟦{text}⟧"),
            marked_source: Some(own()),
            ..PreflightFacts::default()
        }),
        recipe: Some(own()),
        environment: vec![Fact::new(text, text)],
    }
}

/// The tags of a page, without attributes' values: `a`, `/a`.
fn tags(html: &str) -> std::collections::BTreeSet<String> {
    html.split('<')
        .skip(1)
        .map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || "!/".contains(*c)).collect())
        .collect()
}

#[test]
fn hostile_text_adds_no_tag_and_no_attribute() {
    // Each word of an answer may be marked; all other markup is the same whatever the text.
    let page = |text: &str| render(&filled_with(text)).replace("<mark>", "").replace("</mark>", "");
    let calm = page("calm");
    for hostile in [
        "</script><img src=x onerror=alert(1)>",
        "</style><script>alert(1)</script>",
        "</title><svg/onload=alert(1)>",
        "\"><iframe src=//evil.example>",
        "' onmouseover='alert(1)",
        "\" onfocus=\"alert(1)\" autofocus x=\"",
        "<!-- --><![CDATA[<base href=//evil.example>",
        "&lt;script&gt;",
        "\u{202e}\0\u{feff}</pre></code></body></html><h1>gone",
    ] {
        let html = page(hostile);
        assert_eq!(tags(&html), tags(&calm), "{hostile}");
        // Quotes that are markup are as many as in the calm page.
        for quote in ['"', '\'', '<', '>'] {
            assert_eq!(html.matches(quote).count(), calm.matches(quote).count(), "{quote} of {hostile}");
        }
        assert!(!html.contains('\0') && !html.contains('\u{202e}'));
    }
    // An ampersand is escaped too: the reader sees what the model wrote.
    assert!(render(&filled_with("&lt;")).contains("&amp;lt;"));
}

#[test]
fn the_page_asks_for_nothing() {
    let html = render(&filled_with("calm"));
    for forbidden in ["http:", "https:", "src=", "href=", "url(", "@import", "<script", "<link", " style="] {
        assert_eq!(html.find(forbidden), None, "{forbidden}");
    }
    for tag in tags(&html) {
        assert!(
            !["script", "img", "iframe", "object", "embed", "link", "base", "form"].contains(&tag.as_str())
        );
    }
}

#[test]
fn the_policy_allows_this_style_sheet_alone() {
    use sha2::Digest;
    let expected = base64(&sha2::Sha256::digest(STYLE));
    assert_eq!(STYLE_SHA256, expected, "style.css has changed: put this hash into html.rs");
    let html = render(&Report::default());
    let policy = format!(
        "content=\"default-src 'none'; style-src 'sha256-{expected}'; base-uri 'none'; form-action 'none'\""
    );
    assert!(html.contains(&policy), "{html}");
    assert!(html.contains(&format!("<style>{STYLE}</style>")));
    assert!(!STYLE.contains('\r') && !STYLE.contains("</"));
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let word = (0..3).fold(0_u32, |word, i| word << 8 | u32::from(group.get(i).copied().unwrap_or(0)));
        for digit in 0..4 {
            let index = (word >> (18 - 6 * digit)) & 63;
            text.push(if digit <= group.len() { char::from(DIGITS[index as usize]) } else { '=' });
        }
    }
    text
}

#[test]
fn a_part_without_data_has_no_section() {
    let empty = render(&Report::default());
    assert!(!empty.contains("<h2>") && empty.contains("Fine-tuning report"));
    let with = |change: fn(&mut Report)| {
        let mut report = Report::default();
        change(&mut report);
        let html = render(&report);
        let titles: Vec<String> = html
            .split("<h2>")
            .skip(1)
            .map(|rest| rest.split("</h2>").next().unwrap_or_default().to_owned())
            .collect();
        titles.join(", ")
    };
    assert_eq!(with(|report| report.metrics.after = score(30.0)), "Scores");
    assert_eq!(with(|report| report.metrics.train = Some(TrainMetrics::default())), "");
    assert_eq!(with(|report| report.metrics.train = filled_with("x").metrics.train), "Training");
    assert_eq!(with(|report| report.metrics.stages = filled_with("x").metrics.stages), "Time");
    assert_eq!(with(|report| report.outputs = filled_with("x").outputs), "Outputs");
    assert_eq!(with(|report| report.preflight = filled_with("x").preflight), "Data");
    assert_eq!(with(|report| report.recipe = Some("seed = 1".into())), "Recipe");
    assert_eq!(with(|report| report.metrics.time_to_first_step_s = Some(4.0)), "Time");
    assert_eq!(with(|report| report.environment = filled_with("x").environment), "Environment");
    assert_eq!(render(&filled_with("x")).matches("<h2>").count(), 7, "a whole report has every section");
}

#[test]
fn the_result_stands_at_the_top_and_in_the_title() {
    let mut report = filled_with("x");
    report.metrics.before = score(16.7);
    report.metrics.after = score(33.4);
    report.metrics.change = score(16.7);
    let html = render(&report);
    assert!(html.contains("<h1>ROUGE-1 rose from 16.7 to 33.4</h1>"), "{html}");
    assert!(
        html.contains("<title>ROUGE-1 rose from 16.7 to 33.4 \u{b7} x \u{b7} fine-tuning report</title>")
    );
    assert!(html.contains("<b class=\"up\">+16.7</b>"), "the table says it too");
    report.metrics.change =
        Some([("rouge1", Interval { value: 16.7, low: -0.1, high: 33.0 })].into_iter().collect());
    assert!(render(&report).contains("<b class=\"level\">+16.7</b>"), "it may be chance");
    report.metrics.change = None;
    report.metrics.after = score(6.7);
    assert!(render(&report).contains("<b class=\"down\">−10.0</b>"));
    // Without a result the model's name is the headline.
    let nothing = render(&Report { model: "SmolLM2".into(), ..Report::default() });
    assert!(nothing.contains("<h1>SmolLM2</h1>"), "{nothing}");
}

#[test]
fn headings_are_in_order_and_every_table_has_a_caption() {
    for outputs in [0, 2, 20] {
        let mut report = filled_with("x");
        report.outputs.truncate(outputs);
        let html = render(&report);
        let mut last = 0;
        for rest in html.split("<h").skip(1) {
            let Some(level) = rest.chars().next().and_then(|digit| digit.to_digit(10)) else { continue };
            assert!(level <= last + 1 && (level > 1 || last == 0), "h{level} after h{last}");
            last = level;
        }
        assert_eq!(html.matches("<table").count(), html.matches("<caption>").count());
        for cell in html.split("<th").skip(1).filter(|rest| rest.starts_with([' ', '>'])) {
            assert!(cell.starts_with(" scope="), "<th{cell}");
        }
        for chart in html.split("<svg").skip(1).map(|rest| rest.split('>').next().unwrap_or_default()) {
            let labelled = chart.contains("role=\"img\" aria-label=\"");
            assert!(labelled || chart.contains("aria-hidden=\"true\""), "<svg{chart}>");
        }
    }
}

#[test]
fn a_large_run_makes_a_page_of_moderate_size() {
    let mut report = filled_with(&"long words of a model ".repeat(2_000));
    let logged = |step| LoggedStep { step, loss: 2.0, learning_rate: 1e-3, grad_norm: 1.0 };
    let history = (0..=10_000).map(|step| ValidationStep::new(step, 2.5)).collect();
    report.metrics.train =
        Some(TrainMetrics { loss: (1..=10_000).map(logged).collect(), ..Default::default() });
    report.metrics.validation = Some(ValidationMetrics { history, ..Default::default() });
    report.outputs = vec![report.outputs[0].clone(); 10_000];
    report.model = "m".into();
    let scores =
        |value| (0..20).map(|i| (format!("metric {i}"), Interval { value, low: 1.0, high: 99.0 })).collect();
    (report.metrics.before, report.metrics.after) = (Some(scores(10.0)), Some(scores(20.0)));
    report.splits.clear();
    report.environment.clear();
    report.metrics.cpu_features = None;
    let html = render(&report);
    assert!(html.len() < 1_000_000, "{}", html.len());
    assert!(html.contains(" of 10,000 outputs") && html.contains("metric 19"));
}

#[test]
fn numbers_that_are_no_numbers_break_nothing() {
    let mut report = filled_with("x");
    report.metrics.before = score(f64::NAN);
    report.metrics.after = score(f64::INFINITY);
    report.outputs[0].after_score = Some(f64::NAN);
    report.metrics.validation =
        Some(ValidationMetrics { loss: f64::NAN, loss_before: Some(f64::INFINITY), ..Default::default() });
    let html = render(&report);
    for attribute in [" d=\"", " cx=\"", " x=\"", " y=\"", " width=\""] {
        for rest in html.split(attribute).skip(1) {
            let value = rest.split('"').next().unwrap_or_default();
            assert!(!value.contains("NaN") && !value.contains("inf"), "{attribute}{value}");
        }
    }
}

#[test]
fn a_report_is_plain_data() {
    let report = filled_with("x");
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
}
