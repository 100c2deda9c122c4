//! WASI 0.2 as a scheduler sees it: everything is linked, nothing is granted.
//!
//! Invariants: clocks, polling and randomness follow from the instance's inputs, see `clock` and
//! `random`; nothing waits, sleeping moves the clocks; there are no files, no arguments, no
//! environment and no network; what is printed becomes lines of the guest's log. This file must never
//! start a runtime or touch the machine.

use crate::clock::Clock;
use crate::guest::Guest;
use crate::limits::LimitPassed;
use crate::log::{Log, Stream};
use crate::random::Random;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use tessera_types::LimitName;
use tokio::io::AsyncWrite;
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime::{Result, bail};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::bindings::clocks::{monotonic_clock, wall_clock};
use wasmtime_wasi::p2::bindings::random::{insecure, insecure_seed, random};
use wasmtime_wasi::p2::bindings::sync::io::{poll, streams};
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, DynPollable, OutputStream, Pollable, StreamError, StreamResult,
};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_io::bindings::wasi::io::{poll as io_poll, streams as io_streams};

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.called();
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

/// A context that grants nothing but a log for what is printed.
pub(crate) fn context(log: &Log) -> WasiCtx {
    let mut builder = WasiCtxBuilder::new();
    builder
        .stdout(Printer {
            log: log.clone(),
            stream: Stream::Stdout,
        })
        .stderr(Printer {
            log: log.clone(),
            stream: Stream::Stderr,
        })
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false);
    builder.build()
}

/// Link all of WASI 0.2, with what has to be deterministic replaced.
pub(crate) fn link(linker: &mut Linker<Guest>) -> Result<()> {
    wasmtime_wasi::p2::add_to_linker_sync(linker)?;
    linker.allow_shadowing(true);
    wall_clock::add_to_linker::<_, HasSelf>(linker, Guest::called)?;
    monotonic_clock::add_to_linker::<_, HasSelf>(linker, Guest::called)?;
    random::add_to_linker::<_, HasSelf>(linker, Guest::called)?;
    insecure::add_to_linker::<_, HasSelf>(linker, Guest::called)?;
    insecure_seed::add_to_linker::<_, HasSelf>(linker, Guest::called)?;
    poll::add_to_linker::<_, HasIo>(linker, io)?;
    streams::add_to_linker::<_, HasIo>(linker, io)?;
    linker.allow_shadowing(false);
    Ok(())
}

struct HasSelf;
impl HasData for HasSelf {
    type Data<'a> = &'a mut Guest;
}

struct HasIo;
impl HasData for HasIo {
    type Data<'a> = Io<'a>;
}

/// Streams and polling of one guest.
struct Io<'a> {
    table: &'a mut ResourceTable,
    clock: &'a Clock,
}

fn io(guest: &mut Guest) -> Io<'_> {
    guest.called();
    Io {
        table: &mut guest.table,
        clock: &guest.clock,
    }
}

impl wall_clock::Host for &mut Guest {
    fn now(&mut self) -> Result<wall_clock::Datetime> {
        let ns = self.clock.wall_ns();
        let nanoseconds = u32::try_from(ns % 1_000_000_000).unwrap_or(0);
        Ok(wall_clock::Datetime {
            seconds: ns / 1_000_000_000,
            nanoseconds,
        })
    }

    fn resolution(&mut self) -> Result<wall_clock::Datetime> {
        Ok(wall_clock::Datetime {
            seconds: 0,
            nanoseconds: 1_000,
        })
    }
}

/// Comes due when the clock has moved there.
struct Timer {
    clock: Clock,
    when_ns: u64,
}

#[async_trait::async_trait]
impl Pollable for Timer {
    async fn ready(&mut self) {
        std::future::poll_fn(|_| {
            if self.clock.is_due(self.when_ns) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

fn timer(guest: &mut Guest, when_ns: u64) -> Result<Resource<DynPollable>> {
    let timer = guest.table.push(Timer {
        clock: guest.clock.clone(),
        when_ns,
    })?;
    wasmtime_wasi::p2::subscribe(&mut guest.table, timer)
}

impl monotonic_clock::Host for &mut Guest {
    fn now(&mut self) -> Result<u64> {
        Ok(self.clock.monotonic_ns())
    }

    fn resolution(&mut self) -> Result<u64> {
        Ok(1_000)
    }

    fn subscribe_instant(&mut self, when: u64) -> Result<Resource<DynPollable>> {
        timer(self, when)
    }

    fn subscribe_duration(&mut self, duration: u64) -> Result<Resource<DynPollable>> {
        let when = self.clock.monotonic_ns().saturating_add(duration);
        timer(self, when)
    }
}

fn random_bytes(random: &mut Random, len: u64, max: u64) -> Result<Vec<u8>> {
    if len > max {
        let text = format!("{len} asked for, {max} allowed at once");
        return Err(LimitPassed::of(LimitName::RandomBytes, text).into());
    }
    Ok(random.bytes(usize::try_from(len)?))
}

impl random::Host for &mut Guest {
    fn get_random_bytes(&mut self, len: u64) -> Result<Vec<u8>> {
        let max = self.limits.random_bytes;
        random_bytes(&mut self.random, len, max)
    }

    fn get_random_u64(&mut self) -> Result<u64> {
        Ok(self.random.u64())
    }
}

impl insecure::Host for &mut Guest {
    fn get_insecure_random_bytes(&mut self, len: u64) -> Result<Vec<u8>> {
        let max = self.limits.random_bytes;
        random_bytes(&mut self.insecure, len, max)
    }

    fn get_insecure_random_u64(&mut self) -> Result<u64> {
        Ok(self.insecure.u64())
    }
}

impl insecure_seed::Host for &mut Guest {
    fn insecure_seed(&mut self) -> Result<(u64, u64)> {
        Ok(self.hash_seed)
    }
}

/// Run a future that has nothing to wait for; none if it would wait.
fn at_once<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

fn stream_at_once<T>(future: impl Future<Output = StreamResult<T>>) -> StreamResult<T> {
    at_once(future).unwrap_or_else(|| Err(StreamError::trap("this stream would wait for ever")))
}

impl Io<'_> {
    /// Wait by moving the clock to the earliest timer, for as long as that helps.
    fn wait<T>(
        &mut self,
        mut attempt: impl FnMut(&mut ResourceTable) -> Option<Result<T>>,
    ) -> Result<T> {
        self.clock.forget_timers();
        if let Some(done) = attempt(self.table) {
            return done;
        }
        if !self.clock.advance_to_timer() {
            bail!("the guest waits for something that cannot happen during a turn");
        }
        match attempt(self.table) {
            Some(done) => done,
            None => bail!("the guest waits for something that cannot happen during a turn"),
        }
    }
}

impl poll::Host for Io<'_> {
    fn poll(&mut self, pollables: Vec<Resource<DynPollable>>) -> Result<Vec<u32>> {
        let reps: Vec<u32> = pollables.iter().map(Resource::rep).collect();
        self.wait(|table| {
            let list = reps.iter().map(|rep| Resource::new_borrow(*rep)).collect();
            at_once(io_poll::Host::poll(table, list))
        })
    }
}

impl poll::HostPollable for Io<'_> {
    fn ready(&mut self, pollable: Resource<DynPollable>) -> Result<bool> {
        // A look at a timer is a look at the clock, so that loops of looking end.
        self.clock.monotonic_ns();
        at_once(io_poll::HostPollable::ready(self.table, pollable)).unwrap_or(Ok(false))
    }

    fn block(&mut self, pollable: Resource<DynPollable>) -> Result<()> {
        let rep = pollable.rep();
        self.wait(|table| {
            at_once(io_poll::HostPollable::block(
                table,
                Resource::new_borrow(rep),
            ))
        })
    }

    fn drop(&mut self, pollable: Resource<DynPollable>) -> Result<()> {
        io_poll::HostPollable::drop(self.table, pollable)
    }
}

impl streams::Host for Io<'_> {
    fn convert_stream_error(&mut self, error: StreamError) -> Result<streams::StreamError> {
        streams::Host::convert_stream_error(self.table, error)
    }
}

impl streams::HostOutputStream for Io<'_> {
    fn check_write(&mut self, stream: Resource<DynOutputStream>) -> StreamResult<u64> {
        io_streams::HostOutputStream::check_write(self.table, stream)
    }

    fn write(&mut self, stream: Resource<DynOutputStream>, bytes: Vec<u8>) -> StreamResult<()> {
        io_streams::HostOutputStream::write(self.table, stream, bytes)
    }

    fn blocking_write_and_flush(
        &mut self,
        stream: Resource<DynOutputStream>,
        bytes: Vec<u8>,
    ) -> StreamResult<()> {
        let table = &mut *self.table;
        stream_at_once(io_streams::HostOutputStream::blocking_write_and_flush(
            table, stream, bytes,
        ))
    }

    fn flush(&mut self, stream: Resource<DynOutputStream>) -> StreamResult<()> {
        io_streams::HostOutputStream::flush(self.table, stream)
    }

    fn blocking_flush(&mut self, stream: Resource<DynOutputStream>) -> StreamResult<()> {
        stream_at_once(io_streams::HostOutputStream::blocking_flush(
            self.table, stream,
        ))
    }

    fn subscribe(&mut self, stream: Resource<DynOutputStream>) -> Result<Resource<DynPollable>> {
        io_streams::HostOutputStream::subscribe(self.table, stream)
    }

    fn write_zeroes(&mut self, stream: Resource<DynOutputStream>, len: u64) -> StreamResult<()> {
        io_streams::HostOutputStream::write_zeroes(self.table, stream, len)
    }

    fn blocking_write_zeroes_and_flush(
        &mut self,
        stream: Resource<DynOutputStream>,
        len: u64,
    ) -> StreamResult<()> {
        let table = &mut *self.table;
        let zeroes =
            io_streams::HostOutputStream::blocking_write_zeroes_and_flush(table, stream, len);
        stream_at_once(zeroes)
    }

    fn splice(
        &mut self,
        to: Resource<DynOutputStream>,
        from: Resource<DynInputStream>,
        len: u64,
    ) -> StreamResult<u64> {
        io_streams::HostOutputStream::splice(self.table, to, from, len)
    }

    fn blocking_splice(
        &mut self,
        to: Resource<DynOutputStream>,
        from: Resource<DynInputStream>,
        len: u64,
    ) -> StreamResult<u64> {
        stream_at_once(io_streams::HostOutputStream::blocking_splice(
            self.table, to, from, len,
        ))
    }

    fn drop(&mut self, stream: Resource<DynOutputStream>) -> Result<()> {
        at_once(io_streams::HostOutputStream::drop(self.table, stream)).unwrap_or(Ok(()))
    }
}

impl streams::HostInputStream for Io<'_> {
    fn read(&mut self, stream: Resource<DynInputStream>, len: u64) -> StreamResult<Vec<u8>> {
        io_streams::HostInputStream::read(self.table, stream, len)
    }

    fn blocking_read(
        &mut self,
        stream: Resource<DynInputStream>,
        len: u64,
    ) -> StreamResult<Vec<u8>> {
        stream_at_once(io_streams::HostInputStream::blocking_read(
            self.table, stream, len,
        ))
    }

    fn skip(&mut self, stream: Resource<DynInputStream>, len: u64) -> StreamResult<u64> {
        io_streams::HostInputStream::skip(self.table, stream, len)
    }

    fn blocking_skip(&mut self, stream: Resource<DynInputStream>, len: u64) -> StreamResult<u64> {
        stream_at_once(io_streams::HostInputStream::blocking_skip(
            self.table, stream, len,
        ))
    }

    fn subscribe(&mut self, stream: Resource<DynInputStream>) -> Result<Resource<DynPollable>> {
        io_streams::HostInputStream::subscribe(self.table, stream)
    }

    fn drop(&mut self, stream: Resource<DynInputStream>) -> Result<()> {
        at_once(io_streams::HostInputStream::drop(self.table, stream)).unwrap_or(Ok(()))
    }
}

/// Bytes that one write may carry, as in the runtime's own streams.
const WRITE_BYTES_MAX: usize = 64 << 10;

/// A standard stream that ends in the log.
#[derive(Clone)]
struct Printer {
    log: Log,
    stream: Stream,
}

impl IsTerminal for Printer {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Printer {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        // Asked for by WASI 0.3 only, which is not linked.
        Box::new(tokio::io::sink())
    }
}

#[async_trait::async_trait]
impl Pollable for Printer {
    async fn ready(&mut self) {}
}

impl OutputStream for Printer {
    fn write(&mut self, bytes: bytes::Bytes) -> StreamResult<()> {
        self.log.print(self.stream, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES_MAX)
    }
}
