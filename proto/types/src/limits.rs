//! Bounds that every process agrees on. Each has its reason; none is advisory.

/// Events in one batch: keeps a turn's input small enough to hold in a guest's memory twice.
pub const BATCH_EVENTS_MAX: usize = 256;
/// Bytes of events in one batch, for the same reason.
pub const BATCH_BYTES_MAX: usize = 1 << 20;
/// Bytes of state written by one turn: one Raft entry must stay far below the entry limit.
pub const TURN_STATE_BYTES_MAX: usize = 1 << 20;
/// Keys written by one turn.
pub const TURN_KEYS_MAX: usize = 1_000;
/// Driver operations in one turn.
pub const TURN_OPERATIONS_MAX: usize = 1_000;
/// Bytes of task specs that one turn may define.
pub const TURN_SPEC_BYTES_MAX: usize = 1 << 20;
/// Task specs that one turn may define.
pub const TURN_SPECS_MAX: usize = 256;
/// Bytes of state of one framework: it is sent whole to an agent when an instance is rebuilt.
pub const STATE_BYTES_MAX: u64 = 64 << 20;
/// Keys of state of one framework.
pub const STATE_KEYS_MAX: u64 = 100_000;
/// Bytes of a state key.
pub const KEY_BYTES_MAX: usize = 255;
/// Bytes of a state value.
pub const VALUE_BYTES_MAX: usize = 256 << 10;
/// Entries that one scan returns.
pub const SCAN_ENTRIES_MAX: u32 = 1_000;
/// Bytes that one scan returns.
pub const SCAN_BYTES_MAX: usize = 1 << 20;
/// Bytes of one message between a scheduler and an executor.
pub const MESSAGE_DATA_BYTES_MAX: usize = 64 << 10;
/// Bytes of an executor task's data: it is part of a spec.
pub const EXECUTOR_DATA_BYTES_MAX: usize = 64 << 10;
/// Versions of its component that a framework remembers.
pub const VERSIONS_MAX: usize = 16;
/// Timers of one framework.
pub const TIMERS_MAX: u64 = 1_000;
/// Shortest timer: keeps a framework from being a busy loop.
pub const TIMER_MIN_MS: u64 = 10;
/// Longest decline filter and timer: 365 days.
pub const DURATION_MAX_MS: u64 = 31_536_000_000;
/// Bytes of a request body for a scheduler.
pub const HTTP_REQUEST_BYTES_MAX: usize = 1 << 20;
/// Bytes of an answer's body: answers travel in the log.
pub const HTTP_ANSWER_BYTES_MAX: usize = 64 << 10;
/// Headers of a request or an answer, each of at most [`HTTP_HEADER_BYTES_MAX`].
pub const HTTP_HEADERS_MAX: usize = 32;
/// Bytes of one header, name and value together.
pub const HTTP_HEADER_BYTES_MAX: usize = 4 << 10;
/// Bytes of one encoded task spec: a file of 64 KiB and more fits several times.
pub const SPEC_BYTES_MAX: usize = 512 << 10;
/// Bytes of one inline file.
pub const FILE_BYTES_MAX: usize = 64 << 10;
/// Files of one spec.
pub const FILES_MAX: usize = 64;
/// Environment variables of one spec or launch.
pub const ENV_MAX: usize = 128;
/// Bytes of what one launch overrides (arguments and environment): launches travel in the log.
pub const LAUNCH_BYTES_MAX: usize = 1 << 10;
/// Bytes of a result file: it becomes the data of a status, which is replicated.
pub const RESULT_BYTES_MAX: usize = 256 << 10;
/// Bytes of a status message.
pub const MESSAGE_BYTES_MAX: usize = 1_024;
/// Longest time between TERM and KILL: 1 hour.
pub const GRACE_MAX_MS: u64 = 3_600_000;
/// Time between TERM and KILL when nothing is said.
pub const GRACE_DEFAULT_MS: u64 = 3_000;
/// Processes and threads of a native task when nothing is said.
pub const PIDS_DEFAULT: u32 = 4_096;
/// Requests of one framework: each is compared with every agent that changes.
pub const RESOURCE_REQUESTS_MAX: usize = 16;
/// Bytes of the names and values of one request: all of them are in the framework's row.
pub const RESOURCE_REQUEST_BYTES_MAX: usize = 1 << 10;
/// Tasks that one request stands for.
pub const RESOURCE_REQUEST_COUNT_MAX: u32 = 10_000;
/// Constraints of one request.
pub const CONSTRAINTS_MAX: usize = 16;
/// Values that one constraint names.
pub const CONSTRAINT_VALUES_MAX: usize = 64;
/// Bytes of a pattern in a constraint: names of hosts are shorter, and every agent's is compared with it.
pub const PATTERN_BYTES_MAX: usize = 128;
/// Patterns in all requests of a framework together, likewise.
pub const PATTERNS_MAX: usize = 16;
/// Bytes of a component: larger uploads are refused before anything is parsed.
pub const COMPONENT_BYTES_MAX: u64 = 32 << 20;
/// Configuration entries of a framework.
pub const CONFIG_ENTRIES_MAX: usize = 256;
/// Bytes of a framework's configuration.
pub const CONFIG_BYTES_MAX: usize = 64 << 10;
/// Log lines kept of one turn.
pub const TURN_LOG_LINES_MAX: usize = 1_000;
/// Bytes of log kept of one turn.
pub const TURN_LOG_BYTES_MAX: usize = 1 << 20;
/// Bytes of one log line, fields included.
pub const LOG_LINE_BYTES_MAX: usize = 8 << 10;
/// Tasks of one framework that are not yet terminal.
pub const TASKS_LIVE_MAX: usize = 100_000;
