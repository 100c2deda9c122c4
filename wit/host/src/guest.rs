//! What one store holds, and the functions that a scheduler may call.
//!
//! Invariants: every function only reads, or enqueues into the turn's draft; none waits, and none
//! fails in a way that the contract does not name. This file must never touch anything outside of the
//! instance.

use crate::bindings::tessera::framework::types::Error;
use crate::bindings::tessera::framework::{driver, events, http, log, specs, state, timers, types};
use crate::clock::Clock;
use crate::convert;
use crate::draft::{Draft, Groups, Refused};
use crate::executor_draft::ExecutorDraft;
use crate::limits::{Account, Budget, Limits};
use crate::log::Log;
use crate::random::Random;
use crate::state::State;
use tessera_types::{AgentId, Filters, OfferId};
use wasmtime::component::ResourceTable;
use wasmtime_wasi::WasiCtx;

/// Everything that belongs to one instance of a scheduler or an executor.
pub(crate) struct Guest {
    pub(crate) wasi: WasiCtx,
    pub(crate) table: ResourceTable,
    pub(crate) limits: Limits,
    pub(crate) account: Account,
    pub(crate) budget: Budget,
    pub(crate) clock: Clock,
    pub(crate) random: Random,
    pub(crate) insecure: Random,
    pub(crate) hash_seed: (u64, u64),
    pub(crate) log: Log,
    pub(crate) state: State,
    /// A scheduler's turn; of an executor it stays empty.
    pub(crate) draft: Draft,
    /// An executor's turn; of a scheduler it stays empty.
    pub(crate) executor: ExecutorDraft,
}

impl Guest {
    /// Every function that a guest calls reaches its store through here, or through what WASI is given,
    /// and is counted.
    pub(crate) const fn called(&mut self) -> &mut Self {
        self.budget.count_host_call();
        self
    }
}

fn refuse<T>(what: &str) -> Result<T, Error> {
    Err(Refused::Unsupported(what.to_owned()).into())
}

fn offer_ids(ids: Vec<u64>) -> Vec<OfferId> {
    ids.into_iter().map(OfferId).collect()
}

const fn filters(filters: driver::Filters) -> Filters {
    Filters {
        refuse_ms: filters.refuse_ms,
    }
}

impl types::Host for Guest {}
impl events::Host for Guest {}

impl log::Host for Guest {
    fn write(
        &mut self,
        level: types::Level,
        target: String,
        text: String,
        fields: Vec<(String, String)>,
    ) {
        self.log
            .write(convert::log_level(level), &target, &text, &fields);
    }

    fn enabled(&mut self, _level: types::Level) -> bool {
        self.log.has_room()
    }
}

impl specs::Host for Guest {
    fn define(&mut self, spec: types::TaskSpec) -> Result<String, Error> {
        Ok(self.draft.define(convert::task_spec(spec)?)?.hex())
    }
}

impl driver::Host for Guest {
    fn accept(
        &mut self,
        offers: Vec<u64>,
        operations: Vec<driver::Operation>,
        decline: driver::Filters,
        operation_id: Option<String>,
    ) -> Result<(), Error> {
        if operation_id.is_some() {
            return refuse("operation-id: an operation with an outcome of its own");
        }
        let mut groups = Groups::default();
        for operation in operations {
            use driver::Operation as O;
            match operation {
                O::Launch(launch) => groups.single(convert::launch(launch)?),
                O::LaunchGroup(launches) => {
                    let launches = launches.into_iter().map(convert::launch);
                    groups.together(launches.collect::<Result<_, _>>()?)?;
                }
                O::Reserve(_) => return refuse("operations.reserve"),
                O::Unreserve(_) => return refuse("operations.unreserve"),
                O::CreateVolume(_) => return refuse("operations.create-volume"),
                O::DestroyVolume(_) => return refuse("operations.destroy-volume"),
                O::GrowVolume(_) => return refuse("operations.grow-volume"),
                O::ShrinkVolume(_) => return refuse("operations.shrink-volume"),
                O::Other(ext) => return refuse(&format!("operations.other: {:?}", ext.key)),
            }
        }
        Ok(self
            .draft
            .accept(offer_ids(offers), groups, filters(decline))?)
    }

    fn decline(&mut self, offers: Vec<u64>, decline: driver::Filters) -> Result<(), Error> {
        Ok(self.draft.decline(offer_ids(offers), filters(decline))?)
    }

    fn revive(&mut self) -> Result<(), Error> {
        Ok(self.draft.revive()?)
    }

    fn suppress(&mut self) -> Result<(), Error> {
        Ok(self.draft.suppress()?)
    }

    fn kill(&mut self, task: String, grace_ms: Option<u32>) -> Result<(), Error> {
        Ok(self.draft.kill(&task, grace_ms.map(u64::from))?)
    }

    fn reconcile(&mut self, tasks: Vec<String>) -> Result<(), Error> {
        Ok(self.draft.reconcile(&tasks)?)
    }

    fn send(&mut self, agent: u64, executor: String, data: Vec<u8>) -> Result<(), Error> {
        Ok(self.draft.send(AgentId(agent), &executor, data)?)
    }

    fn shutdown_executor(&mut self, agent: u64, executor: String) -> Result<(), Error> {
        Ok(self.draft.shutdown_executor(AgentId(agent), &executor)?)
    }

    fn accept_inverse(&mut self, _offers: Vec<u64>) -> Result<(), Error> {
        refuse("accept-inverse: an inverse offer")
    }

    fn decline_inverse(
        &mut self,
        _offers: Vec<u64>,
        _filters: driver::Filters,
    ) -> Result<(), Error> {
        refuse("decline-inverse: an inverse offer")
    }

    fn call_again(&mut self) {
        // The contract gives this call no way to fail; a turn that is full of operations is called
        // again by the events that answer them.
        let _ = self.draft.call_again();
    }

    fn begin_group(&mut self) -> Result<(), Error> {
        Ok(self.draft.begin_gang()?)
    }

    fn end_group(&mut self) -> Result<(), Error> {
        Ok(self.draft.end_gang()?)
    }
}

impl state::Host for Guest {
    fn get(&mut self, key: String) -> Option<Vec<u8>> {
        self.state.get(&key).map(<[u8]>::to_vec)
    }

    fn set(&mut self, key: String, value: Vec<u8>) -> Result<(), Error> {
        Ok(self.state.write(&key, Some(value))?)
    }

    fn delete(&mut self, key: String) -> Result<(), Error> {
        Ok(self.state.write(&key, None)?)
    }

    fn scan(
        &mut self,
        prefix: String,
        after: Option<String>,
        limit: u32,
    ) -> Vec<(String, Vec<u8>)> {
        self.state.scan(&prefix, after.as_deref(), limit)
    }
}

impl timers::Host for Guest {
    fn set(&mut self, id: String, after_ms: u64) -> Result<(), Error> {
        Ok(self.draft.set_timer(id, after_ms)?)
    }

    fn cancel(&mut self, id: String) -> Result<(), Error> {
        Ok(self.draft.cancel_timer(id)?)
    }
}

impl http::Host for Guest {
    fn respond(&mut self, id: u64, answer: http::HttpAnswer) -> Result<(), Error> {
        Ok(self.draft.respond(id, convert::http_answer(answer))?)
    }

    fn send(&mut self, _request: http::Outgoing) -> Result<(), Error> {
        refuse("send: an outgoing request")
    }

    fn publish(&mut self, _stream: String, _data: Vec<u8>) -> Result<(), Error> {
        refuse("publish: a stream")
    }
}
