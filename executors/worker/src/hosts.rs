//! What all guests of a worker share: engine, linkers, loaded images and the way to the agent.
//!
//! Invariants: an image is loaded once and kept while it is among the last used. This file must never
//! know which guests there are.

use crate::image::{self, LoadError};
use crate::outbox::Outbox;
use crate::thread;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tessera_types::Digest;
use tessera_wit_host::{ExecutorHost, SchedulerHost, TaskHost, TaskImage, Ticker, new_engine};
use wasmtime::Engine;
use wasmtime::component::Component;

/// Images kept loaded for further instances and tasks: a tenant rarely runs more kinds at a time.
const IMAGES_MAX: usize = 32;

/// Why there is no component of an image.
#[derive(Debug)]
pub enum NoImage {
    /// Its file is damaged, or cannot be read: once it is made anew, there may be.
    Damaged(String),
    /// It is another one, or cannot be used.
    Unfit(String),
}

impl From<LoadError> for NoImage {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Io(_) | LoadError::Damaged(_) => Self::Damaged(error.to_string()),
            LoadError::Untrusted(_) | LoadError::OtherEngine { .. } | LoadError::Runtime(_) => {
                Self::Unfit(error.to_string())
            }
        }
    }
}

struct Loaded {
    component: Component,
    source: Digest,
    /// Linked as a task, once it was started as one: linking costs as much as a short task.
    task: Option<TaskImage>,
    used: u64,
}

#[derive(Default)]
struct Images {
    loaded: BTreeMap<PathBuf, Loaded>,
    uses: u64,
}

/// Shared by all threads of a worker.
pub struct Hosts {
    /// The one engine.
    pub engine: Engine,
    /// Links schedulers.
    pub schedulers: SchedulerHost,
    /// Links executors.
    pub executors: ExecutorHost,
    /// Links tasks.
    pub tasks: TaskHost,
    /// The way to the agent.
    pub outbox: Arc<Outbox>,
    images: Mutex<Images>,
}

impl Hosts {
    /// Make the engine and its linkers.
    ///
    /// # Errors
    /// When this machine lacks what the engine needs.
    pub fn new() -> wasmtime::Result<Self> {
        let engine = new_engine()?;
        let ticker = Arc::new(Ticker::start(&engine)?);
        let schedulers = SchedulerHost::new(&engine, ticker.clone(), thread::CONTROL)?;
        let executors = ExecutorHost::new(&engine, ticker.clone(), thread::CONTROL)?;
        let tasks = TaskHost::new(&engine, ticker)?;
        let outbox = Arc::new(Outbox::default());
        Ok(Self {
            engine,
            schedulers,
            executors,
            tasks,
            outbox,
            images: Mutex::default(),
        })
    }

    fn images(&self) -> MutexGuard<'_, Images> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An image, linked as a task.
    ///
    /// # Errors
    /// When it is damaged, no image of this host's, or no command.
    pub fn task_image(&self, path: &Path) -> Result<TaskImage, NoImage> {
        let (component, _) = self.image(path)?;
        if let Some(task) = self.images().loaded.get(path).and_then(|loaded| loaded.task.clone()) {
            return Ok(task);
        }
        let linked = self.tasks.link(&component);
        let task = linked.map_err(|failure| NoImage::Unfit(failure.to_string()))?;
        if let Some(loaded) = self.images().loaded.get_mut(path) {
            loaded.task = Some(task.clone());
        }
        Ok(task)
    }

    /// The component of an image that is to be of the component with this digest; `whose` it is, for the
    /// refusal.
    ///
    /// # Errors
    /// Why it is not.
    pub fn image_of(&self, path: &Path, digest: &[u8], whose: &str) -> Result<Component, NoImage> {
        let (component, source) = self.image(path)?;
        if Digest::from_slice(digest) != Ok(source) {
            let text = format!("the image is of {source}, not of the {whose}'s component");
            return Err(NoImage::Unfit(text));
        }
        Ok(component)
    }

    /// The component of an image, and the digest of what it was compiled from.
    ///
    /// # Errors
    /// When the image is not one that this host's compiler wrote for this engine.
    pub fn image(&self, path: &Path) -> Result<(Component, Digest), LoadError> {
        let mut images = self.images();
        images.uses += 1;
        let now = images.uses;
        if let Some(loaded) = images.loaded.get_mut(path) {
            loaded.used = now;
            return Ok((loaded.component.clone(), loaded.source));
        }
        drop(images);
        let (component, source) = image::load(&self.engine, path)?;
        let mut images = self.images();
        let loaded = Loaded { component: component.clone(), source, task: None, used: now };
        images.loaded.insert(path.to_owned(), loaded);
        if images.loaded.len() > IMAGES_MAX {
            let oldest = images.loaded.iter().min_by_key(|(_, loaded)| loaded.used);
            if let Some(path) = oldest.map(|(path, _)| path.clone()) {
                images.loaded.remove(&path);
            }
        }
        Ok((component, source))
    }
}
