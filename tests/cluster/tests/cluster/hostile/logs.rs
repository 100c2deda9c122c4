//! What of a guest's log is kept: bounded, counted, clean.
//!
//! Must never look into another framework's log.

use super::Stage;
use serde_json::Value;
use tessera_cluster::cluster::PATIENCE;
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure};

/// Lines kept of one turn (limit `log-lines`), with room for those of a few ordinary turns.
const LINES_MAX: u64 = 1_000 + 20;
/// Bytes kept of one turn (limit `log-bytes`), with room for what JSON adds to each line.
const BYTES_MAX: usize = (1 << 20) + (160 << 10);

/// Lines that an attack writes; none for one that does not.
pub fn written(by_task: bool, attack: &str) -> Option<u64> {
    Some(match attack {
        "wasi-print" => 200_000,
        "log-flood" => 20_000,
        "log 100000" if by_task => 100_000,
        "log-escapes" => 1,
        _ => return None,
    })
}

impl Stage {
    /// What a guest wrote is bounded, what is dropped is counted, and the rest is one JSON object per
    /// line, free of control characters.
    pub async fn log_is_bounded(&self, name: &str, written: u64) -> Outcome {
        let (text, kept, dropped) =
            until("the log accounts for every line", PATIENCE, async || {
                let text = self.log(name).await.map_err(|error| error.to_string())?;
                let (kept, dropped) = account(&text).map_err(|error| error.to_string())?;
                if kept + dropped >= written {
                    Ok((text, kept, dropped))
                } else {
                    Err(format!("{kept} lines, and {dropped} dropped"))
                }
            })
            .await?;
        ensure(kept <= LINES_MAX && text.len() <= BYTES_MAX, || {
            format!(
                "{kept} lines and {} bytes are kept, {dropped} dropped",
                text.len()
            )
        })?;
        ensure(text.chars().all(|c| c == '\n' || !c.is_control()), || {
            "control characters in the log".to_owned()
        })
    }

    /// All of a framework's log; it is answered in pieces.
    async fn log(&self, name: &str) -> Outcome<String> {
        let mut bytes = Vec::new();
        loop {
            let path = format!("/v1/frameworks/{name}/log?offset={}", bytes.len());
            let piece = self.cluster.rest.get(&path).await?.ok()?;
            if piece.body.is_empty() {
                return Ok(String::from_utf8(bytes)?);
            }
            bytes.extend(piece.body);
        }
    }
}

/// How many lines of guests a log has, and how many it says were dropped.
fn account(text: &str) -> Outcome<(u64, u64)> {
    let (mut kept, mut dropped) = (0, 0);
    let (whole, _) = text.rsplit_once('\n').unwrap_or_default();
    for line in whole.lines() {
        let line: Value = serde_json::from_str(line)?;
        ensure(line["forged"].is_null(), || {
            format!("a forged line: {line}")
        })?;
        let said = line["text"].as_str().unwrap_or_default();
        match said.split_once(" lines over the limit") {
            Some((count, _)) if line["target"] == "host" => dropped += count.parse::<u64>()?,
            _ => kept += 1,
        }
    }
    Ok((kept, dropped))
}
