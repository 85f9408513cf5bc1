//! Pages that browsers may come from: `auth.origins`, and what an `Origin` header says (RFC 6454). Pure.

use std::net::Ipv6Addr;

use url::Url;

/// An item of `auth.origins`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed {
    /// `null`: pages that have no origin to show, such as files and sandboxed frames.
    Null,
    /// One origin.
    One(Origin),
    /// `https://*.example.com`: any one label before that host.
    AnyLabel(Origin),
}

/// A scheme, a host and a port, written as one: in lower case, without the port that is usual for the scheme.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    scheme: String,
    /// Empty for `file://`.
    host: String,
    port: Option<u16>,
}

/// Schemes of which the standard of URLs knows hosts and ports (WHATWG URL §3.1).
const PORTS: [(&str, u16); 4] = [("http", 80), ("https", 443), ("ws", 80), ("wss", 443)];

/// Longest name of a host (RFC 1035 §2.3.4).
const HOST_BYTES_MAX: usize = 253;

impl Listed {
    /// Reads an item of the list.
    ///
    /// # Errors
    ///
    /// What no `Origin` can ever be, with what to write in its place.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "null" {
            return Ok(Self::Null);
        }
        let bad = |why: &str| Err(format!("`{text}` matches no origin: {why}"));
        let Some((scheme, rest)) = text.split_once("://") else {
            return match text {
                "*" => bad("an empty list lets pages of any origin in"),
                _ => bad("it reads <scheme>://<host>, as https://example.com, or null"),
            };
        };
        if !is_scheme(scheme) {
            return bad("no scheme is written so");
        }
        if let Some(end) = rest.find(['/', '?', '#']) {
            let shorter = &rest[..end];
            return bad(&format!(
                "nothing follows the host; write {scheme}://{shorter}"
            ));
        }
        if let Some((_, host)) = rest.split_once('@') {
            return bad(&format!("an origin has no user; write {scheme}://{host}"));
        }
        let (wildcard, rest) = match rest.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        if rest.contains('*') {
            return bad("`*` stands for one whole label, the first: https://*.example.com");
        }
        // One label before it makes a host of a wildcard.
        let label = if wildcard { "label." } else { "" };
        if let Some(written) = written_by_browsers(scheme, &format!("{label}{rest}")) {
            let Some(written) = written else {
                return bad("that is no host, or no port");
            };
            if !written.eq_ignore_ascii_case(&format!("{label}{rest}")) {
                let star = if wildcard { "*." } else { "" };
                let written = written.strip_prefix(label).unwrap_or(&written);
                return bad(&format!("browsers write {scheme}://{star}{written}"));
            }
        }
        match Origin::parse(&format!("{scheme}://{label}{rest}")) {
            Some(origin) if !wildcard => Ok(Self::One(origin)),
            Some(origin) if origin.host.len() > label.len() => Ok(Self::AnyLabel(Origin {
                host: origin.host[label.len()..].to_owned(),
                ..origin
            })),
            _ => bad("that is no host, or no port"),
        }
    }

    /// Whether the value of an `Origin` header is meant.
    pub fn matches(&self, given: &[u8]) -> bool {
        let given = std::str::from_utf8(given).ok();
        match self {
            Self::Null => given == Some("null"),
            Self::One(origin) => given.and_then(Origin::parse).as_ref() == Some(origin),
            Self::AnyLabel(origin) => {
                let Some(given) = given.and_then(Origin::parse) else {
                    return false;
                };
                let label = given.host.strip_suffix(&origin.host);
                let label = label.and_then(|label| label.strip_suffix('.'));
                label.is_some_and(|label| !label.is_empty() && !label.contains('.'))
                    && (given.scheme, given.port) == (origin.scheme.clone(), origin.port)
            }
        }
    }
}

impl Origin {
    /// Reads what a browser or an app sends as `Origin`.
    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let scheme = scheme.to_ascii_lowercase();
        if !is_scheme(&scheme) {
            return None;
        }
        let (host, port) = match rest.rsplit_once(':') {
            // A colon inside of `[::1]` is none before a port.
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            _ => (rest, None),
        };
        let digits = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        let port = match port {
            Some(port) if digits(port) => Some(port.parse().ok()?),
            Some(_) => return None,
            None => None,
        };
        let host = match host.strip_prefix('[') {
            Some(address) => {
                let address: Ipv6Addr = address.strip_suffix(']')?.parse().ok()?;
                format!("[{address}]")
            }
            None => host.to_ascii_lowercase(),
        };
        // Of files there is no host.
        let named = scheme == "file" && host.is_empty() && port.is_none();
        if !(named || host.starts_with('[') || is_name(&host)) {
            return None;
        }
        let usual = PORTS.iter().find(|(name, _)| *name == scheme);
        Some(Self {
            port: port.filter(|port| usual.is_none_or(|(_, usual)| port != usual)),
            scheme,
            host,
        })
    }
}

/// RFC 3986 §3.1.
fn is_scheme(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    text.starts_with(|first: char| first.is_ascii_alphabetic()) && text.bytes().all(letter)
}

/// Labels of what names of hosts are made of. One dot at the end is a host of its own.
fn is_name(host: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~');
    let labels = host.strip_suffix('.').unwrap_or(host).split('.');
    host.len() <= HOST_BYTES_MAX
        && labels
            .into_iter()
            .all(|label| !label.is_empty() && label.bytes().all(letter))
}

/// A host and its port as browsers write them: names in punycode, addresses in one of their many forms. None of a scheme
/// whose hosts they leave as they are; none inside where it is no host.
fn written_by_browsers(scheme: &str, rest: &str) -> Option<Option<String>> {
    let known = |(name, _): &&(&str, u16)| name.eq_ignore_ascii_case(scheme);
    PORTS.iter().find(known)?;
    let Ok(url) = Url::parse(&format!("{scheme}://{rest}")) else {
        return Some(None);
    };
    let port = match rest.rsplit_once(':') {
        Some((_, port)) if !port.contains(']') => format!(":{port}"),
        _ => String::new(),
    };
    Some(url.host_str().map(|host| format!("{host}{port}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_matches_what_is_meant() {
        for (listed, given, expected) in [
            ("https://example.com", "https://example.com", true),
            ("https://example.com", "HTTPS://Example.COM", true),
            ("https://example.com", "https://example.com:443", true),
            ("https://example.com:443", "https://example.com", true),
            ("HTTPS://EXAMPLE.com", "https://example.com", true),
            ("http://localhost:3000", "http://localhost:3000", true),
            ("http://localhost:3000", "http://localhost", false),
            ("http://localhost:80", "http://localhost", true),
            ("https://example.com:80", "https://example.com", false),
            ("https://example.com", "http://example.com", false),
            ("https://example.com", "https://example.com:8443", false),
            (
                "https://example.com",
                "https://example.com.evil.example",
                false,
            ),
            ("https://example.com", "https://evil-example.com", false),
            ("https://example.com", "https://example.com/", false),
            ("https://example.com", "https://a@example.com", false),
            ("https://example.com", "https://example.com:", false),
            (
                "https://example.com",
                "https://example.com https://example.com",
                false,
            ),
            ("https://example.com", "", false),
            ("https://example.com", "null", false),
            ("https://example.com.", "https://example.com", false),
            (
                "https://xn--mnchen-3ya.example",
                "https://xn--mnchen-3ya.example",
                true,
            ),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080", true),
            ("http://[::1]:8080", "http://[::1]:8080", true),
            ("http://[::1]", "http://[::1]:80", true),
            ("http://[::1]", "http://[::2]", false),
            ("capacitor://localhost", "capacitor://localhost", true),
            ("capacitor://localhost", "Capacitor://LOCALHOST", true),
            ("capacitor://localhost", "ionic://localhost", false),
            ("ionic://localhost", "ionic://localhost", true),
            ("tauri://localhost", "tauri://localhost", true),
            ("https://tauri.localhost", "https://tauri.localhost", true),
            ("app://my_app:80", "app://my_app", false),
            (
                "chrome-extension://abcdefgh",
                "chrome-extension://abcdefgh",
                true,
            ),
            ("null", "null", true),
            ("null", "file://", false),
            ("null", "https://null", false),
            ("file://", "file://", true),
            ("file://", "null", false),
            ("https://*.example.com", "https://a.example.com", true),
            ("https://*.example.com", "https://A-1.Example.Com:443", true),
            ("https://*.example.com", "https://example.com", false),
            ("https://*.example.com", "https://a.b.example.com", false),
            ("https://*.example.com", "https://.example.com", false),
            ("https://*.example.com", "https://*.example.com", false),
            ("https://*.example.com", "https://aexample.com", false),
            ("https://*.example.com", "https://a.evil-example.com", false),
            ("https://*.example.com", "http://a.example.com", false),
            ("https://*.example.com", "https://a.example.com:8443", false),
            (
                "https://*.example.com:8443",
                "https://a.example.com:8443",
                true,
            ),
            ("http://*.localhost:3000", "http://a.localhost:3000", true),
        ] {
            let parsed = Listed::parse(listed).unwrap();
            assert_eq!(
                parsed.matches(given.as_bytes()),
                expected,
                "{listed} {given}"
            );
        }
        assert!(!Listed::Null.matches(b"\xff"));
    }

    #[test]
    fn what_can_never_match_is_a_mistake() {
        for (listed, part) in [
            ("", "reads <scheme>://<host>"),
            ("*", "an empty list"),
            ("example.com", "reads <scheme>://<host>"),
            ("localhost:3000", "reads <scheme>://<host>"),
            ("NULL", "or null"),
            ("://example.com", "no scheme"),
            ("1http://example.com", "no scheme"),
            ("*://example.com", "no scheme"),
            ("https://example.com/", "write https://example.com"),
            ("https://example.com/app", "write https://example.com"),
            ("https://example.com?a", "write https://example.com"),
            ("capacitor://localhost/", "write capacitor://localhost"),
            ("file:///", "write file://"),
            ("https://me:pw@example.com", "write https://example.com"),
            ("https://*", "one whole label"),
            ("https://*example.com", "one whole label"),
            ("https://a.*.example.com", "one whole label"),
            ("https://*.*.example.com", "one whole label"),
            ("http://localhost:*", "one whole label"),
            ("https://*.", "no host"),
            ("https://", "no host"),
            ("capacitor://", "no host"),
            ("https://a..b", "no host"),
            ("https://a b", "no host"),
            ("https://example.com:", "no host, or no port"),
            ("https://example.com:http", "no port"),
            ("https://example.com:65536", "no port"),
            ("app://a:65536", "no port"),
            (
                "https://münchen.example",
                "browsers write https://xn--mnchen-3ya.example",
            ),
            (
                "https://*.münchen.example",
                "browsers write https://*.xn--mnchen-3ya.example",
            ),
            ("app://münchen", "no host"),
            ("http://127.1", "browsers write http://127.0.0.1"),
            ("http://*.0.0.1", "no host"),
            ("http://[0:0::1]", "browsers write http://[::1]"),
        ] {
            let mistake = Listed::parse(listed).expect_err(listed);
            assert!(mistake.contains(part), "{listed}: {mistake}");
        }
    }
}
