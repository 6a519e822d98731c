//! Progress bars of one look.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

fn bar(length: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr()).with_style(style)
}

pub fn bytes(length: u64, message: String) -> ProgressBar {
    bar(length, "{msg} [{bar:32}] {bytes}/{total_bytes}, {eta} left").with_message(message)
}

pub fn items(length: u64, message: String) -> ProgressBar {
    bar(length, "{msg} [{bar:32}] {pos}/{len}, {eta} left").with_message(message)
}
