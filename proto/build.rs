//! Compiles `cluster.proto` without `protoc`: `protox` is a parser in Rust.

fn main() {
    println!("cargo:rerun-if-changed=cluster.proto");
    let files = protox::compile(["cluster.proto"], ["."]).expect("cluster.proto is valid");
    prost_build::Config::new()
        // `Bytes` fields share the buffer that the bus handed over: a payload is not copied.
        .bytes(["."])
        .compile_fds(files)
        .expect("the generated code can be written");
}
