//! The table: each figure beside the peer's, with the goal and whether it is met.

use serde_json::{Value, json};

use super::samples::{Samples, number};

/// A bound of the value in question.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    fn met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }

    fn shown(self, unit: &str) -> String {
        match self {
            Self::AtLeast(bound) => format!("≥ {bound}{unit}"),
            Self::AtMost(bound) => format!("≤ {bound}{unit}"),
        }
    }
}

/// Which number the goal is about.
#[derive(Debug, Clone, Copy)]
pub enum Compare {
    /// Ours by the peer's.
    OursByPeer,
    /// The peer's by ours: how many times sooner or faster ours is, where the figures are times.
    PeerByOurs,
    /// Ours alone, in this unit.
    Ours(&'static str),
}

#[derive(Debug)]
pub struct Row {
    pub figure: String,
    /// The name and the figure of the peer.
    pub peer: Option<(String, Samples)>,
    /// `None`: not measured.
    pub ours: Option<Samples>,
    pub compare: Compare,
    pub goal: Option<Goal>,
}

impl Row {
    /// What the goal is held against: of medians.
    pub fn value(&self) -> Option<f64> {
        let ours = self.ours.as_ref()?.median();
        let peer = self.peer.as_ref().map(|(_, samples)| samples.median());
        match self.compare {
            Compare::OursByPeer => Some(ours / peer?),
            Compare::PeerByOurs => Some(peer? / ours),
            Compare::Ours(_) => Some(ours),
        }
    }

    /// Whether the goal is met, if there is one and it was measured.
    pub fn met(&self) -> Option<bool> {
        Some(self.goal?.met(self.value()?))
    }

    fn line(&self) -> String {
        let unit = match self.compare {
            Compare::OursByPeer | Compare::PeerByOurs => "x",
            Compare::Ours(unit) => unit,
        };
        let (name, peer) = match &self.peer {
            Some((name, samples)) => (name.as_str(), samples.shown()),
            None => ("-", "-".into()),
        };
        let ours = self.ours.as_ref().map_or("not measured".into(), Samples::shown);
        let ratio = match (self.compare, self.value()) {
            (Compare::Ours(_), _) | (_, None) => "-".into(),
            (_, Some(value)) => format!("{}x", number(value)),
        };
        let goal = self.goal.map_or("-".into(), |goal| goal.shown(unit));
        let met = match (self.goal, self.met()) {
            (_, Some(true)) => "yes",
            (_, Some(false)) => "no",
            (Some(_), None) => "?",
            (None, None) => "-",
        };
        format!("| {} | {name} | {peer} | {ours} | {ratio} | {goal} | {met} |\n", self.figure)
    }

    fn as_json(&self) -> Value {
        let bound = |at_least: bool| match self.goal {
            Some(Goal::AtLeast(bound)) if at_least => Some(bound),
            Some(Goal::AtMost(bound)) if !at_least => Some(bound),
            _ => None,
        };
        json!({
            "figure": self.figure,
            "peer": self.peer.as_ref().map(|(name, _)| name),
            "peer_figure": self.peer.as_ref().map(|(_, samples)| samples.as_json()),
            "ours": self.ours.as_ref().map(Samples::as_json),
            "value": self.value(),
            "at_least": bound(true),
            "at_most": bound(false),
            "met": self.met(),
        })
    }
}

pub fn markdown(rows: &[Row]) -> String {
    let mut text = String::from(
        "| Figure | Peer | Peer's | ferrotune | Ratio | Goal | Met |\n|---|---|---|---|---|---|---|\n",
    );
    text.extend(rows.iter().map(Row::line));
    text
}

pub fn as_json(rows: &[Row]) -> Value {
    rows.iter().map(Row::as_json).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(peer: Option<f64>, ours: Option<f64>, compare: Compare, goal: Option<Goal>) -> Row {
        Row {
            figure: "speed".into(),
            peer: peer.map(|value| ("them".into(), Samples::of(value))),
            ours: ours.map(Samples::of),
            compare,
            goal,
        }
    }

    #[test]
    fn ratios_go_the_way_that_the_goal_is_written() {
        let rate = row(Some(150.0), Some(330.0), Compare::OursByPeer, Some(Goal::AtLeast(2.2)));
        assert_eq!(rate.met(), Some(true));
        assert_eq!(rate.line(), "| speed | them | 150 | 330 | 2.20x | ≥ 2.2x | yes |\n");
        let time = row(Some(16.0), Some(2.0), Compare::PeerByOurs, Some(Goal::AtLeast(10.0)));
        assert_eq!((time.value(), time.met()), (Some(8.0), Some(false)));
        let memory = row(Some(4_300.0), Some(1_400.0), Compare::OursByPeer, Some(Goal::AtMost(0.34)));
        assert_eq!(memory.met(), Some(true));
    }

    #[test]
    fn a_figure_of_its_own_is_held_to_its_goal() {
        let demo = row(None, Some(12.5), Compare::Ours(" min"), Some(Goal::AtMost(12.0)));
        assert_eq!(demo.line(), "| speed | - | - | 12.5 | - | ≤ 12 min | no |\n");
    }

    #[test]
    fn what_was_not_measured_is_neither_met_nor_missed() {
        let missing = row(None, None, Compare::Ours(" %"), Some(Goal::AtLeast(85.0)));
        assert_eq!(missing.met(), None);
        assert_eq!(missing.line(), "| speed | - | - | not measured | - | ≥ 85 % | ? |\n");
        let no_peer = row(None, Some(1.0), Compare::OursByPeer, None);
        assert_eq!(no_peer.line(), "| speed | - | - | 1.00 | - | - | - |\n");
    }

    #[test]
    fn the_file_has_the_same_as_the_table() {
        let rows = [row(Some(2.0), Some(5.0), Compare::OursByPeer, Some(Goal::AtLeast(2.2)))];
        assert_eq!(markdown(&rows).lines().count(), 3);
        let json = &as_json(&rows)[0];
        assert_eq!((json["value"].as_f64(), json["at_least"].as_f64()), (Some(2.5), Some(2.2)));
        assert_eq!((json["met"].as_bool(), json["at_most"].is_null()), (Some(true), true));
    }
}
