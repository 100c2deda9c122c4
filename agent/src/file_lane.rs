//! The agent's end of the bulk lane for files: answers the master's questions for ranges.
//!
//! Invariants: only sandboxes of tasks, logs and recordings of schedulers, and lists of recordings and of executors'
//! children can be read, whatever a question says;
//! a question that cannot be answered is answered by why.

use crate::caches::{self, Caches};
use crate::children;
use crate::input::Input;
use crate::recordings::{LISTING, Recordings};
use crate::sandbox::{Range, Sandboxes, read_range};
use crate::scheduler_log::SchedulerLogs;
use crate::session::Client;
use std::io;
use std::sync::Arc;
use tessera_types::FrameworkId;
use tessera_wire::v1;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Answers waiting to be sent; each is at most [`RANGE_BYTES_MAX`].
const ANSWERS_AHEAD: usize = 4;

/// Most bytes of one answer.
const RANGE_BYTES_MAX: u32 = 64 << 10;

/// Where files are.
#[derive(Clone)]
pub struct Files {
    /// Of tasks.
    pub sandboxes: Sandboxes,
    /// Of schedulers.
    pub logs: Arc<SchedulerLogs>,
    /// Of schedulers' lives.
    pub recordings: Recordings,
    /// Of components, of which only a summary is shown.
    pub caches: Arc<Caches>,
    /// The agent's loop, which knows how executors' children are.
    pub inputs: mpsc::Sender<Input>,
}

impl Files {
    fn read(&self, request: &v1::FileRequest) -> io::Result<Range> {
        let framework = FrameworkId(request.framework);
        let length = request.length.min(RANGE_BYTES_MAX);
        if request.task.is_empty() && request.path == LISTING {
            let listing = self.recordings.listing(framework)?;
            return Ok(part_of(listing, request.offset, length));
        }
        // No framework has the number 0.
        if request.framework == 0 && request.task.is_empty() && request.path == caches::LISTING {
            let (asker, used) = oneshot::channel();
            let asked = self.inputs.blocking_send(Input::ComponentsInUse(asker));
            let used = asked.ok().and_then(|()| used.blocking_recv().ok()).flatten();
            let listing = self.caches.listing(used)?;
            return Ok(part_of(listing, request.offset, length));
        }
        if request.task.is_empty() && request.path == children::LISTING {
            let (asker, known) = oneshot::channel();
            let asked = self.inputs.blocking_send(Input::Children(framework, asker));
            let known = asked.ok().and_then(|()| known.blocking_recv().ok());
            let known = known.ok_or_else(|| io::Error::other("the agent is ending"))?;
            let listing = children::listing(&self.sandboxes, framework, known)?;
            return Ok(part_of(listing, request.offset, length));
        }
        if let (true, Some(name)) = (
            request.task.is_empty(),
            Recordings::file_of(&request.path),
        ) {
            let folder = self.recordings.folder(framework);
            return read_range(&folder, &name, request.offset, length);
        }
        if request.task.is_empty() {
            return read_range(
                &self.logs.dir(framework),
                &request.path,
                request.offset,
                length,
            );
        }
        let invalid =
            |error: tessera_types::NameError| io::Error::new(io::ErrorKind::InvalidInput, error);
        let key = self
            .sandboxes
            .key_of(framework, &request.task)
            .map_err(invalid)?;
        self.sandboxes.read(&key, &request.path, request.offset, length)
    }

    /// Answer one question.
    #[must_use]
    pub fn answer(&self, request: &v1::FileRequest) -> v1::FileChunk {
        let mut chunk = v1::FileChunk {
            request: request.request,
            ..Default::default()
        };
        match self.read(request) {
            Ok(range) => {
                chunk.data = range.data;
                chunk.size = range.size;
            }
            Err(error) => chunk.error = format!("{}: {error}", request.path),
        }
        chunk
    }
}

/// A range of what is made when it is asked for.
fn part_of(listing: Vec<u8>, offset: u64, length: u32) -> Range {
    let size = listing.len() as u64;
    let from = usize::try_from(offset).unwrap_or(usize::MAX);
    let rest = listing.into_iter().skip(from);
    let data = rest.take(length as usize).collect();
    Range { data, size }
}

/// Keep the lane open for as long as the session stands.
///
/// # Errors
/// When the master ends it.
pub async fn serve_files(
    mut client: Client,
    agent: u64,
    session: u64,
    files: Files,
) -> Result<(), Status> {
    let (sender, answers) = mpsc::channel(ANSWERS_AHEAD);
    let hello = v1::FileChunk {
        agent,
        session,
        ..Default::default()
    };
    if sender.send(hello).await.is_err() {
        return Ok(());
    }
    let mut requests = client
        .files(ReceiverStream::new(answers))
        .await?
        .into_inner();
    while let Some(request) = requests.message().await? {
        let files = files.clone();
        let read = tokio::task::spawn_blocking(move || files.answer(&request)).await;
        let Ok(chunk) = read else { continue };
        if sender.send(chunk).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}
