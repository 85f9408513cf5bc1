//! The log: one line for each event, whatever names and reasons of others are in it.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// What the HTTP server says of requests that it cannot read.
const HTTP_LOG_TARGET: &str = "actix_http";

/// What is logged, and may be changed while the node runs.
pub struct Level {
    text: String,
    set: Box<dyn Fn(EnvFilter) -> anyhow::Result<()>>,
}

/// Writes events to the standard error.
pub fn start(log: &Log) -> Level {
    let filter = filter(&log.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = io::stderr().is_terminal();
    let format = log.format;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || OneLine { format, colours });
    macro_rules! reloading {
        ($builder:expr) => {{
            let builder = $builder.with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            Box::new(move |filter| handle.reload(filter).context("the log has ended"))
        }};
    }
    Level {
        text: log.level.clone(),
        set: match format {
            LogFormat::Text => reloading!(builder.with_ansi(colours)),
            LogFormat::Json => reloading!(builder.json().flatten_event(true)),
        },
    }
}

fn filter(level: &str) -> anyhow::Result<EnvFilter> {
    // What the client of NATS has to say, `cluster` says; and clients can have the HTTP server say as many errors as
    // they like. Unless somebody asks for it.
    let mut filter = level.to_owned();
    for target in [cluster::CLIENT_LOG_TARGET, HTTP_LOG_TARGET] {
        if !level.contains(target) {
            filter = format!("{target}=off,{filter}");
        }
    }
    Ok(EnvFilter::try_new(filter)?)
}

impl Level {
    /// Logs by that level from now on. Says whether it is another one.
    ///
    /// # Errors
    ///
    /// A level that is none.
    pub fn change(&mut self, level: &str) -> anyhow::Result<bool> {
        if self.text == level {
            return Ok(false);
        }
        (self.set)(filter(level)?)?;
        level.clone_into(&mut self.text);
        Ok(true)
    }
}

/// Takes an event as a whole, and writes it as one line. What a client, an application or another node says about
/// itself may hold anything: here no line feed makes a second line of it, and nothing speaks to a terminal.
struct OneLine {
    format: LogFormat,
    colours: bool,
}

impl Write for OneLine {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let line = one_line(&text, self.format, self.colours);
        // A disk that is full, or a pipe that nobody reads, costs the line. An error would cost more: whoever gets it
        // from here says so on the standard error, with a panic where that fails.
        let _ = io::stderr().write_all(line.as_bytes());
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Control characters but for the line feed at the end are escaped, as JSON or Rust would. Colours stay, where there
/// are to be some.
fn one_line(event: &str, format: LogFormat, colours: bool) -> String {
    let text = event.strip_suffix('\n').unwrap_or(event);
    let mut line = String::with_capacity(event.len() + 1);
    let mut rest = text;
    while let Some(at) = rest.find(|letter: char| is_foul(letter)) {
        let (plain, foul) = rest.split_at(at);
        line.push_str(plain);
        if colours && let Some(len) = colour(foul) {
            line.push_str(&foul[..len]);
            rest = &foul[len..];
            continue;
        }
        let letter = foul.chars().next().unwrap_or_default();
        let _ = match format {
            LogFormat::Json => write!(line, "\\u{:04x}", u32::from(letter)),
            LogFormat::Text => write!(line, "{}", letter.escape_default()),
        };
        rest = &foul[letter.len_utf8()..];
    }
    line.push_str(rest);
    line.push('\n');
    line
}

/// Controls, and what some viewers take for the end of a line.
fn is_foul(letter: char) -> bool {
    letter.is_control() || matches!(letter, '\u{2028}' | '\u{2029}')
}

/// The length of a sequence that sets a colour, as `ESC [ 1 ; 31 m`.
fn colour(text: &str) -> Option<usize> {
    let parameters = text.strip_prefix("\u{1b}[")?;
    let end = parameters.find(|letter: char| !letter.is_ascii_digit() && letter != ';')?;
    parameters[end..].starts_with('m').then_some(2 + end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVIL: &str =
        "a name\n2026 WARN forged\r\u{1b}[2J\u{7f}\u{9b}31m\u{2028}\0\ttab\u{7}ü\\ \"";

    #[test]
    fn an_event_is_one_line() {
        for format in [LogFormat::Text, LogFormat::Json] {
            for colours in [true, false] {
                let line = one_line(&format!("node up name={EVIL}\n"), format, colours);
                let text = line.strip_suffix('\n').expect("a line");
                assert!(!text.chars().any(is_foul), "{text:?}");
                assert!(text.contains("name=a name"), "{text:?}");
                assert!(text.ends_with("ü\\ \""), "{text:?}");
            }
        }
        let text = one_line("a\nb\u{1b}c\n", LogFormat::Text, false);
        assert_eq!(text, "a\\nb\\u{1b}c\n");
    }

    #[test]
    fn json_stays_json() {
        let event = "{\"name\":\"\u{9b}\u{7f}\u{2028}x\"}\n";
        let line = one_line(event, LogFormat::Json, false);
        assert_eq!(line, "{\"name\":\"\\u009b\\u007f\\u2028x\"}\n");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["name"], "\u{9b}\u{7f}\u{2028}x");
    }

    #[test]
    fn a_terminal_gets_colours_and_no_more() {
        let event = "\u{1b}[2mwhen\u{1b}[0m \u{1b}[1;31mhi\u{1b}[K\u{1b}]0;title\u{7}\n";
        let kept = "\u{1b}[2mwhen\u{1b}[0m \u{1b}[1;31mhi\\u{1b}[K\\u{1b}]0;title\\u{7}\n";
        assert_eq!(one_line(event, LogFormat::Text, true), kept);
        assert!(!one_line(event, LogFormat::Text, false).contains('\u{1b}'));
    }
}
