//! The events that a scheduler receives.
//!
//! Updates, operations, timers, changes of agents and answers to outgoing requests are durable:
//! they come again until a turn that received them commits. All others come at most once.

use crate::bindings::tessera::framework::events as host;
pub use crate::bindings::tessera::framework::events::{
    ExecutorFailure, HttpResult, Message, OperationOutcome, OperationStatus, StreamChange,
    Subscription, TimerFired,
};
pub use crate::bindings::tessera::framework::types::{AgentInfo, Ext, InverseOffer};
use crate::config::Config;
use crate::http::Request;
use crate::resources::Offer;
use crate::task::TaskStatus;

/// Everything that can happen to a scheduler.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The first event of a new epoch. Offers of older epochs are void.
    Subscribed(Subscription),
    /// The first event of an instance that was rebuilt within its epoch. Its offers were withdrawn
    /// and are made anew.
    Resumed(Subscription),
    /// An agent became known, changed, was lost or came back.
    Agent(AgentInfo),
    /// Resources on offer. Unanswered ones are declined after 5 s.
    Offers(Vec<Offer>),
    /// Offers that were withdrawn, by id.
    Rescinded(Vec<u64>),
    /// Agents that are wanted back for maintenance.
    InverseOffers(Vec<InverseOffer>),
    /// Inverse offers that were withdrawn, by id.
    InverseRescinded(Vec<u64>),
    /// The state of a task.
    Update(TaskStatus),
    /// The outcome of an operation that carried an id.
    Operation(OperationStatus),
    /// A timer came due.
    Timer(TimerFired),
    /// A request to the framework. Answer it with [`Request::respond`].
    Http(Request),
    /// The answer to an outgoing request.
    HttpResult(HttpResult),
    /// Bytes from an executor.
    Message(Message),
    /// An executor ended.
    ExecutorFailed(ExecutorFailure),
    /// A client began to follow a stream.
    StreamOpened(StreamChange),
    /// A client ceased to follow a stream.
    StreamClosed(StreamChange),
    /// The configuration was replaced.
    ConfigChanged(Config),
    /// The answer to [`Turn::call_again`](crate::Turn::call_again).
    Again,
    /// An event of a later version of the contract. Ignore it.
    Other(Ext),
}

impl From<host::Event> for Event {
    fn from(event: host::Event) -> Self {
        match event {
            host::Event::Subscribed(subscription) => Self::Subscribed(subscription),
            host::Event::Resumed(subscription) => Self::Resumed(subscription),
            host::Event::Agent(agent) => Self::Agent(agent),
            host::Event::Offers(offers) => Self::Offers(offers),
            host::Event::Rescinded(offers) => Self::Rescinded(offers),
            host::Event::InverseOffers(offers) => Self::InverseOffers(offers),
            host::Event::InverseRescinded(offers) => Self::InverseRescinded(offers),
            host::Event::Update(status) => Self::Update(status),
            host::Event::Operation(status) => Self::Operation(status),
            host::Event::Timer(timer) => Self::Timer(timer),
            host::Event::Http(request) => Self::Http(Request::from(request)),
            host::Event::HttpResult(result) => Self::HttpResult(result),
            host::Event::Message(message) => Self::Message(message),
            host::Event::ExecutorFailed(failure) => Self::ExecutorFailed(failure),
            host::Event::StreamOpened(change) => Self::StreamOpened(change),
            host::Event::StreamClosed(change) => Self::StreamClosed(change),
            host::Event::ConfigChanged(pairs) => Self::ConfigChanged(Config::from(pairs)),
            host::Event::Again => Self::Again,
            host::Event::Other(ext) => Self::Other(ext),
        }
    }
}
