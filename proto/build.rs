//! Generates the message types from `proto/feed.proto`; protox compiles it, so no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/feed.proto");
    let descriptors = protox::compile(["proto/feed.proto"], ["proto"])?;
    tonic_prost_build::configure().build_client(false).build_server(false).compile_fds(descriptors)?;
    Ok(())
}
