//! Request heads at the door: what goes on to the HTTP server says there what it said here, and never comes back as
//! a wish to upgrade, which would go round for ever.

use actix_codec::Decoder;
use actix_http::ServiceConfig;
use actix_http::h1::{Codec, Message};
use bytes::BytesMut;
use httparse::{EMPTY_HEADER, Request, Status};
use server::fuzzing::handshake::{Wanted, read, without_upgrade};
use server::fuzzing::{forwarded, head_for_http};

/// As many as the door takes.
const HEADERS_MAX: usize = 100;

thread_local! {
    /// Settings of the HTTP server; they start a clock, which nobody needs here.
    static SETTINGS: ServiceConfig = actix_rt::Runtime::new()
        .expect("a runtime")
        .block_on(async { ServiceConfig::default() });
}

/// A stream that begins with a head.
pub fn check(data: &[u8]) {
    let Some(end) = data.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
        return;
    };
    let head = &data[..end + 4];
    match head_for_http(head) {
        Err(refusal) => check_answer(&refusal.response()),
        Ok(None) => check_socket(head),
        Ok(Some(onward)) => check_onward(head, &onward),
    }
}

fn parse<T>(head: &[u8], act: impl FnOnce(&Request<'_, '_>) -> T) -> T {
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut request = Request::new(&mut headers);
    let status = request.parse(head).expect("it was read before");
    assert_eq!(status, Status::Complete(head.len()), "the same end");
    act(&request)
}

fn check_socket(head: &[u8]) {
    parse(head, |request| {
        let Ok(Wanted::Socket(upgrade)) = read(request) else {
            panic!("the door takes it for a socket");
        };
        let response = upgrade.response();
        let response = std::str::from_utf8(&response).expect("text");
        assert!(response.starts_with("HTTP/1.1 101 "));
        assert_eq!(upgrade.accept.len(), 28);
        check_answer(response.as_bytes());
        check_addresses(request);
    });
}

/// One answer, and nothing of the request that could begin another.
fn check_answer(answer: &[u8]) {
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let Ok(Status::Complete(len)) = response.parse(answer) else {
        panic!("the answer is none");
    };
    let length = response
        .headers
        .iter()
        .find(|header| header.name == "Content-Length")
        .map_or("0", |header| {
            std::str::from_utf8(header.value).expect("text")
        });
    assert_eq!(length.parse(), Ok(answer.len() - len));
}

fn check_onward(head: &[u8], onward: &[u8]) {
    let is = |name: &str, other: &str| name.eq_ignore_ascii_case(other);
    parse(onward, |request| {
        assert_eq!(read(request), Ok(Wanted::Http));
        let mut headers = request.headers.iter();
        assert!(!headers.any(|header| is(header.name, "upgrade")));
        let again = without_upgrade(request);
        assert_eq!(again, onward, "there is nothing more to take away");
        parse(head, |original| {
            assert_eq!(request.method, original.method);
            assert_eq!(request.path, original.path);
            assert_eq!(request.version, original.version);
            let rest = |request: &Request<'_, '_>| {
                let headers = request.headers.iter().filter(|header| {
                    !["upgrade", "connection", "via"]
                        .iter()
                        .any(|name| is(header.name, name))
                });
                let own = |header: &httparse::Header<'_>| {
                    (header.name.to_owned(), header.value.to_owned())
                };
                headers.map(own).collect::<Vec<_>>()
            };
            assert_eq!(rest(request), rest(original));
            check_addresses(request);
        });
    });
    let mut codec = Codec::new(SETTINGS.with(Clone::clone));
    let mut input = BytesMut::from(onward);
    match codec.decode(&mut input) {
        Ok(Some(Message::Item(request))) => {
            assert!(!codec.upgrade() && !request.upgrade(), "it would come back");
            assert!(input.is_empty(), "the same end");
        }
        Ok(Some(Message::Chunk(_))) => panic!("a body before its head"),
        Ok(None) => panic!("the HTTP server waits for more"),
        Err(_) => {}
    }
}

fn check_addresses(request: &Request<'_, '_>) {
    for header in request.headers.iter() {
        let value = String::from_utf8_lossy(header.value);
        for item in value.split(',').map(str::trim) {
            if let Some(address) = forwarded(item) {
                assert_eq!(forwarded(&address.to_string()), Some(address));
                assert_eq!(
                    forwarded(&address.ip().to_string()).map(|found| found.ip()),
                    Some(address.ip())
                );
            }
        }
    }
}
