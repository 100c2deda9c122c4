//! The hostile uploads, schedulers and tasks, each with the verdict that is expected and with what it
//! proves. `docs/security.md` has a row for each, which a test holds against this table.
//!
//! A name stands for the attack itself: bytes of `uploads`, a module of `modules`, or what the guests
//! `hostile` and `hostile-task` do under that name.

/// In which way it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Bytes given to `POST /v1/components`.
    Upload,
    /// The guest `hostile`, asked once.
    Scheduler,
    /// A module made by hand, which attacks whenever it is called.
    Module,
    /// The guest `hostile-task`, launched by the guest `hostile`.
    Task,
    /// The guest `executor-basic`, given a task by the guest `launcher`.
    Executor,
}

/// What has to become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The upload is refused with this status, and a message that has this text.
    Refused(u16, &'static str),
    /// The scheduler goes on; its answer has this text, and does not speak of an escape.
    Contained(&'static str),
    /// The scheduler takes its turn without a failure.
    Harmless,
    /// The scheduler goes on taking turns all the time, without a failure.
    Storms,
    /// The instance is dropped with an error that has this text.
    Fails(&'static str),
    /// It fails again and again, with an error that has this text, until it is quarantined.
    Quarantined(&'static str),
    /// The task ends in this state, and its status and output together have this text.
    Ends(&'static str, &'static str),
    /// The task runs until somebody kills it.
    Killed,
    /// So it does, and computes all the time.
    Computes,
}

/// One of them.
#[derive(Clone, Copy, Debug)]
pub struct Attack {
    /// Its name.
    pub name: &'static str,
    /// In which way it comes.
    pub by: By,
    /// What has to become of it.
    pub verdict: Verdict,
    /// What its verdict proves.
    pub proves: &'static str,
}

impl Verdict {
    /// As the page says it.
    pub fn words(self) -> String {
        match self {
            Self::Refused(status, text) => format!("refused, {status}: “{text}”"),
            Self::Contained(text) => format!("contained: “{text}”"),
            Self::Harmless => "goes on, harmless".to_owned(),
            Self::Storms => "storms on, harmless".to_owned(),
            Self::Fails(text) => format!("instance dropped: “{text}”"),
            Self::Quarantined(text) => format!("quarantined: “{text}”"),
            Self::Ends(state, text) => format!("`{state}`: “{text}”"),
            Self::Killed => "`TASK_KILLED` on demand".to_owned(),
            Self::Computes => "computes until `TASK_KILLED` on demand".to_owned(),
        }
    }
}

const fn upload(name: &'static str, text: &'static str, proves: &'static str) -> Attack {
    Attack {
        name,
        by: By::Upload,
        verdict: Verdict::Refused(400, text),
        proves,
    }
}

const fn scheduler(name: &'static str, verdict: Verdict, proves: &'static str) -> Attack {
    Attack {
        name,
        by: By::Scheduler,
        verdict,
        proves,
    }
}

const fn module(name: &'static str, verdict: Verdict, proves: &'static str) -> Attack {
    Attack {
        name,
        by: By::Module,
        verdict,
        proves,
    }
}

const fn task(name: &'static str, verdict: Verdict, proves: &'static str) -> Attack {
    Attack {
        name,
        by: By::Task,
        verdict,
        proves,
    }
}

const fn executor(name: &'static str, verdict: Verdict, proves: &'static str) -> Attack {
    Attack {
        name,
        by: By::Executor,
        verdict,
        proves,
    }
}

use Verdict::{Computes, Contained, Ends, Fails, Harmless, Killed, Quarantined, Refused, Storms};

/// All uploads.
pub const UPLOADS: &[Attack] = &[
    upload("empty", "empty", "nothing is not taken for something"),
    upload(
        "garbage",
        "something unknown",
        "bytes are judged before they are parsed",
    ),
    upload("script", "something unknown", "scripts are not components"),
    upload(
        "native-program",
        "a native program",
        "native code is never taken from outside",
    ),
    upload(
        "compiled",
        "code compiled ahead of time",
        "compiled code, which the runtime would trust, is never taken from outside",
    ),
    upload(
        "image",
        "something unknown",
        "an agent's cache file cannot be handed in either",
    ),
    upload("text", "WebAssembly text", "the text format is not parsed"),
    upload(
        "core-module",
        "module",
        "a module without a world is no component",
    ),
    upload(
        "unknown-version",
        "unknown version",
        "later binary formats are not guessed at",
    ),
    upload(
        "truncated",
        "not valid",
        "half a component is refused by the parser, in the jail",
    ),
    upload(
        "damaged",
        "not valid",
        "damaged code is refused before it is compiled",
    ),
    Attack {
        name: "giant",
        by: By::Upload,
        verdict: Refused(413, "TOO_LARGE"),
        proves: "size is bounded before bytes are kept",
    },
    upload(
        "memory64",
        "not valid",
        "features that the contract does not need are off",
    ),
    upload("multi-memory", "not valid", "the same"),
    upload(
        "threads",
        "not valid",
        "no guest shares memory, so that no guest can build a clock from a thread",
    ),
    upload(
        "garbage-collection",
        "not valid",
        "features that the contract does not need are off",
    ),
    upload(
        "relaxed-simd",
        "not valid",
        "instructions whose result depends on the processor are off",
    ),
    upload(
        "tail-call",
        "not valid",
        "features that the contract does not need are off",
    ),
    upload(
        "deep-types",
        "not valid",
        "recursion of the parser is bounded",
    ),
    upload(
        "deep-components",
        "exports neither",
        "2,000 components in each other are one component without a world",
    ),
    upload(
        "deeper-components",
        "compile-",
        "and 100,000 of them are more than the jail has room for",
    ),
    upload("long-name", "not valid", "names are bounded"),
    upload(
        "functions",
        "component-functions",
        "functions are counted before anything is compiled",
    ),
    upload(
        "function-size",
        "function-bytes",
        "so are the bytes of each function",
    ),
    upload(
        "loops",
        "function-locals",
        "so are its locals: 10,000 loops over 10,000 locals would need more than 10 GiB",
    ),
    upload(
        "blocks",
        "compile-",
        "what is cheap to count and dear to compile ends with the jail's CPU time or memory",
    ),
    upload(
        "br-table",
        "br_table",
        "a jump of 400,000 targets is refused by the compiler",
    ),
    upload(
        "instances",
        "not valid",
        "instances are bounded by the parser",
    ),
    upload(
        "live-instances",
        "instances",
        "and, below that, by the limit",
    ),
    upload(
        "live-memories",
        "memories",
        "memories are counted before they exist",
    ),
    upload("live-tables", "tables", "so are tables"),
    upload(
        "first-memory",
        "memory-bytes",
        "4 GiB at the start are refused as by growing",
    ),
    upload("first-table", "table-elements", "the same for tables"),
    upload(
        "start-loop",
        "init-cpu-ms",
        "instantiation itself stands under a budget",
    ),
    upload(
        "start-trap",
        "unreachable",
        "a trap while instantiating is a verdict",
    ),
    upload(
        "describe-loop",
        "init-cpu-ms",
        "the judge does not wait for guests",
    ),
    upload(
        "describe-trap",
        "unreachable",
        "a trap while describing is a verdict",
    ),
    upload(
        "describe-giant",
        "hostcall-bytes",
        "what a guest says to its judge is bounded",
    ),
    upload(
        "no-world",
        "exports neither",
        "a component without a known export is refused with what is missing",
    ),
    upload("missing-export", "scheduler", "so is half a scheduler"),
    upload(
        "wrong-type",
        "expected",
        "the right name with another type is refused at upload, not at the first call",
    ),
    upload(
        "wrong-version",
        "0.2.0",
        "another version of the contract is refused with both versions",
    ),
    upload(
        "extra-import",
        "evil:host/escape",
        "an import that nobody grants is refused by name",
    ),
    upload(
        "unknown-function",
        "become-root",
        "so is a function that the contract does not have",
    ),
    upload(
        "newer-wasi",
        "wasi:sockets",
        "so is WASI of a later version",
    ),
    upload(
        "other-digest",
        "digest",
        "bytes are what their digest says, or they are refused",
    ),
];

/// All schedulers that attack when they are asked.
pub const SCHEDULERS: &[Attack] = &[
    scheduler(
        "init-loop",
        Quarantined("init-cpu-ms"),
        "`init` stands under a budget; who never starts is put away",
    ),
    scheduler(
        "init-grow",
        Quarantined("memory-bytes"),
        "memory is bounded before the first turn, too",
    ),
    scheduler(
        "handle-loop",
        Fails("turn-cpu-ms"),
        "a turn that never returns is ended",
    ),
    scheduler(
        "copy-loop",
        Fails("turn-cpu-ms"),
        "so is one made of bulk operations only",
    ),
    scheduler(
        "timer-loop",
        Quarantined("turn-cpu-ms"),
        "an event that kills its receiver every time does not keep the worker busy for ever",
    ),
    scheduler(
        "trap-storm",
        Quarantined("TRAPPED"),
        "a scheduler that traps in every turn is put away",
    ),
    scheduler(
        "poison",
        Quarantined("TRAPPED"),
        "so is one whose own state kills it",
    ),
    scheduler(
        "state-get-flood",
        Fails("host-calls"),
        "cheap calls are counted, too",
    ),
    scheduler(
        "wasi-sleep",
        Contained("without waiting"),
        "a guest cannot make its host wait",
    ),
    scheduler(
        "wasi-poll-nothing",
        Fails("TRAPPED"),
        "nor wait for what can never happen",
    ),
    scheduler(
        "wasi-clock",
        Contained("do not show"),
        "clocks are no side channel",
    ),
    scheduler(
        "again-storm",
        Storms,
        "asking to be called again without end costs the asker's share only",
    ),
    scheduler("timer-storm", Storms, "so do a hundred timers every 10 ms"),
    scheduler(
        "grow-steps",
        Contained("memory ended"),
        "memory ends where the limit says",
    ),
    scheduler(
        "grow-at-once",
        Contained("were refused"),
        "so does a single request",
    ),
    scheduler(
        "grow-touch",
        Fails("memory-bytes"),
        "who dies of it is told which limit it was",
    ),
    scheduler(
        "residue",
        Contained("hold nothing"),
        "new memory holds nothing of anybody else",
    ),
    scheduler(
        "stack",
        Fails("out of bounds"),
        "recursion over large frames ends at the stack that a toolchain keeps in memory",
    ),
    scheduler(
        "panic",
        Fails("asked to panic"),
        "a panic is told in the author's words",
    ),
    scheduler(
        "panic-giant",
        Fails("TRAPPED"),
        "and is cut when the words are 16 MiB",
    ),
    scheduler("abort", Fails("TRAPPED"), "an abort ends the guest only"),
    scheduler(
        "exit-zero",
        Fails("TRAPPED"),
        "so does leaving with success",
    ),
    scheduler(
        "error-giant",
        Fails("GUEST_ERROR"),
        "a returned error is cut",
    ),
    scheduler(
        "wasi-files",
        Contained("no files"),
        "schedulers have no file system",
    ),
    scheduler(
        "wasi-environment",
        Contained("neither"),
        "nor the host's environment",
    ),
    scheduler(
        "wasi-network",
        Contained("no connection"),
        "nor a network, whether loopback or metadata service",
    ),
    scheduler("wasi-stdin", Contained("nothing to read"), "nor an input"),
    scheduler(
        "wasi-random",
        Fails("random-bytes"),
        "randomness is handed out in small pieces",
    ),
    scheduler(
        "wasi-handles",
        Fails("handles"),
        "handles that are never dropped are bounded",
    ),
    scheduler(
        "wasi-print",
        Contained("printed"),
        "output is dropped beyond its limit, and counted, and its escape codes never reach a terminal",
    ),
    scheduler("log-flood", Contained("written"), "so is the log"),
    scheduler(
        "log-escapes",
        Contained("written"),
        "a log line cannot forge another, nor take over a terminal",
    ),
    scheduler(
        "raw-pointer-beyond",
        Fails("TRAPPED"),
        "pointers are checked",
    ),
    scheduler("raw-length-beyond", Fails("TRAPPED"), "so are lengths"),
    scheduler(
        "raw-result-beyond",
        Fails("TRAPPED"),
        "so is where answers go",
    ),
    scheduler("raw-unaligned", Fails("TRAPPED"), "so is alignment"),
    scheduler("raw-utf8", Fails("TRAPPED"), "so is text"),
    scheduler("raw-surrogate", Fails("TRAPPED"), "surrogates are no text"),
    scheduler("raw-enum", Fails("TRAPPED"), "so are numbers of cases"),
    scheduler("raw-variant", Fails("TRAPPED"), "of operations, too"),
    scheduler(
        "raw-giant-list",
        Fails("hostcall-bytes"),
        "a list that says the same kilobyte a million times is not copied",
    ),
    scheduler(
        "raw-giant-string",
        Fails("hostcall-bytes"),
        "nor is a text of 40 MiB",
    ),
    scheduler(
        "raw-drop-twice",
        Fails("TRAPPED"),
        "a handle is dropped once",
    ),
    scheduler(
        "raw-use-after-drop",
        Fails("TRAPPED"),
        "and is nothing afterwards",
    ),
    scheduler(
        "raw-guessed-handle",
        Fails("TRAPPED"),
        "handles cannot be guessed: each instance has a table of its own",
    ),
    scheduler(
        "raw-confused-handle",
        Fails("TRAPPED"),
        "nor used as something else",
    ),
    scheduler(
        "state-value",
        Contained("state-value-bytes"),
        "values are bounded",
    ),
    scheduler("state-keys", Contained("turn-keys"), "so are keys per turn"),
    scheduler(
        "state-bytes",
        Contained("turn-state-bytes"),
        "so are bytes per turn",
    ),
    scheduler(
        "state-key-name",
        Contained("Invalid"),
        "so are names of keys",
    ),
    scheduler(
        "state-full",
        Contained("state-bytes"),
        "so is the whole state",
    ),
    scheduler(
        "state-scan",
        Contained("1000 of 2000 entries, 7 of 14 large ones"),
        "what is read at once is bounded, in entries and in bytes",
    ),
    scheduler(
        "operations",
        Contained("turn-operations"),
        "a million calls end at the limit of the turn",
    ),
    scheduler(
        "timers-full",
        Contained("timers"),
        "timers are bounded over turns, not only in one",
    ),
    scheduler(
        "timer-too-soon",
        Contained("after-ms"),
        "a timer is at least 10 ms away",
    ),
    scheduler("specs", Contained("turn-specs"), "specs are bounded"),
    scheduler("spec-giant", Contained("128 KiB"), "so is the size of one"),
    scheduler(
        "spec-overflow",
        Contained("Invalid"),
        "quantities are bounded, so that no sum overflows",
    ),
    scheduler(
        "spec-path",
        Contained("no such path"),
        "files of a task stay in its sandbox",
    ),
    scheduler(
        "spec-environment",
        Contained("Invalid"),
        "names and values cannot end early",
    ),
    scheduler(
        "kill-foreign",
        Contained("Unknown"),
        "names of tasks mean one's own tasks",
    ),
    scheduler(
        "respond-foreign",
        Contained("accepted=0"),
        "requests of others cannot be answered",
    ),
    scheduler(
        "respond-giant",
        Contained("http-answer-bytes"),
        "answers are bounded",
    ),
    scheduler(
        "respond-smuggle",
        Contained("the framing is the host's"),
        "answers cannot be split",
    ),
    scheduler(
        "http-send",
        Contained("Unsupported"),
        "there is no way out to the network",
    ),
    scheduler(
        "send-flood",
        Contained("refused="),
        "messages to executors are bounded",
    ),
    scheduler(
        "offers-foreign",
        Contained("INVALID_OFFER"),
        "offers of others cannot be used",
    ),
    scheduler("offers-none", Contained("Invalid"), "nor can none"),
    scheduler(
        "offers-twice",
        Contained("INVALID_OFFER"),
        "nor one a second time",
    ),
    scheduler(
        "offers-doubled",
        Contained("Invalid"),
        "nor one twice in a call",
    ),
    scheduler(
        "offers-too-much",
        Contained("NOT_ENOUGH_RESOURCES"),
        "nor more than was offered",
    ),
    scheduler(
        "offers-user",
        Contained("user"),
        "a task does not choose to be root",
    ),
];

/// All modules made by hand.
pub const MODULES: &[Attack] = &[
    module(
        "realloc-unaligned",
        Fails("not aligned"),
        "memory that a guest gives to its host is checked",
    ),
    module("realloc-beyond", Fails("TRAPPED"), "so is its end"),
    module(
        "realloc-trap",
        Fails("unreachable"),
        "a trap while the host writes arguments is a trap",
    ),
    module(
        "realloc-loop",
        Fails("init-cpu-ms"),
        "a loop there stands under the budget",
    ),
    module(
        "realloc-reenters",
        Fails("cannot leave"),
        "a guest cannot call out while it is being called",
    ),
    module(
        "result-discriminant",
        Fails("TRAPPED"),
        "results are checked like arguments",
    ),
    module("result-beyond", Fails("TRAPPED"), "so is where they are"),
    module(
        "result-text-beyond",
        Fails("TRAPPED"),
        "so are texts in them",
    ),
    module(
        "result-text-giant",
        Fails("hostcall-bytes"),
        "whose size is bounded",
    ),
    module(
        "result-text-invalid",
        Fails("TRAPPED"),
        "and which have to be text",
    ),
    module(
        "cleanup-loop",
        Fails("turn-cpu-ms"),
        "cleaning up after a call stands under its budget",
    ),
    module(
        "stack",
        Fails("stack"),
        "recursion ends at the guest's stack",
    ),
    module(
        "stack-host-call",
        Fails("stack"),
        "also when it ends inside of a host call",
    ),
    module("table-grow", Harmless, "tables grow to their limit only"),
    module(
        "table-residue",
        Quarantined("divide by zero"),
        "new tables hold nothing of whoever was there before: each of five lives fills one and falls",
    ),
    module(
        "indirect-type",
        Fails("indirect call"),
        "calls through tables are checked",
    ),
    module(
        "indirect-null",
        Fails("TRAPPED"),
        "also where there is nothing",
    ),
    module("divide", Fails("divide"), "faults of arithmetic are traps"),
];

/// All tasks.
pub const TASKS: &[Attack] = &[
    task(
        "memory-steps",
        Ends("TASK_FAILED", "MEMORY_LIMIT"),
        "a task has the memory that it is charged for",
    ),
    task(
        "memory-at-once",
        Ends("TASK_FINISHED", "contained"),
        "also in a single request",
    ),
    task(
        "loop",
        Computes,
        "a task may compute for ever, beside others, and ends when it is killed",
    ),
    task("sleep", Killed, "so does one that waits"),
    task(
        "stack",
        Ends("TASK_FAILED", "stack"),
        "recursion ends at the task's stack",
    ),
    task(
        "trap",
        Ends("TASK_FAILED", "TRAPPED"),
        "a trap ends one task only",
    ),
    task(
        "exit",
        Ends("TASK_FAILED", "COMMAND_EXITED"),
        "an exit code is an exit code",
    ),
    task(
        "files",
        Ends("TASK_FINISHED", "contained"),
        "a path does not lead out of the sandbox",
    ),
    task(
        "links",
        Ends("TASK_FINISHED", "contained"),
        "nor does a link, with a slash behind it or without",
    ),
    task(
        "network",
        Ends("TASK_FINISHED", "contained"),
        "there is no network",
    ),
    task(
        "fetch",
        Ends("TASK_FINISHED", "contained"),
        "`wasi:http` is there for those that import it, and its requests are denied",
    ),
    task(
        "environment",
        Ends("TASK_FINISHED", "contained"),
        "the environment is the task's own",
    ),
    task(
        "stdin",
        Ends("TASK_FINISHED", "contained"),
        "nothing to read",
    ),
    task(
        "output",
        Ends("TASK_FINISHED", "output over the limit is dropped"),
        "output beyond its limit is dropped",
    ),
    task(
        "handles",
        Ends("TASK_FAILED", "limit handles"),
        "open files are handles, and those are bounded",
    ),
    task(
        "random",
        Ends("TASK_FAILED", "limit random-bytes"),
        "randomness is handed out in small pieces",
    ),
    task(
        "result-giant",
        Ends("TASK_FINISHED", "more than 262144 bytes data=0"),
        "a result beyond its limit does not travel, and that is said",
    ),
    task(
        "result-link",
        Ends("TASK_FINISHED", "contained"),
        "the host does not follow a task's links when it reads its files",
    ),
];

/// All executors: what the guest is told to do.
pub const EXECUTORS: &[Attack] = &[
    executor(
        "trap",
        Ends("TASK_FAILED", "EXECUTOR_TERMINATED"),
        "an executor that keeps trapping is given up with its tasks",
    ),
    executor(
        "grow 512",
        Ends("TASK_FAILED", "EXECUTOR_TERMINATED"),
        "so is one that needs more memory than it is charged for",
    ),
    executor(
        "again 1000000000",
        Computes,
        "asking to be called again without end costs its own share",
    ),
    executor(
        "children 1000",
        Ends("TASK_FAILED", "executor-children"),
        "children are bounded",
    ),
    executor(
        "write 5000 10",
        Ends("TASK_FAILED", "turn-keys"),
        "so is what it writes in a turn",
    ),
    executor(
        "sends 5000",
        Ends("TASK_FAILED", "limit"),
        "so are messages to its scheduler",
    ),
    executor(
        "log 100000",
        Ends("TASK_FINISHED", "TASK_FINISHED"),
        "lines beyond the limit are dropped and counted",
    ),
];
