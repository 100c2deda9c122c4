//! Reads server-sent events out of chunks of bytes.
//!
//! Invariants: at most [`EVENT_BYTES_MAX`] bytes wait for their end; an event without its blank line
//! is never handed out. Must never do IO.

use crate::error::CliError;

/// Bytes of one event: those of a master are far below it.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerEvent {
    /// Where to resume after it.
    pub id: Option<String>,
    /// Its kind, if it is not `message`.
    pub event: Option<String>,
    /// Its lines.
    pub data: String,
}

/// The bytes that wait for the end of their event.
#[derive(Debug, Default)]
pub struct Reader {
    pending: Vec<u8>,
}

impl Reader {
    /// Take bytes in, and hand out the events that are now whole.
    ///
    /// # Errors
    /// When an event has no end.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<ServerEvent>, CliError> {
        self.pending
            .extend(bytes.iter().copied().filter(|&byte| byte != b'\r'));
        let mut events = Vec::new();
        while let Some(end) = self.pending.windows(2).position(|pair| pair == b"\n\n") {
            let text: Vec<u8> = self.pending.drain(..end + 2).collect();
            events.extend(parse(&String::from_utf8_lossy(&text)));
        }
        if self.pending.len() > EVENT_BYTES_MAX {
            return Err(CliError::failed(format!(
                "an event has more than {EVENT_BYTES_MAX} bytes"
            )));
        }
        Ok(events)
    }
}

fn parse(text: &str) -> Option<ServerEvent> {
    let mut event = ServerEvent::default();
    let mut lines: Vec<&str> = Vec::new();
    for line in text.lines() {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "id" => event.id = Some(value.to_owned()),
            "event" => event.event = Some(value.to_owned()),
            "data" => lines.push(value),
            _ => {}
        }
    }
    event.data = lines.join("\n");
    // Comments keep a connection alive and say nothing.
    (!lines.is_empty() || event.event.is_some()).then_some(event)
}

#[cfg(test)]
mod tests {
    use super::{EVENT_BYTES_MAX, Reader, ServerEvent};

    #[test]
    fn events_are_whole_whatever_the_chunks() {
        let text = ": hello\n\nid: 7-0\ndata: {\"a\":\ndata: 1}\r\n\r\nevent: gap\ndata:\n\nid: 8-0\ndata: cut";
        let expected = vec![
            ServerEvent {
                id: Some("7-0".into()),
                event: None,
                data: "{\"a\":\n1}".into(),
            },
            ServerEvent {
                id: None,
                event: Some("gap".into()),
                data: String::new(),
            },
        ];
        for size in [1, 2, 7, 1_000] {
            let mut reader = Reader::default();
            let mut events = Vec::new();
            for chunk in text.as_bytes().chunks(size) {
                events.extend(reader.push(chunk).unwrap());
            }
            assert_eq!(events, expected, "chunks of {size}");
        }
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut reader = Reader::default();
        assert!(reader.push(&vec![b'x'; EVENT_BYTES_MAX + 1]).is_err());
    }
}
