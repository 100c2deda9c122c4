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
use crate::state::{State, WriteRefused};
use std::collections::BTreeMap;
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
    /// Limits by which calls were refused, since somebody asked last; there are no more than limits.
    pub(crate) refused: BTreeMap<&'static str, u64>,
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

    /// A limit stood against something, and the guest was told.
    pub(crate) fn note_limit(&mut self, limit: &'static str) {
        *self.refused.entry(limit).or_default() += 1;
    }

    /// What the guest is told of a call.
    fn told<T, R: Refusal>(&mut self, taken: Result<T, R>) -> Result<T, Error> {
        taken.map_err(|refused| {
            if let Some(limit) = refused.limit() {
                self.note_limit(limit);
            }
            refused.into()
        })
    }
}

/// Why a call was refused.
trait Refusal: Into<Error> {
    /// The limit that stood against it.
    fn limit(&self) -> Option<&'static str>;
}

impl Refusal for Refused {
    fn limit(&self) -> Option<&'static str> {
        match self {
            Self::Limit(passed) => Some(passed.name),
            Self::Invalid(_) | Self::NotFound(_) | Self::Denied(_) | Self::Unsupported(_) => None,
        }
    }
}

impl Refusal for WriteRefused {
    fn limit(&self) -> Option<&'static str> {
        match self {
            Self::Limit(passed) => Some(passed.name),
            Self::Key(_) => None,
        }
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
        let defined = self.draft.define(convert::task_spec(spec)?);
        self.told(defined).map(|digest| digest.hex())
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
        let taken = self.draft.accept(offer_ids(offers), groups, filters(decline));
        self.told(taken)
    }

    fn decline(&mut self, offers: Vec<u64>, decline: driver::Filters) -> Result<(), Error> {
        let taken = self.draft.decline(offer_ids(offers), filters(decline));
        self.told(taken)
    }

    fn revive(&mut self) -> Result<(), Error> {
        let taken = self.draft.revive();
        self.told(taken)
    }

    fn suppress(&mut self) -> Result<(), Error> {
        let taken = self.draft.suppress();
        self.told(taken)
    }

    fn request(&mut self, requests: Vec<types::ResourceRequest>) -> Result<(), Error> {
        let requests = requests.into_iter().map(convert::resource_request).collect::<Result<_, Refused>>()?;
        let taken = self.draft.request(requests);
        self.told(taken)
    }

    fn kill(&mut self, task: String, grace_ms: Option<u32>) -> Result<(), Error> {
        let taken = self.draft.kill(&task, grace_ms.map(u64::from));
        self.told(taken)
    }

    fn reconcile(&mut self, tasks: Vec<String>) -> Result<(), Error> {
        let taken = self.draft.reconcile(&tasks);
        self.told(taken)
    }

    fn send(&mut self, agent: u64, executor: String, data: Vec<u8>) -> Result<(), Error> {
        let taken = self.draft.send(AgentId(agent), &executor, data);
        self.told(taken)
    }

    fn shutdown_executor(&mut self, agent: u64, executor: String) -> Result<(), Error> {
        let taken = self.draft.shutdown_executor(AgentId(agent), &executor);
        self.told(taken)
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
        let taken = self.draft.begin_gang();
        self.told(taken)
    }

    fn end_group(&mut self) -> Result<(), Error> {
        let taken = self.draft.end_gang();
        self.told(taken)
    }
}

impl state::Host for Guest {
    fn get(&mut self, key: String) -> Option<Vec<u8>> {
        self.state.get(&key).map(<[u8]>::to_vec)
    }

    fn set(&mut self, key: String, value: Vec<u8>) -> Result<(), Error> {
        let taken = self.state.write(&key, Some(value));
        self.told(taken)
    }

    fn delete(&mut self, key: String) -> Result<(), Error> {
        let taken = self.state.write(&key, None);
        self.told(taken)
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
        let taken = self.draft.set_timer(id, after_ms);
        self.told(taken)
    }

    fn cancel(&mut self, id: String) -> Result<(), Error> {
        let taken = self.draft.cancel_timer(id);
        self.told(taken)
    }
}

impl http::Host for Guest {
    fn respond(&mut self, id: u64, answer: http::HttpAnswer) -> Result<(), Error> {
        let taken = self.draft.respond(id, convert::http_answer(answer));
        self.told(taken)
    }

    fn send(&mut self, _request: http::Outgoing) -> Result<(), Error> {
        refuse("send: an outgoing request")
    }

    fn publish(&mut self, _stream: String, _data: Vec<u8>) -> Result<(), Error> {
        refuse("publish: a stream")
    }
}
