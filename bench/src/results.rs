//! What was measured: the raw reports of every round, and what they come to. Values only.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::machine::{Machine, Versions};
use crate::matrix::{Cell, Scale};

/// All that a report is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// How large the run was.
    pub scale: Scale,
    /// Of which cells it was to be; none are all.
    pub only: Vec<String>,
    /// The day on which it began, in UTC.
    pub date: String,
    /// How long it took, in seconds.
    pub seconds: u64,
    /// Where it was.
    pub machine: Machine,
    /// What was measured.
    pub versions: Versions,
    /// What came of each cell.
    pub cells: Vec<Outcome>,
}

/// A cell, and what came of each of its rounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// What was measured.
    pub cell: Cell,
    /// As often as it was measured.
    pub rounds: Vec<Round>,
}

/// What came of one round of a cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Round {
    /// It was measured.
    Measured {
        /// What the program that measures has said, as JSON.
        report: Value,
        /// What the nodes were seen to have meanwhile, of a cell that is idle.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        watched: Vec<Sample>,
    },
    /// It was not, for this reason.
    Failed(String),
}

/// What the nodes have at one time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Seconds since before the first socket.
    pub at: f64,
    /// Sockets.
    pub sockets: u64,
    /// Resident memory of their processes, in KiB.
    pub resident_kib: u64,
    /// Subscriptions on the bus, where there is one.
    pub subscriptions: Option<u64>,
}

/// The median of some rounds, and the least and the most of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle one, or halfway between the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

impl Results {
    /// What came of a cell; none where it was not to be measured.
    pub fn of(&self, cell: &Cell) -> Option<&Outcome> {
        self.cells.iter().find(|outcome| outcome.cell == *cell)
    }

    /// The figure of a cell, by its place in what was said of it: `/answer_us/p50`.
    pub fn figure(&self, cell: &Cell, pointer: &str) -> Option<Spread> {
        self.of(cell)?.figure(pointer)
    }

    /// As it is kept in a file, with a line for each cell.
    ///
    /// # Errors
    /// When a figure is no number.
    pub fn to_json(&self) -> serde_json::Result<String> {
        let cells = self.cells.iter().map(serde_json::to_string);
        let cells = cells.collect::<serde_json::Result<Vec<_>>>()?.join(",\n");
        let rest = serde_json::to_string_pretty(&Self {
            cells: vec![],
            ..self.clone()
        })?;
        // What the texts within hold has its quotes escaped, and is never this.
        Ok(rest.replace("\"cells\": []", &format!("\"cells\": [\n{cells}\n]")) + "\n")
    }

    /// Whether some round of some cell was not measured.
    pub fn has_failures(&self) -> bool {
        self.cells
            .iter()
            .any(|outcome| outcome.failures().next().is_some())
    }
}

impl Outcome {
    /// A figure of all rounds that have it; none where no round has.
    pub fn figure(&self, pointer: &str) -> Option<Spread> {
        Spread::of(
            self.reports()
                .filter_map(|report| report.pointer(pointer)?.as_f64()),
        )
    }

    /// What is made of two figures of each round.
    pub fn both(&self, [a, b]: [&str; 2], of: impl Fn(f64, f64) -> f64) -> Option<Spread> {
        Spread::of(self.reports().filter_map(|report| {
            let [a, b] = [a, b].map(|pointer| report.pointer(pointer)?.as_f64());
            Some(of(a?, b?))
        }))
    }

    /// What is made of the samples of each round.
    pub fn watched(&self, of: impl Fn(&[Sample]) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(|round| match round {
            Round::Measured { watched, .. } => of(watched),
            Round::Failed(_) => None,
        }))
    }

    /// What the rounds that were measured have said.
    pub fn reports(&self) -> impl Iterator<Item = &Value> {
        self.rounds.iter().filter_map(|round| match round {
            Round::Measured { report, .. } => Some(report),
            Round::Failed(_) => None,
        })
    }

    /// Why rounds were not measured.
    pub fn failures(&self) -> impl Iterator<Item = &str> {
        self.rounds.iter().filter_map(|round| match round {
            Round::Measured { .. } => None,
            Round::Failed(reason) => Some(reason.as_str()),
        })
    }
}

impl Spread {
    /// Of these values; none where there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let count = values.len();
        Some(Self {
            median: f64::midpoint(values[(count - 1) / 2], values[count / 2]),
            min,
            max,
        })
    }
}

/// `0.12 (0.09 to 0.18)`, and a single value alone.
impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", number(self.median))?;
        match self.min == self.max {
            true => Ok(()),
            false => write!(f, " ({} to {})", number(self.min), number(self.max)),
        }
    }
}

/// A number as people read it: three digits that count, and commas between thousands.
pub fn number(value: f64) -> String {
    let digits = match value.abs() {
        ..1.0 => 3,
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.digits$}");
    match digits {
        0 => thousands(&text),
        _ => text,
    }
}

/// Commas between the thousands of a whole number.
fn thousands(digits: &str) -> String {
    let (sign, digits) = match digits.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", digits),
    };
    let mut text = sign.to_owned();
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A whole number with commas between its thousands.
pub fn count(value: impl Into<u64>) -> String {
    thousands(&value.into().to_string())
}

#[cfg(test)]
impl Results {
    /// Of a whole run on no machine, for tests.
    pub fn without_a_machine(cells: Vec<Outcome>) -> Self {
        Self {
            scale: Scale::Full,
            only: vec![],
            date: "2030-01-02".to_owned(),
            seconds: 61,
            machine: Machine {
                cpu: "a processor".to_owned(),
                cores: 2,
                memory_gib: 8,
                kernel: "6.1".to_owned(),
            },
            versions: Versions {
                unisono: "unisono 0.1.0".to_owned(),
                commit: "abc".to_owned(),
                debug: false,
                rustc: "rustc 1.95.0".to_owned(),
                nats_server: "nats-server: v2.12".to_owned(),
            },
            cells,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::matrix::Wire;

    fn measured(ratio: f64) -> Round {
        Round::Measured {
            report: json!({ "ratio": ratio, "raw": { "cpu_us_per_step": 4 } }),
            watched: vec![],
        }
    }

    #[test]
    fn the_median_is_in_the_middle() {
        let spread = |values: &[f64]| Spread::of(values.iter().copied());
        let odd = spread(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.median, odd.min, odd.max), (2.0, 1.0, 3.0));
        assert_eq!(spread(&[4.0, 1.0]).unwrap().median, 2.5);
        assert_eq!(spread(&[]), None);
    }

    #[test]
    fn rounds_that_failed_are_no_part_of_a_figure() {
        let outcome = Outcome {
            cell: Cell::fanout(Wire::Websocket, 1, 1, 128, 1),
            rounds: vec![
                measured(1.5),
                Round::Failed("lost".to_owned()),
                measured(0.5),
            ],
        };
        assert_eq!(
            outcome.figure("/ratio").unwrap().to_string(),
            "1.00 (0.500 to 1.50)"
        );
        assert_eq!(
            outcome.figure("/raw/cpu_us_per_step").unwrap().to_string(),
            "4.00"
        );
        let both = outcome.both(["/ratio", "/raw/cpu_us_per_step"], |a, b| b / a);
        assert_eq!(both.unwrap().to_string(), "5.33 (2.67 to 8.00)");
        assert_eq!(outcome.figure("/nothing"), None);
        assert_eq!(outcome.failures().collect::<Vec<_>>(), ["lost"]);
    }

    #[test]
    fn results_are_the_same_from_a_file() {
        let sample = Sample {
            at: 0.5,
            sockets: 1,
            resident_kib: 2,
            subscriptions: Some(3),
        };
        let watched = Round::Measured {
            report: json!({ "answer_us": null }),
            watched: vec![sample],
        };
        let lost = Round::Failed("\"cells\": []".to_owned());
        let outcome = |cell| Outcome {
            cell,
            rounds: vec![measured(1.5), lost.clone(), watched.clone()],
        };
        let cells = Scale::Full.cells().into_iter().map(outcome).collect();
        let mut results = Results::without_a_machine(cells);
        results.only.push("\"cells\": []".to_owned());
        let text = results.to_json().unwrap();
        assert_eq!(serde_json::from_str::<Results>(&text).unwrap(), results);
        let lines = text.lines().filter(|line| line.starts_with("{\"cell\""));
        assert_eq!(lines.count(), results.cells.len());
    }

    #[test]
    fn numbers_have_three_digits_and_commas() {
        for (value, text) in [
            (0.1234, "0.123"),
            (1.2, "1.20"),
            (0.0, "0.000"),
            (12.34, "12.3"),
            (123.4, "123"),
            (1_234.0, "1,234"),
            (1_234_567.8, "1,234,568"),
            (-123_456.0, "-123,456"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
