//! What a node exports to Prometheus.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The text of `/metrics`, taken apart.
#[derive(Debug)]
pub struct Metrics {
    text: String,
    /// By the name with its labels, as they are written.
    samples: BTreeMap<String, f64>,
}

impl Metrics {
    /// Takes a text apart.
    ///
    /// # Panics
    /// When a line is no sample, or a series is there twice.
    pub fn parse(text: String) -> Self {
        let mut samples = BTreeMap::new();
        let lines = text.lines().filter(|line| !line.is_empty());
        for line in lines.filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').expect("a series and a value");
            let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
            let earlier = samples.insert(series.to_owned(), value);
            assert_eq!(earlier, None, "{series} is there twice");
        }
        Self { text, samples }
    }

    /// The whole text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// One series, as `unisono_rooms` or `unisono_sockets{wire="websocket"}`.
    #[track_caller]
    pub fn get(&self, series: &str) -> f64 {
        let sample = self.samples.get(series);
        *sample.unwrap_or_else(|| panic!("no {series} in {}", self.text))
    }

    /// All series of one name, added up.
    #[track_caller]
    pub fn sum(&self, name: &str) -> f64 {
        let of_name = |series: &&String| series.split('{').next() == Some(name);
        let values: Vec<f64> = self
            .samples
            .iter()
            .filter(|(series, _)| of_name(series))
            .map(|(_, value)| *value)
            .collect();
        assert!(!values.is_empty(), "no {name} in {}", self.text);
        values.iter().sum()
    }

    /// All series.
    pub fn series(&self) -> BTreeSet<&str> {
        self.samples.keys().map(String::as_str).collect()
    }

    /// The names that a comment of this kind, `HELP` or `TYPE`, is about.
    pub fn names(&self, comment: &str) -> BTreeSet<&str> {
        let start = format!("# {comment} ");
        let lines = self.text.lines();
        lines
            .filter_map(|line| line.strip_prefix(&start)?.split(' ').next())
            .collect()
    }

    /// What looks like a metric of a node's, in any text.
    pub fn named_in(text: &str) -> impl Iterator<Item = &str> {
        text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
            .filter(|word| word.starts_with("unisono_") || word.starts_with("process_"))
    }
}

/// The text of a file of the repository.
///
/// # Panics
/// When there is no such file.
pub fn in_repository(file: &str) -> String {
    let text = fs::read_to_string(repository().join(file));
    text.unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Runs Prometheus's own tool in the repository, and expects it to be content.
///
/// # Panics
/// When it is not.
pub fn promtool(arguments: &[&str], input: &str) {
    let mut process = Command::new("promtool")
        .args(arguments)
        .current_dir(repository())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("promtool: {error}; install prometheus (Debian: apt-get install prometheus)")
        });
    let mut stdin = process.stdin.take().expect("piped");
    // One that reads nothing says so by its status.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = process.wait_with_output().expect("promtool ends");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
}

fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the repository").to_owned()
}
