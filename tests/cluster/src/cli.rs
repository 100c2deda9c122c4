//! What the command line says of a cluster.

use crate::cluster::Cluster;
use crate::{Outcome, ensure};
use serde_json::Value;
use std::process::Output;

/// How a command ended, and what it said.
#[must_use]
pub fn told(args: &[&str], output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{args:?}: {}; stdout {:?}; stderr {:?}", output.status, text(&output.stdout), text(&output.stderr))
}

/// What a command that succeeds writes to its stdout.
///
/// # Errors
/// When it does not.
pub async fn stdout(cluster: &Cluster, args: &[&str]) -> Outcome<String> {
    let output = cluster.tessera(args).await?;
    ensure(output.status.success(), || told(args, &output))?;
    Ok(String::from_utf8(output.stdout)?)
}

/// The document that a command writes.
///
/// # Errors
/// When it fails, or writes none.
pub async fn json(cluster: &Cluster, args: &[&str]) -> Outcome<Value> {
    Ok(serde_json::from_str(&stdout(cluster, &[args, &["-o", "json"]].concat()).await?)?)
}
