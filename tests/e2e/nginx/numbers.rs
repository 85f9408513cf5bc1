//! The numbers of the shipped file against the nodes' defaults.

use std::time::Duration;

use super::*;

/// The first argument of a directive that stands once in the shipped file.
fn directive(name: &str) -> String {
    let text = Nginx::text();
    let mut values = text.lines().filter_map(|line| {
        let words = line.trim_start().strip_prefix(name)?.strip_prefix(' ')?;
        let (value, _) = words.trim_start().split_once(';')?;
        Some(value.to_owned())
    });
    let value = values.next().unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(values.next(), None, "{name} stands twice");
    value
}

fn time(text: &str) -> Duration {
    let seconds = text.strip_suffix('s').and_then(|count| count.parse().ok());
    Duration::from_secs(seconds.unwrap_or_else(|| panic!("no seconds: {text}")))
}

fn bytes(text: &str) -> u64 {
    let lower = text.to_lowercase();
    let digits = lower.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let count: u64 = digits.parse().expect("a size");
    match lower[digits.len()..].chars().next() {
        Some('k') => count << 10,
        Some('m') => count << 20,
        _ => panic!("no size: {text}"),
    }
}

#[test]
fn the_numbers_agree_with_those_of_the_nodes() {
    let defaults = unisono_tests::in_repository("server/src/unisono.toml");
    let defaults: toml::Table = defaults.parse().expect("TOML");
    let text = |section: &str, key: &str| defaults[section][key].as_str().expect("a text");
    let node = |section: &str, key: &str| time(text(section, key));
    let nginx = |name: &str| time(&directive(name));

    assert_eq!(
        nginx("proxy_read_timeout"),
        3 * node("sockets", "ping_interval")
    );
    // The node is the first to find out, and says goodbye.
    assert!(nginx("send_timeout") > node("sockets", "write_timeout"));
    assert!(
        nginx("proxy_read_timeout")
            > node("sockets", "ping_interval") + node("sockets", "pong_timeout")
    );
    assert!(nginx("proxy_send_timeout") > node("sockets", "handler_timeout"));
    assert!(nginx("proxy_read_timeout") > node("api", "idle_timeout"));
    assert!(nginx("client_header_timeout") > node("sockets", "head_timeout"));
    assert!(nginx("proxy_next_upstream_timeout") > nginx("proxy_connect_timeout") * 3);

    assert_eq!(
        bytes(&directive("client_max_body_size")),
        bytes(text("api", "body_bytes"))
    );
    let line = directive("large_client_header_buffers");
    let line = line.split(' ').nth(1).expect("a size");
    assert_eq!(bytes(line), bytes(text("sockets", "head_bytes")));
}
