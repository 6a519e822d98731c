//! `report.html` of a real run, in a real browser.

#![allow(clippy::unwrap_used, clippy::panic, reason = "the allowance for tests does not reach their helpers")]

mod browser;
mod common;

use browser::Browser;
use common::Job;
use serde_json::{Value, json};

/// What the test says where there is no browser. In CI that is a failure: `.ci/run` installs one.
const NO_BROWSER: &str = "no Chromium was found, so report.html was NOT looked at: install one (Debian and Ubuntu: \
                          `apt-get install chromium`), or name one in the variable CHROME";

const HOSTILE: &str = "<script>document.title = 'taken'</script><img src=http://127.0.0.1:9/x.png onerror=\"document.title='taken'\">";

/// Each text whose contrast with what lies behind it is below WCAG AA: 4.5, or 3 if it is large.
const LOW_CONTRAST: &str = r#"(() => {
    const channels = (color) => (color.match(/[\d.]+/g) || []).map(Number);
    const light = (rgb) => {
        const [r, g, b] = rgb.map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const color = channels(getComputedStyle(at).backgroundColor);
            if (color.length === 3 || color[3] > 0.99) return color.slice(0, 3);
        }
        return [255, 255, 255];
    };
    const low = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !element.getClientRects().length) continue;
        const style = getComputedStyle(element);
        const front = channels(element instanceof SVGElement ? style.fill : style.color).slice(0, 3);
        const [a, b] = [light(front), light(behind(element))].sort((a, b) => b - a);
        const size = parseFloat(style.fontSize);
        const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < (large ? 3 : 4.5)) low.push([walker.currentNode.data.trim().slice(0, 40), ratio]);
    }
    return low;
})()"#;

fn job() -> Job {
    let job = Job::new();
    let arabic = "السلام عليكم";
    let mut test = vec![(HOSTILE, HOSTILE), (arabic, arabic)];
    // So many that there is a list to open.
    test.extend([("one", "two"); 10]);
    job.write_examples("test.jsonl", &test);
    // Ten different lengths, and a histogram of them.
    let outputs: Vec<String> = (1..=12).map(|words| "the cat ".repeat(words)).collect();
    let train: Vec<(&str, &str)> = outputs.iter().map(|output| ("one", output.trim())).collect();
    job.write_examples("train.jsonl", &train);
    job.finetune(&["training.eval_strategy=steps", "training.eval_steps=1"]).succeeded();
    job
}

#[test]
fn the_page_holds_in_a_browser() {
    let Some(program) = browser::find() else {
        assert!(std::env::var_os("CI").is_none(), "{NO_BROWSER}");
        // Past the test's own capture: this must be seen.
        std::io::Write::write_all(&mut std::io::stderr(), format!("\nWARNING: {NO_BROWSER}\n").as_bytes())
            .unwrap();
        return;
    };
    let job = job();
    let page = job.path("out/report.html");
    let mut browser = Browser::start(&program, job.folder());

    let mut colours = vec![];
    for scheme in ["light", "dark"] {
        for width in [360, 1280] {
            browser.show(width, scheme);
            browser.open(&page);
            let overflow = browser.value(
                "[...document.querySelectorAll('body *')].filter((e) => !e.closest('.scroll') && \
                 e.getBoundingClientRect().right > innerWidth + 0.5).map((e) => e.outerHTML.slice(0, 80))",
            );
            assert_eq!(overflow, json!([]), "beyond {width} px");
            assert_eq!(browser.value("document.documentElement.scrollWidth"), width);
            for part in ["h1", "figure svg.chart:not([style])", ".scores", ".card", ".lengths svg"] {
                let sizes = browser.value(&format!(
                    "[...document.querySelectorAll('{part}')].map((e) => e.getBoundingClientRect()).map((b) => b.width * b.height)"
                ));
                let largest = sizes.as_array().unwrap().iter().filter_map(Value::as_f64).fold(0.0, f64::max);
                assert!(largest > 1000.0, "{part} at {width} px: {sizes}");
            }
            assert_eq!(browser.value(LOW_CONTRAST), json!([]), "{scheme}");
            // One address was asked for, that of the page, and nothing was said on the console.
            let of = |names: &[&str]| -> Vec<&Value> {
                browser
                    .events
                    .iter()
                    .filter(|(name, _)| names.contains(&name.as_str()))
                    .map(|(_, value)| value)
                    .collect()
            };
            let addresses: Vec<&Value> =
                of(&["Network.requestWillBeSent"]).iter().map(|value| &value["request"]["url"]).collect();
            assert_eq!(addresses, [&json!(format!("file://{}", page.display()))]);
            let said = of(&["Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"]);
            assert!(said.is_empty(), "{said:?}");
        }
        let colour =
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]";
        colours.push(browser.value(colour));
    }
    assert!(colours[0][0] != colours[1][0] && colours[0][1] != colours[1][1], "{colours:?}");

    let headline = browser.value("document.querySelector('h1').textContent");
    assert!(headline.as_str().unwrap().contains("on 12 test prompts"), "{headline}");
    // The hostile prompt and reference are text, to the letter, and were neither parsed nor run.
    let shown = browser.value("[...document.querySelectorAll('.prompt, .said')].map((e) => e.textContent)");
    let times = shown.as_array().unwrap().iter().filter(|text| text.as_str() == Some(HOSTILE)).count();
    assert!(times >= 2, "{shown}");
    assert_eq!(browser.value("document.querySelectorAll('script, img, iframe, [onerror]').length"), 0);
    assert_ne!(browser.value("document.title"), "taken");
    // Right-to-left text finds its own direction.
    let direction = "[...document.querySelectorAll('.prompt')].filter((e) => e.textContent.startsWith('ا')).map((e) => getComputedStyle(e).direction)[0]";
    assert_eq!(browser.value(direction), "rtl");

    let is_open = "document.querySelector('details').open";
    let height = "document.querySelector('details .card').getBoundingClientRect().height";
    assert_eq!(browser.value(is_open), false);
    browser.click("details > summary");
    assert_eq!(browser.value(is_open), true);
    assert!(browser.value(height).as_f64().unwrap() > 50.0);
    browser.click("details > summary");
    assert_eq!(browser.value(is_open), false);
}
