//! An executor whose tasks' data say what it is to do, in words after each other:
//!
//! - `run`: says RUNNING; `done [TEXT]`: says FINISHED with the text as data; `fail`: says FAILED;
//! - `native COMMAND`: starts a child of the task's name that runs the command; `wasm DIGEST ARGS…`
//!   likewise with a component. The task runs while its child does, ends as it ends, and is killed by
//!   stopping it. A task without a child runs until it is killed;
//! - `children N`: starts N children that sleep; the task fails with the error of the first that is refused;
//! - `count`: finishes with the number of tasks that this executor has seen, and of those that this instance
//!   has, as `{"seen": n, "instance": m}`;
//! - `write N BYTES`: writes N keys of as many bytes; finishes, or fails with the first error;
//! - `say TEXT`: sends the text to the scheduler; `timer MS`: finishes when the timer has come;
//! - `log N`, `sends N`: as many lines or messages; `grow MIB`: takes as much memory;
//! - `again N`: is called again as often, then finishes;
//! - `trap`, `loop`, `error`: fails the turn; `quit`: finishes the task and then the executor.
//!
//! A message from the scheduler is sent back with `echo: ` before it; the message `trap` traps.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tessera_sdk::executor::{ChildStatus, Event, Executor, TaskLaunch, Turn, state};
use tessera_sdk::{Config, Error, TaskSpec, TaskState, log};

/// What is remembered of a task that runs.
#[derive(Default, Serialize, Deserialize)]
struct Running {
    /// Its child, if it has one.
    child: bool,
    /// Turns in which it is still to be called again.
    again: u32,
}

struct Basic {
    tasks: BTreeMap<String, Running>,
    seen: u32,
    instance: u32,
    /// Memory that is taken and kept.
    ballast: Vec<u8>,
}

tessera_sdk::executor!(Basic);

impl Executor for Basic {
    fn init(config: &Config) -> Result<Self, Error> {
        match config.get("init") {
            Some("trap") => panic!("asked to panic in init"),
            Some("error") => return Err(Error::failed("asked to fail in init")),
            _ => {}
        }
        let tasks = state::page::<Running>("task/", None, 1_000)?;
        let name = |key: String| key.trim_start_matches("task/").to_owned();
        Ok(Self {
            tasks: tasks.into_iter().map(|(key, task)| (name(key), task)).collect(),
            seen: state::get("seen")?.unwrap_or(0),
            instance: 0,
            ballast: Vec::new(),
        })
    }

    fn handle(&mut self, turn: &mut Turn, event: Event) -> Result<(), Error> {
        match event {
            Event::Started(info, children) => {
                log::info(format!("started {} on {}", info.executor, info.hostname));
                children.into_iter().try_for_each(|child| self.on_child(turn, child))
            }
            Event::Launch(launch) => self.on_launch(turn, &launch),
            Event::LaunchGroup(launches) => {
                launches.iter().try_for_each(|launch| self.on_launch(turn, launch))
            }
            Event::Child(child) => self.on_child(turn, child),
            Event::Kill(kill) => {
                if self.tasks.get(&kill.task).is_some_and(|task| task.child) {
                    turn.status(&kill.task, TaskState::Killing, "")?;
                    return turn.stop_child(&kill.task, kill.grace_ms);
                }
                self.end(turn, &kill.task, TaskState::Killed, "")
            }
            Event::Message(data) if data == b"trap" => panic!("asked to panic by a message"),
            Event::Message(data) => turn.send([b"echo: ", data.as_slice()].concat()),
            Event::Timer(task) => self.end(turn, &task, TaskState::Finished, ""),
            Event::Again => self.on_again(turn),
            Event::Shutdown(_) => {
                log::info("shutting down");
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn number(words: &[&str], at: usize) -> usize {
    words.get(at).and_then(|word| word.parse().ok()).unwrap_or(0)
}

impl Basic {
    fn on_launch(&mut self, turn: &mut Turn, launch: &TaskLaunch) -> Result<(), Error> {
        let task = launch.task.as_str();
        self.seen += 1;
        self.instance += 1;
        state::set("seen", &self.seen)?;
        let text = String::from_utf8_lossy(launch.data()).into_owned();
        let words: Vec<&str> = text.split_whitespace().collect();
        let (word, rest) = text.split_once(' ').unwrap_or((&text, ""));
        match word {
            "run" => self.run(turn, task, Running::default())?,
            "done" => turn.end_task(task, TaskState::Finished, "", rest)?,
            "fail" => turn.end_task(task, TaskState::Failed, rest, "")?,
            "native" => self.child(turn, task, TaskSpec::shell(rest))?,
            "wasm" => {
                let args = words.iter().skip(2).copied();
                let component = words.get(1).copied().unwrap_or_default();
                self.child(turn, task, TaskSpec::wasm(component, args))?;
            }
            "children" => {
                let start = |n| turn.start_child(&format!("{task}-{n}"), TaskSpec::shell("sleep 600"));
                let refused = (0..number(&words, 1)).map(start).find_map(Result::err);
                self.outcome(turn, task, refused)?;
            }
            "count" => {
                let counts = format!("{{\"seen\": {}, \"instance\": {}}}", self.seen, self.instance);
                turn.end_task(task, TaskState::Finished, "", counts)?;
            }
            "write" => {
                let value = vec![b'x'; number(&words, 2)];
                let write = |n| state::set_bytes(&format!("{task}/{n:06}"), &value);
                let refused = (0..number(&words, 1)).map(write).find_map(Result::err);
                self.outcome(turn, task, refused)?;
            }
            "say" => {
                turn.send(rest)?;
                turn.end_task(task, TaskState::Finished, "", "")?;
            }
            "timer" => {
                turn.set_timer(task, number(&words, 1) as u64)?;
                self.run(turn, task, Running::default())?;
            }
            "log" => {
                (0..number(&words, 1)).for_each(|n| log::info(format!("line {n}")));
                turn.end_task(task, TaskState::Finished, "", "")?;
            }
            "sends" => {
                let refused = (0..number(&words, 1)).map(|_| turn.send("x")).find_map(Result::err);
                self.outcome(turn, task, refused)?;
            }
            "grow" => {
                self.ballast.resize(self.ballast.len() + (number(&words, 1) << 20), 1);
                turn.end_task(task, TaskState::Finished, "", self.ballast.len().to_string())?;
            }
            "again" => {
                let again = u32::try_from(number(&words, 1)).unwrap_or(0);
                self.run(turn, task, Running { again, child: false })?;
                turn.call_again();
            }
            "trap" => panic!("asked to panic"),
            "error" => return Err(Error::failed("asked to fail")),
            "loop" => loop {
                std::hint::black_box(self.seen);
            },
            "quit" => {
                turn.end_task(task, TaskState::Finished, "", "")?;
                turn.finish();
            }
            other => turn.end_task(task, TaskState::Error, &format!("`{other}` is nothing I do"), "")?,
        }
        Ok(())
    }

    fn run(&mut self, turn: &mut Turn, task: &str, running: Running) -> Result<(), Error> {
        state::set(&format!("task/{task}"), &running)?;
        self.tasks.insert(task.to_owned(), running);
        turn.status(task, TaskState::Running, "")
    }

    fn child(&mut self, turn: &mut Turn, task: &str, spec: TaskSpec) -> Result<(), Error> {
        turn.start_child(task, spec.cpus(0.1).mem_mib(16))?;
        self.run(turn, task, Running { child: true, again: 0 })
    }

    fn outcome(&self, turn: &mut Turn, task: &str, refused: Option<Error>) -> Result<(), Error> {
        match refused {
            None => turn.end_task(task, TaskState::Finished, "", ""),
            Some(error) => turn.end_task(task, TaskState::Failed, &error.to_string(), ""),
        }
    }

    fn on_child(&mut self, turn: &mut Turn, child: ChildStatus) -> Result<(), Error> {
        let status = child.status;
        if !status.state.is_terminal() || !self.tasks.contains_key(&child.child) {
            return Ok(());
        }
        let state = match status.state {
            TaskState::Finished | TaskState::Killed => status.state,
            _ => TaskState::Failed,
        };
        self.forget(&child.child)?;
        turn.end_task(&child.child, state, &status.describe(), status.data)
    }

    fn on_again(&mut self, turn: &mut Turn) -> Result<(), Error> {
        let waiting = self.tasks.iter_mut().find(|(_, task)| task.again > 0);
        let Some((name, task)) = waiting else { return Ok(()) };
        let name = name.clone();
        task.again -= 1;
        if task.again == 0 {
            return self.end(turn, &name, TaskState::Finished, "");
        }
        state::set(&format!("task/{name}"), task)?;
        turn.call_again();
        Ok(())
    }

    fn end(&mut self, turn: &mut Turn, task: &str, state: TaskState, message: &str) -> Result<(), Error> {
        if self.tasks.contains_key(task) {
            self.forget(task)?;
            turn.end_task(task, state, message, "")?;
        }
        Ok(())
    }

    fn forget(&mut self, task: &str) -> Result<(), Error> {
        self.tasks.remove(task);
        state::delete(&format!("task/{task}"))
    }
}
