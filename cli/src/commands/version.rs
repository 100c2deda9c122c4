//! `tessera version`: of this program, and of the cluster's masters.
//!
//! Must never fail because no cluster answers: that is told, and the program's own version is shown.

use crate::error::CliError;
use crate::{Context, output};
use serde_json::{Value, json};
use std::process::ExitCode;
use tessera_telemetry::{BUILD, Build};
use std::time::Duration;

/// How long a cluster may take to say what it is.
const ASK_FOR: Duration = Duration::from_secs(2);

/// Arguments of `tessera version`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tessera version\n  tessera version --client   # nobody is asked\n  tessera version -o json")]
pub struct VersionArgs {
    /// Only of this program
    #[arg(long)]
    client: bool,
}

/// Run it.
///
/// # Errors
/// When stdout cannot be written to.
pub async fn run(context: &Context, args: VersionArgs) -> Result<ExitCode, CliError> {
    let cluster = if args.client { None } else { Some(ask(context).await) };
    let (cluster, why) = match cluster {
        Some(Ok(value)) => (value, None),
        Some(Err(error)) => (Value::Null, Some(error.message)),
        None => (Value::Null, None),
    };
    if context.is_data() {
        let own = json!({"version": BUILD.version, "commit": BUILD.commit, "built": BUILD.built, "rustc": BUILD.rustc});
        output::document(&json!({"name": BUILD.version, "client": own, "cluster": cluster, "cluster_unknown": why}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut fields = own(BUILD);
    if !args.client {
        fields.extend(told(&cluster, why));
    }
    output::fields(&fields)?;
    Ok(ExitCode::SUCCESS)
}

/// What this program was made from. Who built it without saying so built it for himself.
fn own(build: Build) -> Vec<(&'static str, String)> {
    let rest = [("commit", build.commit), ("built", build.built), ("compiler", build.rustc)];
    let rest = rest.into_iter().filter(|(_, text)| !text.is_empty());
    std::iter::once(("client", build.version)).chain(rest).map(|(name, text)| (name, text.to_owned())).collect()
}

/// What the masters say; older ones have a version in their health only.
async fn ask(context: &Context) -> Result<Value, CliError> {
    let client = context.client()?;
    let quick = |request: crate::client::Request| request.retry_for(Duration::ZERO).within(ASK_FOR);
    match client.json(quick(client.get(&["v1", "version"]))).await {
        Err(error) if error.kind == crate::error::Kind::NotFound => {
            let health = client.json(quick(client.get(&["health"]))).await?;
            Ok(json!({"version": health["version"]}))
        }
        answer => answer,
    }
}

fn told(cluster: &Value, why: Option<String>) -> Vec<(&'static str, String)> {
    let text = |name: &str| match &cluster[name] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    if let Some(why) = why {
        return vec![("cluster", format!("not known: {why}"))];
    }
    vec![
        ("master", text("version")),
        ("commit", text("commit")),
        ("built", text("built")),
        ("cluster version", text("cluster_version")),
        ("contract", text("contract")),
        ("api", text("api")),
    ]
}

#[cfg(test)]
mod tests {
    use super::told;
    use serde_json::json;

    #[test]
    fn what_masters_do_not_say_is_left_out() {
        let fields = told(&json!({"version": "0.1.0", "cluster_version": 4}), None);
        let shown: Vec<_> = fields.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        assert_eq!(shown, [("master", "0.1.0".to_owned()), ("cluster version", "4".to_owned())]);
        assert_eq!(told(&json!(null), Some("no".into())), [("cluster", "not known: no".to_owned())]);
    }
}
