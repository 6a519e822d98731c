//! What the time went to.

use maud::{Markup, html};

use super::metrics::StageTime;
use super::text::{Untrusted, duration};

/// A row for each stage, with its share as a bar.
pub(super) fn stages(stages: &[StageTime]) -> Markup {
    let total: f64 = stages.iter().map(|stage| stage.seconds).filter(|seconds| seconds.is_finite()).sum();
    let share = |seconds: f64| if total > 0.0 { (100.0 * seconds / total).clamp(0.0, 100.0) } else { 0.0 };
    html! {
        table class="stages" {
            caption { "Time used by each stage, " (duration(total)) " in all; training includes the validation loss." }
            thead { tr { th scope="col" { "Stage" } th scope="col" class="plot" { span class="unseen" { "Share" } } th scope="col" class="number" { "Time" } } }
            tbody {
                @for stage in stages {
                    tr {
                        th scope="row" { (Untrusted(&stage.name)) }
                        td class="plot" {
                            svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" {
                                rect class="bar" x="0" y="0" width=(format!("{:.2}", share(stage.seconds))) height="10" {}
                            }
                        }
                        td class="number" { (duration(stage.seconds)) }
                    }
                }
            }
        }
    }
}
