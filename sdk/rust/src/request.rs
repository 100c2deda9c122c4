//! Saying what is waited for, and on which agents.
//!
//! Owns the builder of requests. Checks nothing by itself: the host checks requests when they are made, and says
//! which field breaks which rule.

use crate::bindings::tessera::framework::types::{Constraint, ResourceRequest, Selector};
pub use crate::bindings::tessera::framework::types::Predicate;
use crate::resources::{Resources, milli_from_cores, plain_item};
use crate::task::TaskSpec;

/// So many tasks of one size wait for a place. As long as a framework has requests, it is offered only what they need,
/// and only of agents that will do.
///
/// ```
/// # use tessera_sdk::Request;
/// let request = Request::new("big").cpus(4.0).mem_mib(8192).gpus(1).count(3).on("zone", ["a", "b"]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    request: ResourceRequest,
}

impl Request {
    /// One task, of no size yet, that may be anywhere. The id is 1 to 64 bytes of `A-Z a-z 0-9 . _ -`, unique among
    /// the framework's requests.
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            request: ResourceRequest {
                id: id.into(),
                resources: Resources { cpus_milli: 0, mem_mib: 0, disk_mib: 0 },
                items: Vec::new(),
                count: 1,
                constraints: Vec::new(),
                revocable: false,
            },
        }
    }

    /// As many tasks like this one as [`count`](Self::count) says, with the room that its executor needs.
    pub fn of(id: impl Into<String>, spec: &TaskSpec) -> Self {
        let mut request = Self::new(id);
        let own = spec.executor_charge().map(|(_, own)| own);
        request.request.resources = own.map_or(spec.resources(), |own| own.plus(&spec.resources()));
        request.request.items = spec.items().to_vec();
        request.request.revocable = spec.is_revocable();
        request
    }

    /// CPU of each in cores.
    pub fn cpus(mut self, cores: f64) -> Self {
        self.request.resources.cpus_milli = milli_from_cores(cores);
        self
    }

    /// Memory of each in MiB.
    pub fn mem_mib(mut self, mem_mib: u64) -> Self {
        self.request.resources.mem_mib = mem_mib;
        self
    }

    /// Disk of each in MiB.
    pub fn disk_mib(mut self, disk_mib: u64) -> Self {
        self.request.resources.disk_mib = disk_mib;
        self
    }

    /// GPUs of each.
    pub fn gpus(self, count: u64) -> Self {
        self.resource("gpus", count as f64)
    }

    /// So much of a resource that agents name, for each.
    pub fn resource(mut self, name: impl Into<String>, amount: f64) -> Self {
        self.request.items.push(plain_item(name, amount));
        self
    }

    /// How many tasks wait, 1 to 10,000.
    pub fn count(mut self, count: u32) -> Self {
        self.request.count = count;
        self
    }

    /// Only agents of which this attribute is so: a text that it equals, a list that it is one of, or a [`Predicate`].
    pub fn on(self, attribute: impl Into<String>, is: impl Into<Predicate>) -> Self {
        self.constrained(Selector::Attribute(attribute.into()), is.into())
    }

    /// Only agents in this zone: what they have as attribute `zone`.
    pub fn zone(self, is: impl Into<Predicate>) -> Self {
        self.on("zone", is)
    }

    /// Only agents in this region: what they have as attribute `region`.
    pub fn region(self, is: impl Into<Predicate>) -> Self {
        self.on("region", is)
    }

    /// Only agents whose host name is so.
    pub fn on_host(self, is: impl Into<Predicate>) -> Self {
        self.constrained(Selector::Hostname, is.into())
    }

    fn constrained(mut self, selector: Selector, predicate: Predicate) -> Self {
        self.request.constraints.push(Constraint { selector, predicate });
        self
    }

    /// Revocable resources will do, and nothing else: the tasks are [revocable](TaskSpec::revocable) too.
    pub fn revocable(mut self) -> Self {
        self.request.revocable = true;
        self
    }

    pub(crate) fn into_contract(self) -> ResourceRequest {
        self.request
    }
}

impl From<&str> for Predicate {
    fn from(text: &str) -> Self {
        Self::Equals(text.to_owned())
    }
}

impl From<String> for Predicate {
    fn from(text: String) -> Self {
        Self::Equals(text)
    }
}

impl<const N: usize> From<[&str; N]> for Predicate {
    fn from(texts: [&str; N]) -> Self {
        Self::OneOf(texts.map(str::to_owned).to_vec())
    }
}

impl From<Vec<String>> for Predicate {
    fn from(texts: Vec<String>) -> Self {
        Self::OneOf(texts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_what_the_contract_asks_for() {
        let request = Request::new("big")
            .cpus(1.5)
            .mem_mib(64)
            .gpus(2)
            .resource("fpga", 0.5)
            .count(3)
            .zone("a")
            .on("rack", ["r1", "r2"])
            .on_host(Predicate::Matches("node-*".into()))
            .into_contract();
        let items: Vec<_> = request.items.iter().map(|item| (item.name.as_str(), item.amount_milli)).collect();
        assert_eq!(items, [("gpus", 2000), ("fpga", 500)]);
        assert_eq!((request.resources.cpus_milli, request.count, request.revocable), (1500, 3, false));
        let constraints: Vec<_> = request.constraints.iter().map(|c| &c.predicate).collect();
        assert!(matches!(
            constraints.as_slice(),
            [Predicate::Equals(zone), Predicate::OneOf(racks), Predicate::Matches(_)] if zone == "a" && racks.len() == 2
        ));
        assert!(matches!(&request.constraints[2].selector, Selector::Hostname));
    }

    #[test]
    fn a_request_of_a_spec_asks_for_what_its_task_takes() {
        let spec = TaskSpec::shell("true").cpus(0.5).mem_mib(16).gpus(1).revocable();
        let request = Request::of("r", &spec).into_contract();
        assert_eq!((request.resources.cpus_milli, request.items.len(), request.revocable), (500, 1, true));
        assert!(!request.items[0].revocable, "that is said once");
        let hosted = TaskSpec::executor("e", "sha256:00").cpus(0.5).mem_mib(16);
        let request = Request::of("r", &hosted).into_contract();
        assert_eq!((request.resources.cpus_milli, request.resources.mem_mib), (600, 48), "with its executor");
    }
}
