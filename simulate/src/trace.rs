//! The trace: what happens to the simulated cluster and when, as JSON Lines.
//!
//! Invariants: a trace is read as a whole before anything is simulated; a line that breaks a rule is refused
//! with its number. Must never act.

use crate::random::random_of;
use crate::{Refused, plan::Plan};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use tessera_types::parse_duration;

/// Lines of a trace: all are in memory.
const LINES_MAX: usize = 1_000_000;
/// Times that one line happens.
const TIMES_MAX: u64 = 10_000_000;
/// Mean run time of tasks about which the trace says nothing.
pub(crate) const DEFAULT_MEAN_MS: u64 = 60_000;
/// Bytes of a task's result: what a status carries at most is less.
const RESULT_BYTES_MAX: usize = 64 << 10;

/// How an agent is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Lost {
    /// The machine is started anew: what ran on it is over.
    #[default]
    Crash,
    /// It cannot be reached, and everything on it goes on.
    Partition,
}

/// One line as it is written.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", deny_unknown_fields)]
enum Written {
    AgentsLost {
        at: String,
        #[serde(default)]
        agent: Option<usize>,
        #[serde(default)]
        count: Option<usize>,
        #[serde(default, rename = "for")]
        duration: Option<String>,
        #[serde(default)]
        how: Lost,
    },
    Request {
        at: String,
        framework: String,
        #[serde(default = "post")]
        method: String,
        path: String,
        #[serde(default)]
        body: Value,
        #[serde(default = "once")]
        times: u64,
        #[serde(default)]
        every: Option<String>,
        #[serde(default)]
        tasks: u64,
    },
    Config {
        at: String,
        framework: String,
        config: BTreeMap<String, String>,
    },
    RunTime {
        #[serde(default = "any")]
        framework: String,
        #[serde(default = "any")]
        task: String,
        #[serde(default)]
        fixed: Option<String>,
        #[serde(default)]
        uniform: Option<(String, String)>,
        #[serde(default)]
        exponential: Option<String>,
        #[serde(default)]
        failing_percent: u64,
        #[serde(default)]
        result: Option<String>,
    },
}

fn post() -> String {
    "POST".to_owned()
}

fn any() -> String {
    "*".to_owned()
}

const fn once() -> u64 {
    1
}

/// Which agents are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// This one, counted from 0.
    One(usize),
    /// So many, drawn from those that are there.
    Drawn(usize),
}

/// Something that happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Agents are lost, and come back if a time is given.
    Lose { which: Which, for_ms: Option<u64>, how: Lost },
    /// A request to a scheduler.
    Ask(Request),
    /// The configuration of a framework is replaced.
    Configure { framework: usize, config: Vec<(String, String)> },
}

/// A request to a scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// Index of the framework in the plan.
    pub(crate) framework: usize,
    pub(crate) method: String,
    path: String,
    body: String,
    /// Tasks that it asks for.
    pub(crate) tasks: u64,
}

impl Request {
    /// Path and query of the n-th, and its body.
    pub(crate) fn nth(&self, n: u64) -> (String, Option<String>, Vec<u8>) {
        let n = (n + 1).to_string();
        let target = self.path.replace("{n}", &n);
        let body = self.body.replace("{n}", &n).into_bytes();
        match target.split_once('?') {
            Some((path, query)) => (path.to_owned(), Some(query.to_owned()), body),
            None => (target, None, body),
        }
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) at_ms: u64,
    pub(crate) times: u64,
    pub(crate) every_ms: u64,
    pub(crate) what: What,
}

/// How long tasks run.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Distribution {
    Fixed(u64),
    Uniform(u64, u64),
    Exponential(u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct RunTime {
    framework: String,
    task: String,
    distribution: Distribution,
    failing_percent: u64,
    result: Vec<u8>,
}

/// How one attempt of a task goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) ms: u64,
    pub(crate) exit_code: i32,
    pub(crate) result: Vec<u8>,
}

/// The whole trace.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trace {
    pub(crate) lines: Vec<Line>,
    run_times: Vec<RunTime>,
}

/// Whether a name fits a pattern: the name itself, or a beginning and `*`.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => pattern == name,
    }
}

impl Trace {
    /// Read a trace for a plan.
    pub(crate) fn parse(text: &str, plan: &Plan) -> Result<Self, Refused> {
        let mut trace = Self::default();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if at >= LINES_MAX {
                return Err(Refused::new(format!("the trace has more than {LINES_MAX} lines")));
            }
            trace.add(line, plan).map_err(|why| {
                Refused::new(format!("line {} of the trace: {why}", at + 1))
                    .hint("`tessera sim --help` shows each kind of line; the guide says what they mean")
            })?;
        }
        Ok(trace)
    }

    fn add(&mut self, line: &str, plan: &Plan) -> Result<(), String> {
        let written: Written = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let (at, what, times, every) = match written {
            Written::AgentsLost { at, agent, count, duration, how } => {
                let which = match (agent, count) {
                    (Some(agent), None) if agent < plan.agents => Which::One(agent),
                    (None, Some(count)) if (1..=plan.agents).contains(&count) => Which::Drawn(count),
                    _ => return Err(format!("either `agent`, 0 to {}, or `count`, 1 to {}", plan.agents - 1, plan.agents)),
                };
                let for_ms = duration.as_deref().map(parse_duration).transpose()?;
                (at, What::Lose { which, for_ms, how }, 1, None)
            }
            Written::Request { at, framework, method, path, body, times, every, tasks } => {
                if !path.starts_with('/') {
                    return Err(format!("path: {path:?} does not begin with /"));
                }
                let body = match body {
                    Value::Null => String::new(),
                    Value::String(text) => text,
                    other => other.to_string(),
                };
                let framework = framework_of(&framework, plan)?;
                (at, What::Ask(Request { framework, method, path, body, tasks }), times, every)
            }
            Written::Config { at, framework, config } => {
                let framework = framework_of(&framework, plan)?;
                (at, What::Configure { framework, config: config.into_iter().collect() }, 1, None)
            }
            Written::RunTime { framework, task, fixed, uniform, exponential, failing_percent, result } => {
                let distribution = distribution(fixed, uniform, exponential)?;
                if failing_percent > 100 {
                    return Err("failing_percent: 0 to 100".to_owned());
                }
                let result = result.unwrap_or_default().into_bytes();
                if result.len() > RESULT_BYTES_MAX {
                    return Err(format!("result: at most {RESULT_BYTES_MAX} bytes"));
                }
                self.run_times.push(RunTime { framework, task, distribution, failing_percent, result });
                return Ok(());
            }
        };
        if !(1..=TIMES_MAX).contains(&times) {
            return Err(format!("times: 1 to {TIMES_MAX}"));
        }
        let every_ms = every.as_deref().map(parse_duration).transpose()?.unwrap_or(0);
        self.lines.push(Line { at_ms: parse_duration(&at)?, times, every_ms, what });
        Ok(())
    }

    /// How an attempt of a task goes: by the first line that fits, else the default.
    pub(crate) fn run(&self, seed: u64, framework: &str, task: &str, attempt: u32) -> Run {
        let mut random = random_of(seed, &["run", framework, task, &attempt.to_string()]);
        let fitting = |line: &&RunTime| fits(&line.framework, framework) && fits(&line.task, task);
        let Some(line) = self.run_times.iter().find(fitting) else {
            return Run { ms: random.exponential(DEFAULT_MEAN_MS), exit_code: 0, result: Vec::new() };
        };
        let ms = match line.distribution {
            Distribution::Fixed(ms) => ms,
            Distribution::Uniform(low, high) => random.range(low, high),
            Distribution::Exponential(mean) => random.exponential(mean),
        };
        let exit_code = i32::from(random.chance(line.failing_percent));
        let result = if exit_code == 0 { line.result.clone() } else { Vec::new() };
        Run { ms, exit_code, result }
    }
}

fn framework_of(name: &str, plan: &Plan) -> Result<usize, String> {
    let known = plan.schedulers.iter().position(|scheduler| scheduler.name.as_str() == name);
    known.ok_or_else(|| {
        let names: Vec<&str> = plan.schedulers.iter().map(|scheduler| scheduler.name.as_str()).collect();
        format!("framework: there is no {name:?}, but {}", names.join(", "))
    })
}

fn distribution(
    fixed: Option<String>,
    uniform: Option<(String, String)>,
    exponential: Option<String>,
) -> Result<Distribution, String> {
    match (fixed, uniform, exponential) {
        (Some(ms), None, None) => Ok(Distribution::Fixed(parse_duration(&ms)?)),
        (None, Some((low, high)), None) => {
            let (low, high) = (parse_duration(&low)?, parse_duration(&high)?);
            if low > high {
                return Err("uniform: the first is at most the second".to_owned());
            }
            Ok(Distribution::Uniform(low, high))
        }
        (None, None, Some(mean)) => Ok(Distribution::Exponential(parse_duration(&mean)?)),
        _ => Err("one of `fixed`, `uniform` and `exponential`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let text = r#"{"schedulers": [{"name": "web", "role": "a", "component": "a.wasm", "config": []}],
            "components": [], "agents": 10, "agent_size": {"cpus_milli": 1000, "mem_mib": 1024, "disk_mib": 0},
            "for_ms": 60000, "seed": 1, "trace": null, "faults_per_hour": 0, "json": false}"#;
        Plan::parse(text).unwrap()
    }

    #[test]
    fn every_kind_of_line_is_read() {
        let text = r#"
            # a comment
            {"event":"agents-lost","at":"1m","count":3,"for":"30s","how":"partition"}
            {"event":"agents-lost","at":"1m","agent":9}
            {"event":"request","at":"5s","framework":"web","path":"/tasks?n={n}","body":{"id":"t{n}"},"times":2,"every":"10ms","tasks":1}
            {"event":"config","at":"2m","framework":"web","config":{"a":"b"}}
            {"event":"run-time","task":"slow-*","uniform":["1m","2m"]}
            {"event":"run-time","framework":"web","fixed":"5s","failing_percent":100}
        "#;
        let trace = Trace::parse(text, &plan()).unwrap();
        assert_eq!(trace.lines.len(), 4);
        let lost = What::Lose { which: Which::Drawn(3), for_ms: Some(30_000), how: Lost::Partition };
        assert_eq!((trace.lines[0].at_ms, &trace.lines[0].what), (60_000, &lost));
        let What::Ask(request) = &trace.lines[2].what else { panic!("{:?}", trace.lines[2]) };
        let (path, query, body) = request.nth(1);
        assert_eq!((path.as_str(), query.as_deref()), ("/tasks", Some("n=2")));
        assert_eq!(String::from_utf8(body).unwrap(), r#"{"id":"t2"}"#);
        assert!((60_000..=120_000).contains(&trace.run(1, "web", "slow-1", 1).ms));
        assert_eq!(trace.run(1, "web", "x", 1), Run { ms: 5_000, exit_code: 1, result: Vec::new() });
        assert_eq!(trace.run(1, "other", "x", 1).exit_code, 0);
        assert_eq!(trace.run(1, "other", "x", 1), trace.run(1, "other", "x", 1));
        assert_ne!(trace.run(1, "other", "x", 1), trace.run(1, "other", "x", 2));
    }

    #[test]
    fn a_bad_line_is_named() {
        for (line, why) in [
            ("{", "EOF"),
            (r#"{"event":"agents-lost","at":"1m"}"#, "either `agent`"),
            (r#"{"event":"agents-lost","at":"1m","count":11}"#, "1 to 10"),
            (r#"{"event":"agents-lost","at":"soon","count":1}"#, "no duration"),
            (r#"{"event":"agents-lost","at":"1m","count":1,"colour":"red"}"#, "colour"),
            (r#"{"event":"request","at":"1m","framework":"wob","path":"/"}"#, "but web"),
            (r#"{"event":"request","at":"1m","framework":"web","path":"x"}"#, "begin with /"),
            (r#"{"event":"request","at":"1m","framework":"web","path":"/","times":0}"#, "times"),
            (r#"{"event":"run-time","fixed":"1s","exponential":"1s"}"#, "one of"),
            (r#"{"event":"run-time","uniform":["2s","1s"]}"#, "at most the second"),
            (r#"{"event":"run-time","fixed":"1s","failing_percent":101}"#, "0 to 100"),
            (r#"{"event":"weather","at":"1m"}"#, "weather"),
        ] {
            let refused = Trace::parse(&format!("\n{line}"), &plan()).unwrap_err();
            assert!(refused.error.starts_with("line 2 ") && refused.error.contains(why), "{refused:?}");
        }
    }
}
