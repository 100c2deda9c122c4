//! The checkpoint: a log of records, each with a checksum, in one file.
//!
//! Invariants: what [`Checkpoint::append`] returned for with `sync` is on the disk; a record that a crash tore is
//! the last one and is cut off, anything else that is damaged is an error; rewriting replaces the file
//! at once or not at all. What records mean is not known here.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// First bytes of the file: what it is and the version of its framing.
const MAGIC: &[u8; 8] = b"tsrchk1\n";

/// Bytes of one record: an executor's turn of 4 MiB with the states of its tasks, the ids of its children
/// and what it is still to be told of them; a spec of 512 KiB and its launch fit well.
const RECORD_BYTES_MAX: usize = 16 << 20;

/// Size from which on the owner should rewrite, if most of it is dead.
pub const REWRITE_BYTES: u64 = 8 << 20;

/// Why the checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The disk refused.
    #[error("the checkpoint {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something in the middle is damaged.
    #[error(
        "the checkpoint {path} is damaged at byte {at}: {what}; the agent cannot know what it runs. Move the work directory away to start as a new agent"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        at: u64,
        /// What.
        what: &'static str,
    },
}

/// The open checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    file: File,
    bytes: u64,
}

/// FNV-1a over 64 bits, folded: it finds torn and flipped bytes, which is all that is asked of it.
fn checksum(bytes: &[u8]) -> u32 {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    let folded = hash ^ (hash >> 32);
    u32::try_from(folded & 0xffff_ffff).unwrap_or(0)
}

fn frame(record: &[u8], buffer: &mut Vec<u8>) {
    let length = u32::try_from(record.len()).unwrap_or(u32::MAX);
    buffer.extend_from_slice(&length.to_le_bytes());
    buffer.extend_from_slice(&checksum(record).to_le_bytes());
    buffer.extend_from_slice(record);
}

impl Checkpoint {
    /// Open or make the checkpoint in a directory, and read its records in order.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged elsewhere than at its end.
    pub fn open(dir: &Path) -> Result<(Self, Vec<Vec<u8>>), CheckpointError> {
        let path = dir.join("tasks.log");
        let io = |source| CheckpointError::Io {
            path: path.clone(),
            source,
        };
        std::fs::create_dir_all(dir).map_err(io)?;
        if !path.exists() {
            let file = replace(&path, &[]).map_err(io)?;
            let bytes = MAGIC.len() as u64;
            return Ok((Self { path, file, bytes }, Vec::new()));
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(io)?;
        let mut content = Vec::new();
        file.read_to_end(&mut content).map_err(io)?;
        let (records, good) = parse(&content).map_err(|(at, what)| CheckpointError::Damaged {
            path: path.clone(),
            at,
            what,
        })?;
        if good < content.len() as u64 {
            file.set_len(good).map_err(io)?;
            file.sync_all().map_err(io)?;
        }
        file.seek(SeekFrom::Start(good)).map_err(io)?;
        Ok((
            Self {
                path,
                file,
                bytes: good,
            },
            records,
        ))
    }

    /// Bytes of the file.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Append records, with one sync for all if something relies on them.
    ///
    /// # Errors
    /// When the disk refuses; what the file holds is then unknown, and the agent must end.
    pub fn append(&mut self, records: &[Vec<u8>], sync: bool) -> Result<(), CheckpointError> {
        let mut buffer = Vec::new();
        for record in records {
            frame(record, &mut buffer);
        }
        let io = |source| CheckpointError::Io {
            path: self.path.clone(),
            source,
        };
        self.file.write_all(&buffer).map_err(io)?;
        if sync {
            self.file.sync_data().map_err(io)?;
        }
        self.bytes += buffer.len() as u64;
        Ok(())
    }

    /// Replace everything by these records.
    ///
    /// # Errors
    /// When the disk refuses; the old records are still there.
    pub fn rewrite(&mut self, records: &[Vec<u8>]) -> Result<(), CheckpointError> {
        let io = |source| CheckpointError::Io {
            path: self.path.clone(),
            source,
        };
        self.file = replace(&self.path, records).map_err(io)?;
        self.bytes = self.file.stream_position().map_err(io)?;
        Ok(())
    }
}

fn replace(path: &Path, records: &[Vec<u8>]) -> io::Result<File> {
    let mut content = MAGIC.to_vec();
    for record in records {
        frame(record, &mut content);
    }
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(&content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok(file)
}

/// The records, and how many bytes of the file hold whole ones.
type Parsed = (Vec<Vec<u8>>, u64);

fn parse(content: &[u8]) -> Result<Parsed, (u64, &'static str)> {
    if !content.starts_with(MAGIC) {
        return Err((0, "it does not begin as a checkpoint of this version does"));
    }
    let mut records = Vec::new();
    let mut at = MAGIC.len();
    while at < content.len() {
        let word = |from: usize| {
            let bytes = content.get(from..from + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        let (Some(length), Some(sum)) = (word(at), word(at + 4)) else {
            break;
        };
        let length = length as usize;
        if length > RECORD_BYTES_MAX {
            return Err((at as u64, "a record is longer than any can be"));
        }
        let Some(record) = content.get(at + 8..at + 8 + length) else {
            break;
        };
        let next = at + 8 + length;
        if checksum(record) != sum {
            if next == content.len() {
                break;
            }
            return Err((at as u64, "a record does not match its checksum"));
        }
        records.push(record.to_vec());
        at = next;
    }
    Ok((records, at as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<Vec<u8>> {
        vec![b"one".to_vec(), Vec::new(), vec![7; 3000]]
    }

    #[test]
    fn records_survive_and_can_be_rewritten() {
        let dir = tempfile::tempdir().unwrap();
        let (mut checkpoint, read) = Checkpoint::open(dir.path()).unwrap();
        assert!(read.is_empty());
        checkpoint.append(&records()[..2], true).unwrap();
        checkpoint.append(&records()[2..], true).unwrap();
        let (mut checkpoint, read) = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(read, records());
        checkpoint.rewrite(&records()[..1]).unwrap();
        checkpoint.append(&records()[1..], true).unwrap();
        assert_eq!(Checkpoint::open(dir.path()).unwrap().1, records());
    }

    #[test]
    fn a_tail_torn_at_any_byte_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let (mut checkpoint, _) = Checkpoint::open(dir.path()).unwrap();
        checkpoint
            .append(&[b"first".to_vec(), b"second".to_vec()], true)
            .unwrap();
        let path = dir.path().join("tasks.log");
        let whole = std::fs::read(&path).unwrap();
        let second = MAGIC.len() + 8 + 5;
        for cut in second..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (mut checkpoint, read) = Checkpoint::open(dir.path()).unwrap();
            assert_eq!(read, [b"first".to_vec()], "cut at {cut}");
            checkpoint.append(&[b"third".to_vec()], true).unwrap();
            let read = Checkpoint::open(dir.path()).unwrap().1;
            assert_eq!(read, [b"first".to_vec(), b"third".to_vec()]);
        }
    }

    #[test]
    fn damage_in_the_middle_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (mut checkpoint, _) = Checkpoint::open(dir.path()).unwrap();
        checkpoint.append(&records(), true).unwrap();
        let path = dir.path().join("tasks.log");
        let mut content = std::fs::read(&path).unwrap();
        content[MAGIC.len() + 9] ^= 1;
        std::fs::write(&path, &content).unwrap();
        assert!(matches!(
            Checkpoint::open(dir.path()),
            Err(CheckpointError::Damaged { .. })
        ));
        std::fs::write(&path, b"something else").unwrap();
        assert!(matches!(
            Checkpoint::open(dir.path()),
            Err(CheckpointError::Damaged { .. })
        ));
    }
}
