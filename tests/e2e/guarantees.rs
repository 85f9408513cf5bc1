//! GUARANTEES.md names the tests that hold each promise: they have to be there.

use unisono_tests::in_repository;

/// Names of tests in a text, as `suite::name`.
fn named(text: &str) -> impl Iterator<Item = &str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|name| name.contains("::") && !name.contains(char::is_whitespace))
}

/// The file of a suite: of the end-to-end tests, or of the simulated cluster.
fn source(suite: &str) -> String {
    match suite {
        "sim" => in_repository("cluster/tests/sim.rs"),
        suite => in_repository(&format!("tests/e2e/{}.rs", suite.replace("::", "/"))),
    }
}

#[test]
fn every_test_that_is_named_is_there() {
    let text = in_repository("GUARANTEES.md");
    assert!(named(&text).count() > 30, "that is what the file is for");
    for name in named(&text) {
        let (suite, test) = name.rsplit_once("::").expect("a suite");
        let code = source(suite);
        let (before, _) = code
            .split_once(&format!("fn {test}()"))
            .unwrap_or_else(|| panic!("there is no test {name}"));
        let attribute = before.trim_end().trim_end_matches("async").trim_end();
        assert!(attribute.ends_with("test]"), "{name} is no test");
    }
}

#[test]
fn every_promise_names_a_test() {
    let text = in_repository("GUARANTEES.md");
    let mut number = 0;
    let mut promises = text.split("\n\n").flat_map(|part| {
        part.split('\n')
            .fold(Vec::<String>::new(), |mut items, line| {
                match items.last_mut() {
                    Some(item) if line.starts_with(' ') => item.push_str(line),
                    _ => items.push(line.to_owned()),
                }
                items
            })
    });
    while let Some(promise) = promises.find(|item| item.starts_with(|c: char| c.is_ascii_digit())) {
        number += 1;
        assert!(promise.starts_with(&format!("{number}. ")), "{promise}");
        assert!(named(&promise).next().is_some(), "{promise}");
    }
    assert!(number > 20, "{number}");
}
