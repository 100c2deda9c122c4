//! The table of metrics: names, what they are of, and what they say. `docs/metrics.md` is made from it.
//!
//! Invariants: a name is there once, begins with `tessera_` or `process_`, and ends as Prometheus asks of its kind; how
//! many values a metric may have is bounded, and by what is said here. Must never say what is not measured.

/// Frameworks with values of their own, those with the most turns or tasks first; the others are added up as
/// [`OTHERS`]. A page with more is slow to read for everybody, and nobody looks at the ten thousandth.
pub const FRAMEWORKS_SHOWN_MAX: usize = 100;
/// The same of roles, those with the largest shares first.
pub const ROLES_SHOWN_MAX: usize = 100;
/// What stands for all that are not shown by themselves.
pub const OTHERS: &str = "_others";

/// Which process a metric is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// `tessera master`.
    Master,
    /// `tessera agent`, which also tells of its workers.
    Agent,
}

/// What a value means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from the start of the process.
    Counter,
    /// As it is now.
    Gauge,
    /// Times by classes.
    Histogram,
}

/// One metric.
#[derive(Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Which processes have it.
    pub who: &'static [Who],
    /// What its values mean.
    pub kind: Kind,
    /// Labels, in their order.
    pub labels: &'static [&'static str],
    /// What it says, in one line.
    pub help: &'static str,
    /// What it is about, as a heading.
    pub part: &'static str,
}

impl Name {
    /// Its row.
    #[must_use]
    pub fn row(self) -> &'static Metric {
        &METRICS[self as usize]
    }
}

const MASTER: &[Who] = &[Who::Master];
const AGENT: &[Who] = &[Who::Agent];
const BOTH: &[Who] = &[Who::Master, Who::Agent];

macro_rules! metrics {
    ($($part:literal, $who:ident { $($id:ident $kind:ident $name:literal [$($label:literal),*] $help:literal;)+ })+) => {
        /// A metric of the table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Name {
            $($(#[doc = $help] $id,)+)+
        }

        /// Every metric.
        pub const METRICS: &[Metric] = &[$($(Metric {
            name: $name,
            who: $who,
            kind: Kind::$kind,
            labels: &[$($label),*],
            help: $help,
            part: $part,
        },)+)+];
    };
}

metrics! {
    "The process", BOTH {
        BuildInfo Gauge "tessera_build_info" ["version", "commit", "rustc"] "1; what the program was made from.";
        Uptime Gauge "tessera_uptime_seconds" [] "Time since the process began.";
        ProcessCpu Counter "process_cpu_seconds_total" [] "CPU time of the process.";
        ProcessMemory Gauge "process_resident_memory_bytes" [] "Memory of the process.";
        ProcessFds Gauge "process_open_fds" [] "Open descriptors; each agent's connection is one.";
    }
    "REST", MASTER {
        HttpRequests Counter "tessera_http_requests_total" ["route", "method", "class"] "Requests answered here, by route and class of status (2xx to 5xx). Those that a follower passed on count on both masters.";
        HttpSeconds Histogram "tessera_http_request_seconds" ["route"] "From the arrival of a request to the head of its answer.";
        SchedulerRequests Gauge "tessera_scheduler_requests_waiting" [] "Requests that wait for schedulers. Of the leader.";
        Watchers Gauge "tessera_event_watchers" [] "Open streams of events.";
        WritesPassedOn Counter "tessera_state_writes_passed_on_total" [] "Writes of state that came here and went to the leader by the stream that they share.";
    }
    "The node's loop and the log", MASTER {
        NodeInputs Counter "tessera_node_inputs_total" [] "Inputs that the loop took: messages, requests, questions.";
        NodeQueue Gauge "tessera_node_queue_length" [] "Inputs that wait for the loop; at 4,096 senders wait.";
        NodeRoundSeconds Histogram "tessera_node_round_seconds" [] "One round of the loop: everything that waited, what came of it, and telling others.";
        ApplySeconds Histogram "tessera_apply_seconds" [] "Applying one entry of the log.";
        CommitSeconds Histogram "tessera_commit_seconds" [] "From proposing an entry to its being applied. Of the leader.";
        SyncSeconds Histogram "tessera_log_sync_seconds" [] "One sync of the log to the disk.";
        LogSyncs Counter "tessera_log_syncs_total" [] "Syncs of the log since the master began.";
        LogBytes Gauge "tessera_log_bytes" [] "Size of the log.";
        LogEntries Gauge "tessera_log_entries" [] "Entries in the log.";
        UncommittedBytes Gauge "tessera_uncommitted_bytes" [] "Bytes proposed and not committed. Of the leader.";
    }
    "Raft", MASTER {
        Leader Gauge "tessera_leader" [] "1 while this master leads.";
        LeaderKnown Gauge "tessera_leader_known" [] "1 while this master knows who leads.";
        Term Gauge "tessera_term" [] "Raft's term.";
        CommitIndex Gauge "tessera_commit_index" [] "The last entry known to be committed.";
        AppliedIndex Gauge "tessera_applied_index" [] "The last applied entry.";
        LastIndex Gauge "tessera_last_index" [] "The last entry in the log.";
        Voters Gauge "tessera_voters" [] "Masters that vote.";
        PeerLag Gauge "tessera_peer_lag_entries" ["node"] "Entries by which another master is behind. Of the leader.";
        PeerActive Gauge "tessera_peer_active" ["node"] "1 when another master answered lately. Of the leader.";
        PeerSnapshot Gauge "tessera_peer_needs_snapshot" ["node"] "1 while another master needs a snapshot before it can follow. Of the leader.";
        Elections Counter "tessera_terms_begun_total" [] "Terms that began since the master did: each is an election.";
        LeadsBegun Counter "tessera_leaderships_total" [] "How often this master came to lead.";
        SnapshotsSent Counter "tessera_snapshots_sent_total" [] "Snapshots that were sent to other masters.";
        SnapshotsTaken Counter "tessera_snapshots_taken_total" [] "Snapshots of other masters that were taken.";
    }
    "Offers and shares", MASTER {
        AllocationRounds Counter "tessera_allocation_rounds_total" [] "Rounds of the allocator while this master led.";
        AllocationSeconds Histogram "tessera_allocation_round_seconds" [] "One round of the allocator.";
        AllocationAgents Counter "tessera_allocation_agents_looked_at_total" [] "Agents that rounds of the allocator looked at; those that nothing has changed for are passed over.";
        OffersStanding Gauge "tessera_offers" [] "Offers that stand. Of the leader.";
        OffersMade Counter "tessera_offers_made_total" [] "Offers that this master made.";
        OffersEnded Counter "tessera_offers_ended_total" ["how"] "Offers that ended: accepted, declined, expired (5 s without an answer), rescinded.";
        Filters Gauge "tessera_offer_filters" [] "Declined resources that are not offered again for a while. Of the leader.";
        RoleUsed Gauge "tessera_role_used" ["role", "resource"] "Charged to a role and those below it: cpus in cores, mem and disk in bytes, others in their units.";
        RoleRevocable Gauge "tessera_role_revocable" ["role", "resource"] "Used beside that by tasks that may be preempted, in the same units.";
        RoleGuarantee Gauge "tessera_role_guarantee" ["role", "resource"] "What a role's quota guarantees, in the same units.";
        RoleLimit Gauge "tessera_role_quota_limit" ["role", "resource"] "What a role's quota limits it to, in the same units.";
        Preemptions Counter "tessera_preemptions_total" [] "Revocable tasks that this master, as the leader, had ended for what others are to have.";
        RoleShare Gauge "tessera_role_share_ratio" ["role"] "The largest part that a role has of any kind of resource, offers included.";
        RoleFairShare Gauge "tessera_role_fair_share_ratio" ["role"] "What a role would have if all wanted more than they get.";
    }
    "Schedulers", MASTER {
        Frameworks Gauge "tessera_frameworks" ["state"] "Frameworks by what their schedulers do; running and starting are known to the leader.";
        Turns Counter "tessera_turns_total" ["framework", "outcome"] "Turns that this master decided: committed, read (nothing to commit), refused.";
        TurnOperations Counter "tessera_turn_operations_total" ["framework"] "Operations of committed turns.";
        TurnCpu Counter "tessera_turn_cpu_seconds_total" ["framework"] "CPU time that a scheduler took for turns that came to this master.";
        TurnWall Counter "tessera_turn_wall_seconds_total" ["framework"] "Time that passed in a scheduler for the same turns.";
        SchedulerFailures Counter "tessera_scheduler_failures_total" ["framework"] "Failures of schedulers that this master heard of.";
        MessagesDropped Gauge "tessera_executor_messages_dropped" [] "Messages between schedulers and executors that could not be delivered since this master leads.";
    }
    "Tasks and agents", MASTER {
        Tasks Gauge "tessera_tasks" ["state"] "Tasks that have not ended.";
        TasksEnded Counter "tessera_tasks_ended_total" ["state", "reason"] "Tasks whose end this master committed as the leader.";
        Agents Gauge "tessera_agents" ["state"] "Agents: connected, disconnected (silent, not given up), unreachable. Followers know unreachable ones only.";
        AgentsDeactivated Gauge "tessera_agents_deactivated" [] "Agents on which nothing new is placed.";
        Sessions Gauge "tessera_agent_sessions" [] "Open sessions of agents. Of the leader.";
        Components Gauge "tessera_components" [] "Components that were added and not removed.";
        Events Counter "tessera_events_total" [] "Events written by entries that this master applied.";
        Cpus Gauge "tessera_cpus_cores" ["kind"] "CPU of all reachable agents: total, used, offered.";
        Memory Gauge "tessera_memory_bytes" ["kind"] "Memory of all reachable agents: total, used, offered.";
        Disk Gauge "tessera_disk_bytes" ["kind"] "Disk of all reachable agents: total, used, offered.";
    }
    "Traces", BOTH {
        SpansSent Counter "tessera_trace_spans_sent_total" [] "Spans that a collector took.";
        SpansDropped Counter "tessera_trace_spans_dropped_total" [] "Spans that were lost: the queue was full, or no collector took them.";
    }
    "An agent", AGENT {
        AgentInfo Gauge "tessera_agent_info" ["agent", "hostname"] "1; who it is. The id is empty until it is registered.";
        AgentConnected Gauge "tessera_agent_connected" [] "1 while it has a session with the leader.";
        AgentSessions Counter "tessera_agent_sessions_total" [] "Sessions that began.";
        AgentTasks Gauge "tessera_agent_tasks" ["state"] "Tasks on it; ended ones stay until their last status is acknowledged.";
        AgentExecutors Gauge "tessera_agent_executors" [] "Custom executors on it.";
        AgentRoundSeconds Histogram "tessera_agent_round_seconds" [] "One round of its loop: a sync of the checkpoint and what follows from it.";
        AgentSyncSeconds Histogram "tessera_agent_checkpoint_sync_seconds" [] "One write and sync of the checkpoint.";
        AgentCheckpoint Gauge "tessera_agent_checkpoint_bytes" [] "Size of the checkpoint.";
        AgentCpus Gauge "tessera_agent_cpus_cores" [] "CPU that it offers.";
        AgentMemory Gauge "tessera_agent_memory_bytes" [] "Memory that it offers.";
        AgentGroupCpu Counter "tessera_agent_groups_cpu_seconds_total" [] "CPU time of everything that it started: tasks, executors, workers.";
        AgentGroupMemory Gauge "tessera_agent_groups_memory_bytes" [] "Memory of the same.";
    }
    "Workers, by their agent", AGENT {
        Workers Gauge "tessera_workers" ["kind"] "Worker processes: schedulers, tasks.";
        WorkerInstances Gauge "tessera_worker_schedulers" [] "Schedulers that this agent is to host.";
        WorkerTurns Counter "tessera_worker_turns_total" [] "Turns that workers sent.";
        WorkerTurnSeconds Histogram "tessera_worker_turn_seconds" [] "One turn in its scheduler, from the batch to its operations.";
        WorkerFailures Counter "tessera_worker_instance_failures_total" ["guest"] "Instances that failed; guest is true where the component is to blame.";
        WorkersLost Counter "tessera_workers_lost_total" [] "Worker processes whose link ended although nobody had asked for it.";
        WorkerCpu Counter "tessera_worker_cpu_seconds_total" ["tenant", "kind"] "CPU time of a tenant's worker, as its control group counts it.";
        WorkerMemory Gauge "tessera_worker_memory_bytes" ["tenant", "kind"] "Memory of a tenant's worker, as its control group counts it.";
    }
}

/// The page for people, as it is to stand in `docs/metrics.md`.
#[cfg(test)]
fn document() -> String {
    use std::fmt::Write as _;
    let mut text = String::from(
        "# Metrics\n\nMade from `telemetry/src/table.rs`; `TESSERA_WRITE_DOCS=1 cargo test -p tessera-telemetry` writes it anew.\n\n\
         Masters serve them at `GET /metrics` of REST, with the token. Agents serve theirs where `--metrics-listen` says, which\n\
         is nowhere unless it is given, with the token as well. The format is Prometheus's text format, version\n\
         0.0.4. Numbers of masters are those of the one that is asked: what is said to be of the leader is absent or 0 elsewhere,\n\
         so that sums over all masters are right. Counters begin at 0 with each process. Values with the label `framework` or\n",
    );
    let _ = writeln!(
        text,
        "`role` are given for the {FRAMEWORKS_SHOWN_MAX} largest; all others are added up under `{OTHERS}`.\n\n\
         A dashboard for Grafana is in [grafana/tessera.json](grafana/tessera.json), rules for alerts are in [alerts.yml](alerts.yml)."
    );
    let mut part = "";
    for row in METRICS {
        if row.part != part {
            part = row.part;
            let _ = writeln!(text, "\n## {part}\n\n| name | kind | labels | what it says |\n|---|---|---|---|");
        }
        let labels: Vec<String> = row.labels.iter().map(|label| format!("`{label}`")).collect();
        let kind = format!("{:?}", row.kind).to_lowercase();
        let _ = writeln!(text, "| `{}` | {kind} | {} | {} |", row.name, labels.join(", "), row.help);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    fn docs() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
    }

    #[test]
    fn names_follow_the_rules_of_prometheus() {
        let mut names = BTreeSet::new();
        for row in METRICS {
            assert!(names.insert(row.name), "{} stands there twice", row.name);
            assert!(row.name.starts_with("tessera_") || row.name.starts_with("process_"), "{}", row.name);
            let counts = row.name.ends_with("_total");
            assert_eq!(counts, row.kind == Kind::Counter, "{}: counters end in _total, and nothing else does", row.name);
            assert_eq!(row.kind == Kind::Histogram, row.name.ends_with("_seconds") && row.kind != Kind::Gauge, "{}", row.name);
            assert!(row.help.ends_with('.') && !row.help.contains(['\n', '\\', '|']), "{}", row.name);
        }
    }

    #[test]
    fn the_page_for_people_is_made_from_the_table() {
        let file = docs().join("metrics.md");
        let made = document();
        if std::env::var_os("TESSERA_WRITE_DOCS").is_some() {
            std::fs::write(&file, &made).unwrap();
        }
        let stored = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(stored == made, "docs/metrics.md is not current: TESSERA_WRITE_DOCS=1 cargo test -p tessera-telemetry");
    }

    /// Every name of a metric in a text, less the endings of histograms.
    fn named(text: &str) -> BTreeSet<String> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let words = words.filter(|word| word.starts_with("tessera_") || word.starts_with("process_"));
        words
            .map(|word| {
                let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end));
                base.filter(|base| METRICS.iter().any(|row| row.name == *base)).unwrap_or(word).to_owned()
            })
            .collect()
    }

    #[test]
    fn dashboards_and_alerts_use_what_is_there() {
        let known: BTreeSet<String> = METRICS.iter().map(|row| row.name.to_owned()).collect();
        for file in ["alerts.yml", "grafana/tessera.json"] {
            let text = std::fs::read_to_string(docs().join(file)).unwrap();
            let used = named(&text);
            assert!(used.len() > 8, "{file} uses only {used:?}");
            let unknown: Vec<_> = used.difference(&known).collect();
            assert!(unknown.is_empty(), "{file} names what is not documented: {unknown:?}");
            if file.ends_with(".json") {
                let value: serde_json::Value = serde_json::from_str(&text).unwrap();
                assert!(value["panels"].as_array().is_some_and(|panels| panels.len() > 8));
            }
        }
    }
}
