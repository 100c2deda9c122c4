//! `--dry-run`: what a change would do, in the masters' words.
//!
//! Invariant: masters that do not know dry runs are never sent one, because they could carry it out. Must never
//! guess what would happen.

use crate::client::{Client, Request};
use crate::error::{CliError, Kind};
use crate::names::unknown_route;
use crate::{Context, output};
use serde::Deserialize;

/// What masters say would happen.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Rehearsal {
    would: Vec<String>,
}

/// Ask what a request would do, and say so.
///
/// # Errors
/// When the masters would refuse it, do not know dry runs, or cannot be reached.
pub async fn rehearse(context: &Context, client: &Client, request: Request) -> Result<(), CliError> {
    match client.json(client.get(&["v1", "version"])).await {
        Err(error) if error.kind == Kind::NotFound => return Err(unknown_route("dry runs")),
        answer => answer.map(drop)?,
    }
    let value = client.json(request.query("dry_run", true)).await?;
    if context.is_data() {
        return output::document(&value);
    }
    told(&crate::api::read(&value)?).iter().try_for_each(|line| output::line(line))
}

fn told(rehearsal: &Rehearsal) -> Vec<String> {
    let mut lines: Vec<String> =
        rehearsal.would.iter().map(|what| output::clean(&format!("would: {what}"))).collect();
    if lines.is_empty() {
        lines.push("nothing would change".to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::told;
    use crate::api::read;
    use serde_json::json;

    #[test]
    fn what_would_happen_is_told_line_by_line() {
        for (value, expected) in [
            (json!({"dry_run": true, "would": ["kill t", "kill u"]}), vec!["would: kill t", "would: kill u"]),
            (json!({"dry_run": true, "would": [], "events": []}), vec!["nothing would change"]),
        ] {
            assert_eq!(told(&read(&value).unwrap()), expected);
        }
    }
}
