//! Frames of the link between an agent and its worker: a 4-byte little-endian length and one message.
//!
//! Invariants: a length above [`FRAME_BYTES_MAX`] ends the link before anything is allocated.

use prost::Message;
use std::io::{self, Read, Write};

/// Bytes of one frame: a turn with its largest state, specs and answers stays below 4 MiB.
pub const FRAME_BYTES_MAX: usize = 8 << 20;

/// Append a message as one frame.
pub fn encode<M: Message>(message: &M, buffer: &mut Vec<u8>) {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; 4]);
    // A Vec grows as needed, so that encoding into it cannot fail.
    let _ = message.encode(buffer);
    let length = u32::try_from(buffer.len() - start - 4).unwrap_or(u32::MAX);
    buffer[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// Check a frame's length as read from its first four bytes.
///
/// # Errors
/// When it is longer than [`FRAME_BYTES_MAX`].
pub fn length(header: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_le_bytes(header) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a frame of {length} bytes is longer than {FRAME_BYTES_MAX}"),
        ));
    }
    Ok(length)
}

/// Decode the content of a frame.
///
/// # Errors
/// When it is not such a message.
pub fn decode<M: Message + Default>(content: &[u8]) -> io::Result<M> {
    M::decode(content).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Write one frame.
///
/// # Errors
/// Those of the writer.
pub fn write<M: Message>(writer: &mut impl Write, message: &M) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(message.encoded_len() + 4);
    encode(message, &mut buffer);
    writer.write_all(&buffer)
}

/// Read one frame; none at the end of the stream.
///
/// # Errors
/// Those of the reader; a length above the bound; content that is not such a message.
pub fn read<M: Message + Default>(reader: &mut impl Read) -> io::Result<Option<M>> {
    let mut header = [0; 4];
    match reader.read_exact(&mut header) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut content = vec![0; length(header)?];
    reader.read_exact(&mut content)?;
    decode(&content).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1;

    #[test]
    fn frames_round_trip_and_end() {
        let sent = v1::OfferIds { ids: vec![1, 2, 300] };
        let mut bytes = Vec::new();
        write(&mut bytes, &sent).unwrap();
        write(&mut bytes, &v1::OfferIds::default()).unwrap();
        let mut reader = bytes.as_slice();
        assert_eq!(read(&mut reader).unwrap(), Some(sent));
        assert_eq!(read(&mut reader).unwrap(), Some(v1::OfferIds::default()));
        assert_eq!(read::<v1::OfferIds>(&mut reader).unwrap(), None);
    }

    #[test]
    fn a_long_frame_is_refused_unread() {
        let mut reader = &[0xff_u8; 8][..];
        assert!(read::<v1::OfferIds>(&mut reader).is_err());
        assert_eq!(reader.len(), 4);
    }
}
