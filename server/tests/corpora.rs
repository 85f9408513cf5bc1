//! What `tests/fuzz` begins with, and what it has found, on an ordinary compiler.

use std::fs;
use std::path::Path;

// As they call it who build it with a fuzzer inside.
extern crate unisono_server as server;

#[path = "../../tests/fuzz/src/lib.rs"]
mod fuzz;

use fuzz::TARGETS;

#[test]
fn every_input_keeps_the_promises_of_its_target() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
    for (target, check) in TARGETS {
        let inputs = fs::read_dir(corpora.join(target)).expect("each target has a corpus");
        let mut checked = 0;
        for input in inputs {
            let path = input.expect("a folder that can be read").path();
            // The last one is the one that fails.
            println!("{}", path.display());
            check(&fs::read(&path).expect("a file"));
            checked += 1;
        }
        assert!(checked > 0, "{target}");
    }
}
