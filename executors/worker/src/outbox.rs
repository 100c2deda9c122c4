//! What goes to the agent: at most one link at a time, and a bounded queue in front of it. What the link
//! takes at once leaves at once, on the thread that has it; only the rest waits for a thread of the link's.
//!
//! Invariants: a frame is queued whole or not at all; logs are given up before anything else; a link
//! that does not take frames is closed, since all that matters is said again after the next Hello.
//! This file must never block a guest's thread.

use nix::sys::socket::MsgFlags;
use std::collections::VecDeque;
use std::io::Write as _;
use std::net::Shutdown;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use tessera_wire::frame;
use tessera_wire::v1::{FromWorker, from_worker::Message};

/// Bytes that may wait for an agent: several of the largest turns.
const QUEUE_BYTES_MAX: usize = 32 << 20;
/// Bytes above which logs are dropped, so that they never push out what matters.
const LOG_QUEUE_BYTES_MAX: usize = 4 << 20;
/// Bytes of frames that are put together for one write.
const WRITE_BYTES: usize = 16 << 10;

struct Link {
    number: u64,
    stream: UnixStream,
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Whether the link's thread writes what it has taken.
    writing: bool,
    closed: bool,
}

#[derive(Default)]
struct Queue {
    link: Option<Link>,
    links: u64,
}

/// The way to the agent.
#[derive(Default)]
pub struct Outbox {
    queue: Mutex<Queue>,
    more: Condvar,
}

impl Outbox {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Take a new link and close the one before. `first` makes what it has to hear first; nothing
    /// else is queued before that.
    ///
    /// # Errors
    /// When the stream cannot be shared with the writer's thread.
    pub fn connect(
        self: &Arc<Self>,
        stream: &UnixStream,
        first: impl FnOnce() -> Vec<Vec<u8>>,
    ) -> std::io::Result<u64> {
        let (reading, writing) = (stream.try_clone()?, stream.try_clone()?);
        let mut queue = self.queue();
        if let Some(old) = queue.link.take() {
            let _ = old.stream.shutdown(Shutdown::Both);
        }
        queue.links += 1;
        let number = queue.links;
        let mut link = Link {
            number,
            stream: reading,
            frames: VecDeque::new(),
            bytes: 0,
            writing: false,
            closed: false,
        };
        for frame in first() {
            push(&mut link, frame);
        }
        queue.link = Some(link);
        drop(queue);
        self.more.notify_all();
        let outbox = Arc::clone(self);
        std::thread::Builder::new()
            .name("link-out".into())
            .spawn(move || outbox.write_to(number, writing))?;
        Ok(number)
    }

    /// Whether this is still the link that counts.
    #[must_use]
    pub fn is_current(&self, number: u64) -> bool {
        self.queue()
            .link
            .as_ref()
            .is_some_and(|link| link.number == number)
    }

    /// Whether an agent is connected.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.queue().link.is_some()
    }

    /// The reader of this link has come to its end.
    pub fn disconnect(&self, number: u64) {
        let mut queue = self.queue();
        if queue
            .link
            .as_ref()
            .is_some_and(|link| link.number == number)
        {
            queue.link = None;
        }
        drop(queue);
        self.more.notify_all();
    }

    /// Queue a message; false if it was not taken.
    pub fn send(&self, message: Message) -> bool {
        let is_log = matches!(message, Message::Log(_));
        self.queue_frame(encode(message), is_log)
    }

    /// Queue a message that [`encode`] has made a frame of; false if it was not taken.
    pub fn send_frame(&self, frame: Vec<u8>) -> bool {
        self.queue_frame(frame, false)
    }

    fn queue_frame(&self, bytes: Vec<u8>, is_log: bool) -> bool {
        let mut queue = self.queue();
        let Some(link) = queue.link.as_mut() else {
            return false;
        };
        if is_log && link.bytes + bytes.len() > LOG_QUEUE_BYTES_MAX {
            return false;
        }
        if link.closed {
            return false;
        }
        if link.bytes + bytes.len() > QUEUE_BYTES_MAX {
            link.closed = true;
            let _ = link.stream.shutdown(Shutdown::Both);
            return false;
        }
        // The thread that writes looks again before it waits.
        let waits = link.frames.is_empty();
        if waits && !link.writing {
            let sent = send_now(&link.stream, &bytes);
            if sent < bytes.len() {
                push(link, bytes[sent..].to_vec());
            }
        } else {
            push(link, bytes);
        }
        let notify = waits && !link.frames.is_empty();
        drop(queue);
        if notify {
            self.more.notify_all();
        }
        true
    }

    fn write_to(&self, number: u64, mut stream: UnixStream) {
        loop {
            let mut queue = self.queue();
            let bytes = loop {
                let Some(link) = queue.link.as_mut().filter(|link| link.number == number) else {
                    return;
                };
                link.writing = !link.frames.is_empty();
                if let Some(bytes) = take(link) {
                    break bytes;
                }
                queue = self
                    .more
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner);
            };
            drop(queue);
            if stream.write_all(&bytes).is_err() {
                let _ = stream.shutdown(Shutdown::Both);
                self.disconnect(number);
                return;
            }
        }
    }
}

/// How many bytes the link takes without waiting. An error is left to the link's thread, which meets it too.
fn send_now(stream: &UnixStream, bytes: &[u8]) -> usize {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    nix::sys::socket::send(stream.as_raw_fd(), bytes, flags).unwrap_or(0)
}

/// The next frame, and small ones after it: they leave in one write.
fn take(link: &mut Link) -> Option<Vec<u8>> {
    let mut bytes = link.frames.pop_front()?;
    while let Some(next) = link.frames.front()
        && bytes.len() + next.len() <= WRITE_BYTES
    {
        bytes.extend_from_slice(next);
        link.frames.pop_front();
    }
    link.bytes -= bytes.len();
    Some(bytes)
}

fn push(link: &mut Link, bytes: Vec<u8>) {
    link.bytes += bytes.len();
    link.frames.push_back(bytes);
}

/// A message as a frame.
#[must_use]
pub fn encode(message: Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode(
        &FromWorker {
            message: Some(message),
        },
        &mut bytes,
    );
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_wire::v1;

    fn log(bytes: usize) -> Message {
        let line = v1::LogLine {
            text: "x".repeat(bytes),
            ..v1::LogLine::default()
        };
        Message::Log(v1::GuestLog {
            framework: 1,
            lines: vec![line],
            dropped: 0, ..Default::default() })
    }

    fn turn(bytes: usize) -> Message {
        let write = v1::KeyWrite {
            key: "k".into(),
            value: Some(vec![0; bytes]),
        };
        Message::Turn(v1::Turn {
            writes: vec![write],
            ..v1::Turn::default()
        })
    }

    #[test]
    fn a_link_hears_its_greeting_first_and_the_newest_wins() {
        let outbox = Arc::new(Outbox::default());
        assert!(!outbox.send(log(1)), "nobody listens");
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let hello = || vec![encode(Message::Hello(v1::Hello::default()))];
        let first = outbox.connect(&ours, hello).unwrap();
        assert!(outbox.send(turn(10)));
        let heard: FromWorker = frame::read(&mut theirs).unwrap().unwrap();
        assert!(matches!(heard.message, Some(Message::Hello(_))));
        let heard: FromWorker = frame::read(&mut theirs).unwrap().unwrap();
        assert!(matches!(heard.message, Some(Message::Turn(_))));
        let (ours, mut newer) = UnixStream::pair().unwrap();
        let second = outbox.connect(&ours, hello).unwrap();
        assert!(!outbox.is_current(first) && outbox.is_current(second));
        assert_eq!(
            frame::read::<FromWorker>(&mut theirs).unwrap(),
            None,
            "the old one is closed"
        );
        assert!(frame::read::<FromWorker>(&mut newer).unwrap().is_some());
    }

    #[test]
    fn logs_give_way_and_a_deaf_link_is_closed() {
        let outbox = Arc::new(Outbox::default());
        let (ours, theirs) = UnixStream::pair().unwrap();
        outbox.connect(&ours, Vec::new).unwrap();
        let logs = (0..100).filter(|_| outbox.send(log(1 << 20))).count();
        assert!(logs < 10, "{logs}");
        let turns = (0..100).filter(|_| outbox.send(turn(1 << 20))).count();
        assert!((20..40).contains(&turns), "{turns}");
        drop(theirs);
    }

    #[test]
    fn frames_keep_their_order_whoever_writes_them() {
        let outbox = Arc::new(Outbox::default());
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        outbox.connect(&ours, Vec::new).unwrap();
        // More than a socket takes: some leave at once, one in two parts, and the rest later.
        let sizes: Vec<usize> = (0..60).map(|number| [10, 300_000, 5_000][number % 3]).collect();
        let sender = Arc::clone(&outbox);
        let sending = sizes.clone();
        let sent = std::thread::spawn(move || sending.iter().all(|&size| sender.send(turn(size))));
        for size in sizes {
            let heard: FromWorker = frame::read(&mut theirs).unwrap().unwrap();
            let Some(Message::Turn(turn)) = heard.message else {
                panic!("{heard:?}");
            };
            assert_eq!(turn.writes[0].value.as_ref().map(Vec::len), Some(size));
        }
        assert!(sent.join().unwrap());
    }
}
