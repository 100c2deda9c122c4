//! Generates the wire types from `proto/*.proto`.

fn main() -> std::io::Result<()> {
    let files = ["common", "turn", "session", "link", "command", "rows", "checkpoint", "recording", "peer"]
        .map(|name| format!("proto/{name}.proto"));
    tonic_prost_build::configure().compile_protos(&files, &["proto".to_owned()])
}
