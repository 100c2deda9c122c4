//! With several masters: when an agent leaves the one that it has a session with.

use crate::master::Master;
use crate::{Cluster, wait_for};
use std::time::{Duration, Instant};

/// An agent with a session at the cluster's master, and another master that it knows of.
fn with_another_master() -> (Cluster, Master) {
    let mut cluster = Cluster::new();
    cluster.kill_agent();
    let other = Master::start("cluster-1");
    let sessions = cluster.master.sessions();
    let both = format!("{},{}", cluster.master.address(), other.address());
    cluster.agent = Some(cluster.spawn(&both));
    wait_for("a session", || (cluster.master.sessions() > sessions).then_some(()));
    (cluster, other)
}

#[test]
fn a_silent_master_is_left_for_one_that_leads_in_a_later_term_and_for_no_other() {
    let (cluster, other) = with_another_master();
    let sessions = cluster.master.sessions();
    other.names_leader(1, other.address());
    cluster.master.fall_silent();
    wait_for("questions to the other master", || (other.asked() > 1).then_some(()));
    assert_eq!((other.sessions(), cluster.master.sessions()), (0, sessions), "it led before already");
    let began = Instant::now();
    other.names_leader(2, other.address());
    wait_for("a session with the other master", || (other.sessions() > 0).then_some(()));
    // Ten unanswered beats would have ended the session, too.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(cluster.master.sessions(), sessions);
}
