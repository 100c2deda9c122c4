//! Which masters there are, as far as this agent knows, and which one to try next.
//!
//! Invariants: the masters that the operator named are never forgotten; those that the cluster named last
//! are kept in the work directory, so that an agent finds its cluster after all masters were replaced. A
//! hint who leads is followed a bounded number of times in a row.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use tessera_oci::record;
use tonic::{Code, Status};

/// Where the cluster's list is kept.
const MASTERS_FILE: &str = "masters.json";

/// Masters that are remembered; far more than a cluster has.
const LEARNED_MAX: usize = 32;

/// Longest address of a master.
const ADDRESS_BYTES_MAX: usize = 255;

/// Hints that are followed without a pause; masters that point at each other must not keep an agent busy.
const HINTS_MAX: u32 = 4;

/// Names the leader's address to an agent that came to another master.
const LEADER: &str = "tessera-leader";

/// The masters, in the order in which they are tried.
pub struct Masters {
    named: Vec<String>,
    learned: Vec<String>,
    /// What is tried next; filled anew when it is empty.
    queue: VecDeque<String>,
    hints: u32,
    /// The term of the leader that registered this agent last.
    term: u64,
    /// Where the cluster's list is kept, if it is.
    work_dir: Option<PathBuf>,
}

impl Masters {
    /// Those that the operator named, and those that the cluster named when it was last spoken to.
    pub fn open(named: Vec<String>, work_dir: &Path) -> Self {
        // A list that cannot be read is made anew at the next registration.
        let learned: Vec<String> = record::read(&work_dir.join(MASTERS_FILE))
            .ok()
            .flatten()
            .unwrap_or_default();
        Self {
            named,
            learned: usable(&learned),
            queue: VecDeque::new(),
            hints: 0,
            term: 0,
            work_dir: Some(work_dir.to_owned()),
        }
    }

    /// Those that the operator named, this one of them first; what the cluster names is forgotten with the
    /// process.
    pub fn without_memory(mut named: Vec<String>, first: usize) -> Self {
        let first = first.checked_rem(named.len()).unwrap_or(0);
        named.rotate_left(first);
        Self {
            named,
            learned: Vec::new(),
            queue: VecDeque::new(),
            hints: 0,
            term: 0,
            work_dir: None,
        }
    }

    fn all(&self) -> impl Iterator<Item = &String> {
        let learned = self.learned.iter().filter(|master| !self.named.contains(master));
        self.named.iter().chain(learned)
    }

    /// The one to try now.
    pub fn next(&mut self) -> String {
        if self.queue.is_empty() {
            self.queue = self.all().cloned().collect();
        }
        // At least one was named.
        self.queue.pop_front().unwrap_or_default()
    }

    /// A master refused; says whether it named the leader, which then is next.
    pub fn told(&mut self, status: &Status) -> bool {
        let leader = (status.code() == Code::FailedPrecondition)
            .then(|| status.metadata().get(LEADER)?.to_str().ok())
            .flatten()
            .filter(|leader| is_usable(leader));
        match leader {
            Some(leader) if self.hints < HINTS_MAX => {
                self.hints += 1;
                self.queue.retain(|other| other != leader);
                self.queue.push_front(leader.to_owned());
                true
            }
            _ => {
                self.hints = 0;
                false
            }
        }
    }

    /// All but this one; agents begin with different ones.
    pub fn others(&self, than: &str, agent: u64) -> Vec<String> {
        let mut others: Vec<String> = self.all().filter(|other| *other != than).cloned().collect();
        let first = usize::try_from(agent).unwrap_or(0).checked_rem(others.len());
        others.rotate_left(first.unwrap_or(0));
        others
    }

    /// The leader was lost. One that did not answer is tried again after the others. Otherwise it comes first: it is
    /// there and may still lead, or its machine says at once that it is gone.
    pub fn lost(&mut self, leader: &str, silent: bool) {
        self.queue = self.others(leader, 0).into();
        if silent {
            self.queue.push_back(leader.to_owned());
        } else {
            self.queue.push_front(leader.to_owned());
        }
        self.hints = 0;
    }

    /// This one leads, as another master says: it is next.
    pub fn found(&mut self, leader: String) {
        self.queue.clear();
        self.queue.push_back(leader);
        self.hints = 0;
    }

    /// The term of the leader that registered this agent last; nought if none did.
    pub const fn term(&self) -> u64 {
        self.term
    }

    /// A leader has registered this agent.
    pub const fn registered(&mut self, term: u64) {
        self.term = term;
    }

    /// The cluster says which masters it has.
    pub fn learn(&mut self, masters: &[String]) {
        self.hints = 0;
        let learned = usable(masters);
        if learned.is_empty() || learned == self.learned {
            return;
        }
        self.learned = learned;
        let Some(work_dir) = &self.work_dir else { return };
        if let Err(error) = record::write(work_dir, MASTERS_FILE, &self.learned, true) {
            tracing::warn!(%error, "the list of masters is not kept");
        }
    }
}

/// Whether this can be the address of a master.
pub fn is_usable(address: &str) -> bool {
    address.len() <= ADDRESS_BYTES_MAX
        && address.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
        && address.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
        })
}

fn usable(masters: &[String]) -> Vec<String> {
    let usable = masters.iter().filter(|master| is_usable(master));
    usable.take(LEARNED_MAX).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::metadata::MetadataMap;

    fn refusal(leader: &str) -> Status {
        let mut metadata = MetadataMap::new();
        metadata.insert(LEADER, leader.parse().unwrap());
        Status::with_metadata(Code::FailedPrecondition, "no", metadata)
    }

    #[test]
    fn hints_are_followed_and_lists_kept() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Masters::open(vec!["a:1".into(), "b:1".into()], dir.path());
        let mut masters = open();
        assert_eq!([masters.next(), masters.next(), masters.next()], ["a:1", "b:1", "a:1"]);
        assert!(masters.told(&refusal("c:1")));
        assert_eq!(masters.next(), "c:1");
        masters.learn(&["b:1".into(), "c:1".into(), "no address".into()]);
        masters.lost("b:1", true);
        assert_eq!([masters.next(), masters.next(), masters.next()], ["a:1", "c:1", "b:1"]);
        masters.lost("b:1", false);
        assert_eq!([masters.next(), masters.next(), masters.next()], ["b:1", "a:1", "c:1"]);
        masters.lost("a:1", false);
        masters.found("d:1".into());
        assert_eq!([masters.next(), masters.next()], ["d:1", "a:1"]);
        assert_eq!(masters.others("b:1", 6), ["a:1", "c:1"]);
        assert_eq!(masters.others("b:1", 7), ["c:1", "a:1"]);
        assert!(Masters::without_memory(vec!["a:1".into()], 3).others("a:1", 5).is_empty());

        let mut again = open();
        assert_eq!([again.next(), again.next(), again.next()], ["a:1", "b:1", "c:1"]);
    }

    #[test]
    fn masters_that_point_at_each_other_do_not_keep_an_agent_busy() {
        let dir = tempfile::tempdir().unwrap();
        let mut masters = Masters::open(vec!["a:1".into()], dir.path());
        let followed = (0..10).take_while(|_| masters.told(&refusal("b:1"))).count();
        assert_eq!(followed, HINTS_MAX as usize);
        assert!(!masters.told(&refusal("http://b:1/")), "no address");
        assert!(!masters.told(&Status::unavailable("no")));
    }
}
