//! Compiles `cluster.proto` without `protoc`: `protox` is a parser in Rust. Says which version this is.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=cluster.proto");
    println!("cargo:rerun-if-changed=next.proto");
    let number = |name: &str| {
        let text = env::var(format!("CARGO_PKG_VERSION_{name}")).expect("cargo sets it");
        text.parse::<u32>().expect("it is a number")
    };
    let next = env::var_os("CARGO_FEATURE_NEXT").is_some();
    let version = match next {
        true => format!("{}.{}.0", number("MAJOR"), number("MINOR") + 1),
        false => env::var("CARGO_PKG_VERSION").expect("cargo sets it"),
    };
    println!("cargo:rustc-env=UNISONO_VERSION={version}");
    let mut sources = vec!["cluster.proto"];
    if next {
        sources.push("next.proto");
    }
    let files = protox::compile(sources, ["."]).expect("the schema is valid");
    prost_build::Config::new()
        // `Bytes` fields share the buffer that the bus handed over: a payload is not copied.
        .bytes(["."])
        .compile_fds(files)
        .expect("the generated code can be written");
}
