//! `--dry-run`: what a change would do, in the masters' words.
//!
//! Invariant: a dry run is sent only where the masters' own description of their API says that they know it: one that
//! does not could carry the change out. Must never guess what would happen.

use crate::client::{Client, Request};
use crate::error::{CliError, Kind};
use crate::names::unknown_route;
use crate::{Context, output};
use serde::Deserialize;
use serde_json::{Value, json};

/// What masters say would happen.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Rehearsal {
    /// That it was one.
    dry_run: bool,
    would: Vec<String>,
}

/// Ask what a request would do, and say so.
///
/// # Errors
/// When the masters would refuse it, do not know dry runs, or cannot be reached.
pub async fn rehearse(context: &Context, client: &Client, request: Request) -> Result<(), CliError> {
    let value = ask(client, request).await?;
    if context.is_data() {
        return output::document(&value);
    }
    told(&crate::api::read(&value)?).iter().try_for_each(|line| output::line(line))
}

/// As [`rehearse`], one request after the other, each for itself.
///
/// # Errors
/// As [`rehearse`], with the first that would be refused.
pub async fn rehearse_all(context: &Context, client: &Client, requests: Vec<Request>) -> Result<(), CliError> {
    let mut items = Vec::new();
    for request in requests {
        let value = ask(client, request).await?;
        if !context.is_data() {
            told(&crate::api::read(&value)?).iter().try_for_each(|line| output::line(line))?;
        }
        items.push(value);
    }
    if context.is_data() { output::document(&json!({ "items": items })) } else { Ok(()) }
}

/// What masters say would happen.
async fn ask(client: &Client, request: Request) -> Result<Value, CliError> {
    let api = match client.json(client.get(&["v1", "openapi.json"])).await {
        Err(error) if error.kind == Kind::NotFound => return Err(unknown_route("dry runs")),
        answer => answer?,
    };
    let (method, segments) = request.route();
    if !is_known(&api, method, &segments) {
        return Err(unknown_route("dry runs of this"));
    }
    let value = client.json(request.query("dry_run", true)).await?;
    if value.get("dry_run").and_then(Value::as_bool) != Some(true) {
        return Err(CliError::failed("the masters do not say that this was a dry run: look whether it was carried out"));
    }
    Ok(value)
}

/// Whether a description of the API has this request with the parameter `dry_run`.
fn is_known(api: &Value, method: &str, segments: &[&str]) -> bool {
    let Some(paths) = api.get("paths").and_then(Value::as_object) else { return false };
    let method = method.to_ascii_lowercase();
    let mut operations = paths.iter().filter(|(path, _)| fits(path, segments)).filter_map(|(_, path)| path.get(&method));
    operations.any(|operation| {
        let parameters = operation.get("parameters").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        parameters.iter().any(|parameter| parameter.get("name").and_then(Value::as_str) == Some("dry_run"))
    })
}

/// Whether a path with names in braces is that of these parts; a name at the end may stand for several.
fn fits(path: &str, segments: &[&str]) -> bool {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let name = |part: &str| part.starts_with('{');
    let long = parts.last().is_some_and(|last| name(last)) && segments.len() > parts.len();
    (parts.len() == segments.len() || long)
        && parts.iter().zip(segments).all(|(part, segment)| name(part) || part == segment)
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
    use super::{is_known, told};
    use crate::api::read;
    use serde_json::json;

    #[test]
    fn a_dry_run_is_sent_only_where_it_is_known() {
        let dry = json!({"parameters": [{"$ref": "#/x"}, {"name": "dry_run"}]});
        let api = json!({"paths": {
            "/v1/agents/{agent}/drain": {"post": dry},
            "/v1/agents/{agent}/gone": {"post": {"parameters": [{"name": "agent"}]}},
            "/v1/agents/{agent}/activate": {"post": {}},
            "/v1/roles/{role}": {"put": dry, "get": {}},
        }});
        for (method, path, expected) in [
            ("POST", "v1/agents/a1/drain", true),
            ("POST", "v1/agents/a1/gone", false),
            ("POST", "v1/agents/a1/activate", false),
            ("POST", "v1/agents/a1/other", false),
            ("PUT", "v1/roles/eng", true),
            ("PUT", "v1/roles/eng/search", true),
            ("GET", "v1/roles/eng", false),
            ("PUT", "v1/roles", false),
        ] {
            let segments: Vec<&str> = path.split('/').collect();
            assert_eq!(is_known(&api, method, &segments), expected, "{method} {path}");
        }
        assert!(!is_known(&json!({}), "POST", &["v1"]));
    }

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
