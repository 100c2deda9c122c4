//! The engine: what the compiler and the runtime are allowed to do, and the ticker of its epochs.
//!
//! Invariants: the key of an engine changes whenever code compiled by it could differ, and cached code
//! is never loaded under another key. Features that the contract does not need are off, because each
//! is attack surface. This file must never make the policy depend on where it runs.

use std::hash::{Hash as _, Hasher as _};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use wasmtime::{Config, Engine, ModuleVersionStrategy, OptLevel, Strategy, WasmBacktraceDetails};

/// Version of the runtime that this was built with; held against the lockfile by a test.
pub const RUNTIME_VERSION: &str = "48.0.8";
/// Counts changes of the policy below that change compiled code.
const POLICY: &str = "p1";
/// Stack of guest code. The threads that run guests have [`THREAD_STACK_BYTES`].
const WASM_STACK_BYTES: usize = 512 << 10;
/// Stack of a thread or fiber that runs guest code: what is beyond the guest's is for host functions.
pub const THREAD_STACK_BYTES: usize = 2 << 20;
/// Frames of a trap that are told: a guest writes its own panic texts.
const BACKTRACE_FRAMES: NonZeroUsize = NonZeroUsize::new(8).unwrap();
/// For tests of upgrades only: its value is appended to the key of the engine, which is then another
/// one. At most [`KEY_SUFFIX_MAX`] of `a-z 0-9` count.
const KEY_SUFFIX: &str = "TESSERA_ENGINE_KEY_SUFFIX";
/// Characters of the suffix: the key stays part of file names.
const KEY_SUFFIX_MAX: usize = 8;
/// Time between two epochs, and so between two looks at a guest's CPU time.
pub const EPOCH: Duration = Duration::from_millis(10);
/// Epochs without a guest after which the ticker sleeps: an idle worker costs nothing.
const TICKS_BEFORE_SLEEP: u32 = 100;

/// An engine under the one policy of the cluster.
///
/// # Errors
/// When this machine lacks what the policy needs.
pub fn new_engine() -> wasmtime::Result<Engine> {
    engine(true)
}

/// An engine whose guests never look whether their time is up: what looking costs is measured against
/// it. Nothing else may use it.
///
/// # Errors
/// When this machine lacks what the policy needs.
pub fn new_engine_without_epochs() -> wasmtime::Result<Engine> {
    engine(false)
}

fn engine(epochs: bool) -> wasmtime::Result<Engine> {
    let mut config = Config::new();
    config
        .strategy(Strategy::Cranelift)
        .cranelift_opt_level(OptLevel::Speed)
        // Guests are replayed: the same inputs have to give the same bits.
        .cranelift_nan_canonicalization(true)
        .module_version(ModuleVersionStrategy::Custom(format!(
            "{RUNTIME_VERSION}+{POLICY}"
        )))?
        .epoch_interruption(epochs)
        .max_wasm_stack(WASM_STACK_BYTES)
        .async_stack_size(THREAD_STACK_BYTES)
        .async_stack_zeroing(true)
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        .wasm_backtrace_max_frames(Some(BACKTRACE_FRAMES))
        .concurrency_support(false)
        .shared_memory(false)
        .wasm_relaxed_simd(false)
        .wasm_memory64(false)
        .wasm_multi_memory(false)
        .wasm_wide_arithmetic(false)
        .wasm_tail_call(false)
        .wasm_custom_page_sizes(false);
    // Instances are allocated on demand: they live long, so that a pool would save nothing that
    // matters, and slots that pass from tenant to tenant have leaked before.
    Engine::new(&config)
}

/// The key under which compiled code is cached: runtime version, policy, and everything of
/// configuration and processor that the runtime itself takes for incompatible. At most 60 characters
/// of `a-z 0-9 . -`.
#[must_use]
pub fn engine_key(engine: &Engine) -> String {
    // Of fixed keys, and so the same in every process.
    #[allow(deprecated)]
    let mut hasher = std::hash::SipHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    format!(
        "wasmtime-{RUNTIME_VERSION}-{POLICY}-{:016x}{}",
        hasher.finish(),
        key_suffix()
    )
}

fn key_suffix() -> String {
    let given = std::env::var(KEY_SUFFIX).unwrap_or_default();
    let plain = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit();
    given.chars().filter(plain).take(KEY_SUFFIX_MAX).collect()
}

#[derive(Debug, Default)]
struct Shared {
    running: AtomicUsize,
    asleep: AtomicBool,
    stop: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
}

/// Advances the epochs of an engine from a thread of its own, while guests run.
#[derive(Debug)]
pub struct Ticker {
    shared: Arc<Shared>,
}

/// While one of these lives, epochs advance.
#[derive(Debug)]
pub(crate) struct Running<'a>(&'a Shared);

impl Ticker {
    /// Start the thread. It ends with the ticker.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub fn start(engine: &Engine) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (weak, on_thread) = (engine.weak(), Arc::clone(&shared));
        std::thread::Builder::new()
            .name("epochs".into())
            .spawn(move || {
                let mut idle = 0;
                while !on_thread.stop.load(Ordering::Relaxed) {
                    std::thread::sleep(EPOCH);
                    let Some(engine) = weak.upgrade() else { return };
                    engine.increment_epoch();
                    drop(engine);
                    if on_thread.running.load(Ordering::SeqCst) > 0 {
                        idle = 0;
                        continue;
                    }
                    idle += 1;
                    if idle > TICKS_BEFORE_SLEEP {
                        on_thread.sleep();
                        idle = 0;
                    }
                }
            })?;
        Ok(Self { shared })
    }

    pub(crate) fn run(&self) -> Running<'_> {
        self.shared.running.fetch_add(1, Ordering::SeqCst);
        if self.shared.asleep.load(Ordering::SeqCst) {
            let _guard = self
                .shared
                .lock
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            self.shared.wake.notify_one();
        }
        Running(&self.shared)
    }
}

impl Shared {
    fn sleep(&self) {
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        // Announced before the last look: one of the two sides sees the other.
        self.asleep.store(true, Ordering::SeqCst);
        while self.running.load(Ordering::SeqCst) == 0 && !self.stop.load(Ordering::SeqCst) {
            guard = self
                .wake
                .wait(guard)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.asleep.store(false, Ordering::SeqCst);
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let _guard = self
            .shared
            .lock
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.shared.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_in_the_key_is_the_one_in_the_lockfile() {
        let lock = include_str!("../../../Cargo.lock");
        let entry = format!("name = \"wasmtime\"\nversion = \"{RUNTIME_VERSION}\"\n");
        assert!(lock.contains(&entry));
    }

    #[test]
    fn keys_are_stable_and_fit_into_a_file_name() {
        let key = |engine: wasmtime::Result<Engine>| engine_key(&engine.unwrap());
        assert_eq!(key(new_engine()), key(new_engine()));
        let key = key(new_engine());
        assert!(key.len() <= 60, "{key}");
        assert!(
            key.chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-".contains(c))
        );
    }

    #[test]
    fn epochs_advance_again_after_the_ticker_has_slept() {
        let engine = new_engine().unwrap();
        let ticker = Ticker::start(&engine).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while !ticker.shared.asleep.load(Ordering::SeqCst) {
            assert!(
                std::time::Instant::now() < deadline,
                "the ticker never slept"
            );
            std::thread::yield_now();
        }
        let _running = ticker.run();
        while ticker.shared.asleep.load(Ordering::SeqCst) {
            assert!(
                std::time::Instant::now() < deadline,
                "the ticker never woke"
            );
            std::thread::yield_now();
        }
    }
}
