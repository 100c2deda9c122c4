//! Bounds of the masters' own tables and queues, each with its reason.

/// Events kept for watchers: some minutes of a busy cluster; older ones are a `gap`.
pub const EVENTS_MAX: usize = 10_000;
/// Answers kept for repeated requests: each takes up to 64 KiB of disk.
pub const ANSWERS_MAX: usize = 1_000;
/// Results kept for requests that a principal sends under keys of its own: it may send 6,000 in a second, and repeat
/// each for ten.
pub const REQUESTS_OF_PRINCIPAL_MAX: usize = 65_536;
/// Results kept for those of all principals: some of them may be as busy. Each takes about 400 bytes of every master's
/// memory.
pub const REQUESTS_MAX: usize = 131_072;
/// The same of all together, as long as not all masters know the two bounds above.
pub const REQUESTS_BEFORE_MAX: usize = 4_096;
/// Requests that a master passes on without an answer, and results kept of each of its sessions: as many as may be
/// answered while one of them waits for seconds.
pub const SESSION_NUMBERS_MAX: usize = 65_536;
/// Sessions kept of each master, one for each time that it was started: what an earlier process sent has arrived or is
/// lost when there were three others.
pub const SESSIONS_OF_MASTER_MAX: usize = 4;
/// How long results are kept under keys of users: far longer than anybody repeats a request.
pub const REQUEST_KEPT_MS: u64 = 600_000;
/// Requests with a key that a scheduler has taken in and not answered, per framework: as many as may wait for it
/// at once, for some leaders one after the other.
pub const OPEN_MAX: usize = 256;
/// How long those are remembered: as long as the results of other requests.
pub const OPEN_KEPT_MS: u64 = REQUEST_KEPT_MS;
/// Agents that were declared gone and are told so when they come back; an older one is not known, which is
/// answered alike.
pub const GONE_AGENTS_MAX: usize = 10_000;
/// Boots of an agent's machine that are remembered: a machine and its copy take turns with two.
pub const BOOTS_KEPT_MAX: usize = 4;
/// Restores from saved snapshots that a state remembers: the numbers that each passed over.
pub const RESTORES_KEPT_MAX: usize = 16;
/// Tasks on one agent that a restored state does not know: more than an agent runs, and one command names them all.
pub const STRANGERS_MAX: usize = 10_000;
/// Ended tasks kept per framework, as in Mesos.
pub const HISTORY_MAX: u64 = 1_000;
/// Task ids that one framework may use in its life: each stays on disk as a small row.
pub const USED_IDS_MAX: u64 = 50_000_000;
/// Agents of a cluster, unreachable ones included: all are in every master's memory.
pub const AGENTS_MAX: usize = 50_000;
/// Frameworks of a cluster: each has a scheduler somewhere.
pub const FRAMEWORKS_MAX: usize = 10_000;
/// Components of a cluster: every master keeps all files.
pub const COMPONENTS_MAX: usize = 10_000;
/// Uses that the refusal to remove a component names: enough to go on with, in one message.
pub const USES_NAMED_MAX: usize = 8;
/// Bytes of what is said of where a component came from: in every master's memory.
pub const SOURCE_BYTES_MAX: usize = 1 << 10;
/// Bytes of the report of a component's inspection: on disk only.
pub const REPORT_BYTES_MAX: usize = 64 << 10;
/// Versions of the state that a component reads beside its own.
pub const STATE_READS_MAX: usize = 64;
/// Roles for which limits are set: all are in every master's memory, and told to every agent.
pub const LIMITED_ROLES_MAX: usize = 10_000;
/// Roles of which something is said: all are in every master's memory, and looked at in each change of one.
pub const ROLES_MAX: usize = 10_000;
/// Tasks that one command preempts: what is missing after it is found in the next round.
pub const PREEMPTED_MAX: usize = 256;
/// Keys that one command folds from the new generation of a state into the old one, so that it holds up
/// no other.
pub const MERGE_KEYS_MAX: usize = 1_000;
/// Bytes that one such command folds, up to one value more.
pub const MERGE_BYTES_MAX: usize = 1 << 20;
/// Turns that a migration may take: a guest that never says that it is done is given up.
pub const MIGRATION_TURNS_MAX: u64 = 10_000;
/// How long a new component may take to be ready, from when its agent has it compiled and fetches its state,
/// before it is given up.
pub const TRIAL_READY_MS: u64 = 60_000;
/// How long an agent that answers may take until then: others' components may be compiled before, and its
/// workers may be full, which is no fault of this one. Longer than two compilations may take.
pub const TRIAL_PREPARE_MS: u64 = 2_700_000;
/// Task specs of one framework that live tasks refer to.
pub const SPECS_MAX: usize = 10_000;
/// Bytes of those specs: they are in every master's memory.
pub const SPECS_BYTES_MAX: usize = 64 << 20;
/// Keys of one framework that users wrote and its scheduler has not heard of: more than are written while a
/// turn runs; beyond, the scheduler is built anew from its state.
pub const OUTSIDE_KEYS_MAX: usize = 4_096;
/// Bytes of those keys.
pub const OUTSIDE_BYTES_MAX: usize = 256 << 10;
/// Bytes of the keys of all frameworks: they are in the leader's memory.
pub const OUTSIDE_BYTES_TOTAL_MAX: usize = 64 << 20;
/// Such keys in one batch: each is an event, and other events want room.
pub const OUTSIDE_BATCH_KEYS_MAX: usize = 128;
/// Bytes of such keys and values in one batch, or one value.
pub const OUTSIDE_BATCH_BYTES_MAX: usize = 512 << 10;
/// Shortest time between two batches that only tell of such keys: writing costs a commit, not a turn each.
pub const OUTSIDE_EVERY_MS: u64 = 100;
/// Requests that wait for one scheduler; more are answered 503.
pub const HTTP_IN_FLIGHT_MAX: usize = 64;
/// Seconds after which a caller may try again when too many wait.
pub const HTTP_RETRY_AFTER_S: u32 = 1;
/// Notices (updates that are not stored) that wait for one scheduler.
pub const NOTICES_MAX: usize = 10_000;
/// Messages and failures of executors that wait for one scheduler: the oldest go.
pub const EXECUTOR_EVENTS_MAX: usize = 64;
/// Bytes of those.
pub const EXECUTOR_EVENTS_BYTES_MAX: usize = 1 << 20;
/// Memory of an agent's reserved slice that each scheduler is counted with, in MiB. Not what it may have
/// (`memory-bytes`) but more than what one takes that waits for events, which was measured to be 0.06 in a
/// shared worker and 2 in a worker of its own.
pub const SCHEDULER_MEM_MIB: i64 = 4;
/// Parts of the whole cluster of which one grant of requested pieces takes one at most: with fewer agents than this those who
/// wait take turns at each of them, with more a grant is an agent.
pub const GRANT_PARTS: i64 = 64;
/// Smallest offer: less is not worth a scheduler's turn.
pub const OFFER_MIN_CPUS_MILLI: i64 = 10;
/// Smallest offer of memory.
pub const OFFER_MIN_MEM_MIB: i64 = 32;
/// Kinds of resources that agents have or quota names, and that the allocator tells apart: every sum speaks of all of them.
pub const KINDS_MAX: usize = 1_024;
/// Changes of what a scheduler waits for, in more than counts, are looked at in no less, once there were [`PACE_BURST`] in a
/// row: each has all agents looked at.
pub const REQUESTS_EVERY_MS: u64 = 500;
/// How often it is looked for agents to be held for requests that fit nowhere: looking goes over all of them.
pub const HOLD_EVERY_MS: u64 = 1_000;
/// Requests for which all agents are looked at each time; others have their turn the next time.
pub const HOLD_SEARCHES_MAX: usize = 16;
/// Agents held for one request at a time: tasks that fit nowhere are few, and large.
pub const HELD_OF_REQUEST_MAX: usize = 8;
/// No more than one agent in so many is held, or one: others go on meanwhile.
pub const HELD_PART: usize = 4;
/// How often it is looked for revocable work that stands in the way; it has to be found twice before anything ends.
pub const SHORTAGE_EVERY_MS: u64 = 1_000;
/// Agents that are looked at for it, request by request and then framework by framework; the rest has its turn the next
/// time. Some milliseconds for each of the two.
pub const SHORTAGE_LOOKS_MAX: usize = 20_000;
/// Places at which revocable work is said to stand in the way, at a time.
pub const SHORTAGES_MAX: usize = 64;
/// Frameworks of a role that are asked why they get nothing: each is asked at all agents.
pub const WHY_FRAMEWORKS_MAX: usize = 4;
/// Shortest time for which declined resources are not offered again: otherwise declining would be a
/// busy loop.
pub const FILTER_MIN_MS: u64 = 100;
/// Filter of an offer that was not answered: lets others have the resources first.
pub const EXPIRED_FILTER_MS: u64 = 1_000;
/// An offer that was kept for so long and then given back was kept from others: schedulers answer within
/// a turn.
pub const OFFER_WASTED_MS: u64 = 1_000;
/// Agents that a scheduler is told of in a batch before it is offered anything: less than half of what fits. Where there are
/// more to tell of, after a change of leader for example, those come first that something is offered of.
pub const AGENTS_AT_ONCE: usize = 100;
/// Events that tell of one agent, and the offers after them.
pub const EVENTS_OF_AGENT_MAX: usize = 4;
/// Offers in one event: all free agents of a large cluster do not fit into a batch, which takes some events of these.
pub const OFFERS_OF_EVENT_MAX: usize = 1_000;
/// How often all agents are looked at for something to offer, whether or not anything is known to have changed.
pub const LOOK_AT_ALL_MS: u64 = 5_000;
/// Turns of one scheduler that only bring it news follow each other in no less, once there were [`PACE_BURST`] in a
/// row: each costs some hundred µs in four processes, however little it brings.
pub const TURN_EVERY_MS: u64 = 10;
/// Entries with statuses of agents follow each other in no less, likewise: each is a sync of the disk, and a task
/// may start in as much.
pub const STATUSES_EVERY_MS: u64 = 5;
/// Turns, and entries, that follow each other at once after a pause: who is given little never waits.
pub const PACE_BURST: u64 = 16;
/// Largest step of the leader's clock that commands follow, from leader to leader, too.
pub const CLOCK_JUMP_MAX_MS: u64 = 10_000;
/// How long a worker may take to repeat a turn that the master has committed and it does not know of.
pub const REPEAT_WAIT_MS: u64 = 5_000;
/// Pause before a scheduler whose agent gave it up is placed again.
pub const REPLACE_AFTER_MS: u64 = 30_000;
/// Shortest time between two recorded failures of one scheduler: failures must not fill the log.
pub const FAILURE_RECORD_MS: u64 = 1_000;
/// How often standbys of schedulers are looked for: compiling takes longer.
pub const STANDBY_EVERY_MS: u64 = 1_000;
/// Components that one agent compiles ahead; it takes no more.
pub const AHEAD_MAX: usize = 1_024;
/// Characters of what an agent says of a component that it could not compile ahead.
pub const AHEAD_ERROR_CHARS_MAX: usize = 256;
/// Bytes of an agent's key and boot id.
pub const AGENT_KEY_BYTES_MAX: usize = 128;
/// Status updates in one message of an agent: one command carries them all.
pub const STATUSES_MAX: usize = 10_000;
/// Messages of statuses of one session that wait for their commit; more are passed over, and the agent
/// repeats them.
pub const STATUSES_IN_FLIGHT_MAX: usize = 64;
/// Tasks in one agent's set: live ones, and ended ones that it still keeps.
pub const TASK_SET_MAX: usize = 1_000_000;
/// Launches and other operations of one turn together: an accept may launch several tasks, and is one
/// operation of the scheduler.
pub const TURN_STEPS_MAX: usize = 10_000;
/// Bytes of one command: it has to fit into a log entry with room to spare.
pub const COMMAND_BYTES_MAX: usize = 4 << 20;
/// Bytes of an idempotency key.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// Bytes of a request's method, path and query together.
pub const HTTP_TARGET_BYTES_MAX: usize = 8 << 10;
/// Entries that a list returns at most.
pub const LIST_MAX: usize = 1_000;
/// More silent agents than this, and than a part of all, are a brake on giving them up: a few machines do
/// fail together.
pub const BRAKE_AGENTS_MIN: usize = 3;
/// That part, in percent: a rack of a small cluster.
pub const BRAKE_PERCENT: usize = 20;
/// How long none is given up under the brake: a network that was cut is often back by then.
pub const BRAKE_HOLD_MS: u64 = 10_000;
/// Shortest time between two agents that are given up under the brake: ten in a second.
pub const BRAKED_EXPIRY_EVERY_MS: u64 = 100;
/// No more than those are given up within so long, whatever else: an agent that comes back makes room for no other.
pub const GIVE_UP_WINDOW_MS: u64 = 250;
/// How often all agents are looked at for silence: it is a small part of what they may be silent for.
pub const LIVENESS_EVERY_MS: u64 = 250;
/// An agent that was heard within so long is heard now: agents beat every second.
pub const HEARD_MS: u64 = 3_000;
/// So long between two ticks, which come every 50 ms, this master may have stood still: two beats of an agent.
pub const STOOD_STILL_MS: u64 = 2_000;
/// What came so near to the ends of such a gap may have been waiting outside.
pub const GAP_EDGE_MS: u64 = 500;
/// How often what is due by the clock is looked for.
pub const UPKEEP_EVERY_MS: u64 = 250;

/// Rounds of the allocator whose times wait to be taken from the core, likewise; a round of inputs has one.
pub const ROUNDS_MEASURED_MAX: usize = 64;
/// Spans of traces that wait to be taken from the core: they are taken after each round of inputs.
pub const TRACE_SPANS_MAX: usize = 4_096;
/// Frameworks whose last traced request is remembered until it leads to a launch.
pub const TRACE_SUBMITTED_MAX: usize = 1_024;
/// For how long: a scheduler that gets a request launches with the next offers, or the request was about something else.
pub const TRACE_SUBMITTED_MS: u64 = 60_000;
