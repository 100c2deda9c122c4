//! What a framework of the simulation wants done: numbered jobs of one or several tasks, and what each of these is.
//!
//! Invariant: everything follows from the number of a job. Must never know what became of one.

use crate::user::command_component;
use tessera_types::{
    Constraint, ExecutorId, NativeCommand, Predicate, Quantities, Reason, Resources, Selector, TaskBody, TaskSpec,
    TaskState, ZONE,
};
use tessera_wire::encode_spec;

/// What a task is meant to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A command that succeeds after so many ms.
    Native(u64),
    /// A component that succeeds after so many ms.
    Wasm(u64),
    /// A command that exits with 3 after so many ms.
    Failing(u64),
    /// A command that runs until it is killed.
    Endless,
    /// A component that runs until it is killed.
    EndlessWasm,
    /// A task of an executor.
    Hosted(Hosted),
}

/// What an executor does for a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hosted {
    /// 0 waits for a timer, 1 starts a command, 2 a component.
    pub mode: u64,
    /// For how long, in ms.
    pub run_ms: u64,
}

impl Hosted {
    pub(super) fn data(self) -> Vec<u8> {
        format!("{} {}", self.mode, self.run_ms).into_bytes()
    }

    /// What the data of a task says.
    #[must_use]
    pub fn parse(data: &[u8]) -> Option<Self> {
        let (mode, run_ms) = std::str::from_utf8(data).ok()?.split_once(' ')?;
        Some(Self { mode: mode.parse().ok()?, run_ms: run_ms.parse().ok()? })
    }
}

/// What an executor is charged for beside its tasks.
pub const EXECUTOR: Quantities = Quantities { cpus_milli: 100, mem_mib: 32, disk_mib: 0 };
/// What a child is limited to, inside of its executor's and its tasks' resources.
pub(super) const CHILD: Quantities = Quantities { cpus_milli: 50, mem_mib: 16, disk_mib: 0 };

/// The encoded spec of the child that an executor starts for a task, if it starts one.
#[must_use]
pub fn child_spec(hosted: Hosted) -> Option<Vec<u8>> {
    let words = [hosted.run_ms.to_string(), "0".to_owned()];
    let body = match hosted.mode {
        0 => return None,
        1 => native(&words),
        _ => TaskBody::Wasm { component: command_component(), args: words.to_vec() },
    };
    Some(encode_spec(&spec_of("child", body, CHILD)))
}

pub(super) fn native([run_ms, code]: &[String; 2]) -> TaskBody {
    let words = vec!["work".to_owned(), run_ms.clone(), code.clone()];
    TaskBody::Native(NativeCommand::Argv(words))
}

pub(super) fn spec_of(name: &str, body: TaskBody, resources: Quantities) -> TaskSpec {
    TaskSpec {
        name: name.to_owned(),
        body,
        resources: resources.into(),
        revocable: false,
        cpus_limit_milli: None,
        pids_limit: None,
        user: None,
        env: Vec::new(),
        files: Vec::new(),
        result_file: None,
        grace_ms: None,
        restarts: 0,
        labels: Vec::new(),
    }
}

/// How the members of a job are launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// It has one member.
    Alone,
    /// All or none on one agent, and they end together.
    Group,
    /// All or none, on several agents if there are.
    Gang,
}

/// What belongs to one number: it is launched, and replaced, as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// How its members are launched.
    pub shape: Shape,
    /// What they do, and how each ends when nothing goes wrong.
    pub members: &'static [(Duty, TaskState)],
}

/// A kind without its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// [`Kind::Native`].
    Native,
    /// [`Kind::Wasm`].
    Wasm,
    /// [`Kind::Failing`].
    Failing,
    /// [`Kind::Endless`].
    Endless,
    /// [`Kind::EndlessWasm`].
    EndlessWasm,
    /// [`Kind::Hosted`].
    Hosted,
}

impl Job {
    /// The job with this number.
    #[must_use]
    pub const fn of(number: u64) -> Self {
        use Duty as D;
        use TaskState as S;
        let (shape, members): (Shape, &'static [(Duty, TaskState)]) = match number % 13 {
            0 | 3 => (Shape::Alone, &[(D::Native, S::Finished)]),
            1 | 5 => (Shape::Alone, &[(D::Wasm, S::Finished)]),
            2 => (Shape::Alone, &[(D::Failing, S::Failed)]),
            4 => (Shape::Alone, &[(D::Endless, S::Killed)]),
            6 => (Shape::Alone, &[(D::EndlessWasm, S::Killed)]),
            7 => (Shape::Group, &[(D::Native, S::Finished), (D::Wasm, S::Finished), (D::Native, S::Finished)]),
            // One fails: it is up to the agent to end the others.
            8 => (Shape::Group, &[(D::Endless, S::Killed), (D::Failing, S::Failed), (D::EndlessWasm, S::Killed)]),
            9 => (Shape::Gang, &[(D::Native, S::Finished), (D::Wasm, S::Finished)]),
            10 => (Shape::Group, &[(D::Hosted, S::Finished), (D::Hosted, S::Finished), (D::Native, S::Finished)]),
            _ => (Shape::Alone, &[(D::Hosted, S::Finished)]),
        };
        Self { shape, members }
    }

    /// Whether the scheduler is to kill its members when they run.
    pub(super) fn is_killed(self) -> bool {
        self.shape == Shape::Alone && self.members[0].1 == TaskState::Killed
    }

    /// The id of a member in a replacement of the job.
    pub(super) fn task(self, number: u64, replacement: u64, member: usize) -> String {
        match self.shape {
            Shape::Alone => format!("t{number}.{replacement}"),
            Shape::Group | Shape::Gang => format!("t{number}.{replacement}.{member}"),
        }
    }
}

impl Kind {
    /// What a member of a job does.
    #[must_use]
    pub const fn of(number: u64, member: usize) -> Self {
        let run_ms = 200 + (number * 137 + member as u64 * 311) % 2_600;
        match Job::of(number).members[member].0 {
            Duty::Native => Self::Native(run_ms),
            Duty::Wasm => Self::Wasm(run_ms),
            Duty::Failing => Self::Failing(run_ms),
            Duty::Endless => Self::Endless,
            Duty::EndlessWasm => Self::EndlessWasm,
            Duty::Hosted => Self::Hosted(Hosted { mode: (number + member as u64) % 3, run_ms }),
        }
    }

    /// The same as revocable work.
    pub(super) const fn lent(self) -> Self {
        match self {
            Self::Native(ms) => Self::Native(LENT_MS + 2 * ms),
            Self::Wasm(ms) => Self::Wasm(LENT_MS + 2 * ms),
            Self::Hosted(hosted) => Self::Hosted(Hosted { mode: hosted.mode, run_ms: LENT_MS + hosted.run_ms }),
            Self::Failing(_) | Self::Endless | Self::EndlessWasm => self,
        }
    }

    /// Run time and exit code, as the words of the command.
    pub(super) fn words(self) -> [String; 2] {
        let (run_ms, code) = match self {
            Self::Native(ms) | Self::Wasm(ms) => (ms, 0),
            Self::Failing(ms) => (ms, 3),
            Self::Endless | Self::EndlessWasm | Self::Hosted(_) => (u64::from(u32::MAX), 0),
        };
        [run_ms.to_string(), code.to_string()]
    }
}

/// A resource that some agents have beside the others.
pub const GPUS: &str = "gpus";
/// Zones of agents: every cluster has agents of both.
pub const ZONES: [&str; 2] = ["z0", "z1"];
/// Revocable work goes on for so much longer, in ms, that somebody may need what it uses.
const LENT_MS: u64 = 4_000;

/// What a job wants beside CPU and memory, where frameworks say what they wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// It may be taken back, until it has waited for long.
    pub lent: bool,
    /// Of each member, in thousandths.
    pub gpus: i64,
    /// Where it is to run.
    pub zone: Option<&'static str>,
}

impl Terms {
    /// Of the job with this number. Some agent has both what it wants, and stands in its zone.
    #[must_use]
    pub const fn of(number: u64) -> Self {
        let gpus = if number % 5 == 2 { 500 } else { 0 };
        let one_place = !matches!(Job::of(number).shape, Shape::Gang);
        let zone = match number % 8 {
            3 if one_place => Some(ZONES[0]),
            7 if one_place && gpus == 0 => Some(ZONES[1]),
            _ => None,
        };
        Self { lent: number % 3 == 1, gpus, zone }
    }

    /// The same as a condition, which may be said in several ways.
    pub(super) fn constraints(self, number: u64) -> Vec<Constraint> {
        let other = |zone: &str| ZONES.into_iter().find(|of| *of != zone).unwrap_or_default().to_owned();
        let said = self.zone.map(|zone| match number / 8 % 4 {
            0 => Predicate::Equals(zone.to_owned()),
            1 => Predicate::OneOf(vec!["z9".to_owned(), zone.to_owned()]),
            2 => Predicate::NoneOf(vec![other(zone)]),
            _ => Predicate::Matches(format!("?{}", &zone[1..])),
        });
        let zone = |predicate| Constraint { selector: Selector::Attribute(ZONE.to_owned()), predicate };
        said.map(zone).into_iter().collect()
    }
}

/// What all members of a job that are launched on one agent need there, with the executor that they share.
pub(super) fn whole(number: u64) -> Resources {
    let members = 0..Job::of(number).members.len();
    let hosted = members.clone().any(|member| matches!(Kind::of(number, member), Kind::Hosted(_)));
    let begun = if hosted { EXECUTOR } else { Quantities::ZERO };
    let tasks = members.map(|_| task(number));
    tasks.fold(Resources::of(begun), |sum, task| sum.plus(&task))
}

/// What a member of a job needs, where frameworks say what they wait for.
pub(super) fn task(number: u64) -> Resources {
    Resources::of(needs(number)).with(GPUS, Terms::of(number).gpus)
}

/// What the task with this number needs.
#[must_use]
pub fn needs(number: u64) -> Quantities {
    let cpus_milli = 200 + i64::try_from(number % 4).unwrap_or(0) * 100;
    Quantities { cpus_milli, mem_mib: 64, disk_mib: 0 }
}

/// The same with its executor, which may have to be begun.
pub(super) fn cost(number: u64, member: usize) -> Quantities {
    let begun = matches!(Kind::of(number, member), Kind::Hosted(_));
    needs(number).plus(if begun { EXECUTOR } else { Quantities::ZERO })
}

/// The executor of a hosted job: there are two of each kind, each with several tasks.
pub(super) fn executor_of(number: u64, revocable: bool) -> Option<ExecutorId> {
    let kind = if revocable { "rx" } else { "ex" };
    format!("{kind}{}", number % 2).parse().ok()
}

/// Whether a task is one of an executor.
#[must_use]
pub fn is_hosted(task: &str) -> bool {
    let member = unit_of(task).len() + 1;
    let member = task.get(member..).and_then(|text| text.parse().ok()).unwrap_or(0);
    let members = |number: u64| Job::of(number).members.get(member).map(|(duty, _)| *duty);
    number_of(task).and_then(members) == Some(Duty::Hosted)
}

/// What a command's words mean: run time in ms and exit code.
#[must_use]
pub fn run_of(words: &[String]) -> (u64, i32) {
    let mut numbers = words.iter().rev().filter_map(|word| word.parse::<u64>().ok());
    let code = numbers.next().unwrap_or(0);
    (numbers.next().unwrap_or(0), i32::try_from(code).unwrap_or(1))
}

/// What it remembers of one task, as text: last sequence and state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) sequence: u64,
    pub(super) state: TaskState,
    pub(super) reason: Reason,
}

impl Record {
    /// Later forms begin with their number.
    pub(super) fn text(self, format: u32) -> String {
        let text = format!("{} {} {}", self.sequence, self.state.name(), self.reason.code());
        if format == 1 { text } else { format!("v{format} {text}") }
    }

    /// It was launched, and nothing was heard of it.
    pub(super) const fn is_silent(self) -> bool {
        self.sequence == 0 && matches!(self.state, TaskState::Staging)
    }

    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let text = text.strip_prefix("v2 ").unwrap_or(text);
        let mut words = text.split(' ');
        let sequence = words.next()?.parse().ok()?;
        let name = words.next()?;
        let state = TaskState::ALL.into_iter().find(|state| state.name() == name)?;
        Some(Self { sequence, state, reason: Reason::of_code(words.next().unwrap_or_default()) })
    }
}

/// Whether a member ended as it was meant to: otherwise the job is replaced by one of other ids.
pub(super) fn ended_well(number: u64, member: usize, record: Record) -> bool {
    let by_itself = !matches!(
        record.reason,
        Reason::WorkerLost
            | Reason::ShimLost
            | Reason::LaunchFailed
            | Reason::AgentRebooted
            | Reason::Preempted
    );
    record.state == Job::of(number).members[member].1 && by_itself
}

/// The number of a task's job, from its id `t<number>.<replacement>` or `t<number>.<replacement>.<member>`.
#[must_use]
pub fn number_of(task: &str) -> Option<u64> {
    task.strip_prefix('t')?.split_once('.')?.0.parse().ok()
}

/// What is launched all or none together with a task, itself included: the job and its replacement.
#[must_use]
pub fn unit_of(task: &str) -> &str {
    match task.match_indices('.').nth(1) {
        Some((at, _)) => &task[..at],
        None => task,
    }
}
