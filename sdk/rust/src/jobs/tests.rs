//! Jobs on the machine itself: what is launched, tried again, given up and removed.

use super::*;
use crate::testing::{Call, Harness, launched, offer, status};
use crate::{Config, Scheduler};

/// Runs the jobs that its configuration names, and removes or adds what requests say.
struct Names {
    jobs: Jobs,
}

fn job(name: &str) -> Job {
    let job = Job::new(name, TaskSpec::shell("true").cpus(1.0)).back_off_ms(100, 400);
    if name.starts_with("service") { job.keep_running() } else { job.retries(2) }
}

impl Scheduler for Names {
    fn init(config: &Config) -> Result<Self, Error> {
        let names = config.get("names").unwrap_or_default();
        Ok(Self { jobs: Jobs::load(names.split_whitespace().map(job))? })
    }

    fn handle(&mut self, turn: &mut Turn, event: Event) -> Result<(), Error> {
        self.jobs.handle(turn, &event)?;
        match event {
            Event::Http(request) if request.method == "DELETE" => self.jobs.remove(request.path.trim_matches('/')),
            Event::Http(request) => self.jobs.add(job(request.path.trim_matches('/')))?,
            Event::ConfigChanged(config) => {
                self.jobs.set(config.get("names").unwrap_or_default().split_whitespace().map(job))?;
            }
            _ => {}
        }
        Ok(())
    }

    fn end_turn(&mut self, turn: &mut Turn) -> Result<(), Error> {
        self.jobs.end_turn(turn)
    }
}

fn harness(names: &str) -> Harness<Names> {
    Harness::new(&[("names", names)]).unwrap()
}

fn ids(calls: &[Call]) -> Vec<String> {
    launched(calls).into_iter().map(|task| task.task).collect()
}

fn offers(harness: &mut Harness<Names>, cpus: f64) -> Vec<String> {
    ids(&harness.turn([Event::Offers(vec![offer(1, cpus, 4096)])]).unwrap())
}

fn update(harness: &mut Harness<Names>, task: &str, state: TaskState) -> Vec<Call> {
    harness.turn([Event::Update(status(task, state))]).unwrap()
}

/// Turns until the timer is due; what is asked for then.
fn timer(harness: &mut Harness<Names>, after_ms: u64) -> Vec<Call> {
    harness.pass(after_ms);
    let fired = crate::event::TimerFired { id: TIMER.to_owned(), due_ms: 0 };
    harness.turn([Event::Timer(fired)]).unwrap()
}

#[test]
fn jobs_are_launched_in_their_order_as_far_as_there_is_room() {
    let mut harness = harness("b a c");
    assert_eq!(offers(&mut harness, 2.0), ["b.1", "a.1"]);
    assert_eq!(offers(&mut harness, 2.0), ["c.1"]);
    let calls = harness.turn([Event::Offers(vec![offer(2, 9.0, 4096)])]).unwrap();
    assert_eq!(calls.len(), 1, "all are launched and offers suppressed before: {calls:?}");
    assert!(matches!(calls[0], Call::Decline { .. }));
    for task in ["a.1", "b.1", "c.1"] {
        update(&mut harness, task, TaskState::Running);
        assert_eq!(update(&mut harness, task, TaskState::Finished), []);
    }
    let jobs = Jobs::load(["a", "b", "c"].map(job)).unwrap();
    assert_eq!(jobs.counts(), Counts { finished: 3, ..Counts::default() });
}

#[test]
fn offers_are_suppressed_while_nothing_waits() {
    let mut harness = harness("a");
    let calls = harness.turn([Event::Offers(vec![offer(1, 1.0, 4096)])]).unwrap();
    assert!(matches!(calls[..], [Call::Accept { .. }, Call::Suppress]), "{calls:?}");
    let calls = update(&mut harness, "a.1", TaskState::Failed);
    assert_eq!(calls, [Call::SetTimer(TIMER.to_owned(), 100)], "the pause");
    assert_eq!(timer(&mut harness, 100), [Call::Revive]);
    assert_eq!(offers(&mut harness, 1.0), ["a.2"]);
}

#[test]
fn failures_are_tried_again_with_longer_pauses_until_the_job_is_given_up() {
    let mut harness = harness("a");
    for (launch, pause) in [(1, Some(100)), (2, Some(200)), (3, None)] {
        assert_eq!(offers(&mut harness, 1.0), [format!("a.{launch}")]);
        let calls = update(&mut harness, &format!("a.{launch}"), TaskState::Failed);
        assert_eq!(calls, pause.map(|ms| Call::SetTimer(TIMER.to_owned(), ms)).into_iter().collect::<Vec<_>>());
        assert_eq!(offers(&mut harness, 1.0), [""; 0], "it pauses or is given up");
        if let Some(pause) = pause {
            timer(&mut harness, pause);
        }
    }
    let jobs = Jobs::load([job("a")]).unwrap();
    assert_eq!(jobs.counts(), Counts { failed: 1, ..Counts::default() });
    assert_eq!(jobs.get("a").unwrap().ended, "TASK_FAILED");
}

#[test]
fn what_ends_from_outside_is_tried_again_for_ever() {
    let mut harness = harness("a");
    for launch in 1..=9 {
        assert_eq!(offers(&mut harness, 1.0), [format!("a.{launch}")]);
        let ends = [TaskState::Dropped, TaskState::Gone, TaskState::Killed][launch % 3];
        update(&mut harness, &format!("a.{launch}"), ends);
        timer(&mut harness, 400);
    }
}

#[test]
fn a_wrong_description_is_not_tried_again_and_services_always_are() {
    let mut harness = harness("a service");
    assert_eq!(offers(&mut harness, 2.0), ["a.1", "service.1"]);
    update(&mut harness, "a.1", TaskState::Error);
    for (launch, end) in (1..).zip([TaskState::Finished, TaskState::Failed, TaskState::Failed, TaskState::Failed]) {
        update(&mut harness, &format!("service.{launch}"), end);
        timer(&mut harness, 400);
        assert_eq!(offers(&mut harness, 2.0), [format!("service.{}", launch + 1)]);
    }
}

#[test]
fn a_rebuilt_instance_goes_on_where_the_last_one_was() {
    let mut harness = harness("a b c");
    offers(&mut harness, 2.0);
    update(&mut harness, "a.1", TaskState::Failed);
    let calls = harness.restart().unwrap();
    assert!(calls.contains(&Call::Revive), "c waits: {calls:?}");
    assert_eq!(offers(&mut harness, 9.0), ["c.1"]);
    update(&mut harness, "b.7", TaskState::Failed);
    update(&mut harness, "nobody's.1", TaskState::Failed);
    update(&mut harness, "b.1", TaskState::Finished);
    timer(&mut harness, 100);
    assert_eq!(offers(&mut harness, 9.0), ["a.2"]);
}

#[test]
fn what_is_not_wanted_any_more_is_killed_and_its_task_ids_are_not_used_again() {
    let mut harness = harness("a b");
    offers(&mut harness, 2.0);
    let (_, calls) = harness.request("DELETE", "/a", b"").unwrap();
    assert_eq!(calls, [Call::Kill("a.1".to_owned())]);
    update(&mut harness, "a.1", TaskState::Killed);
    assert!(!harness.state().contains_key("jobs/by-name/a"));
    harness.request("POST", "/a", b"").unwrap();
    assert_eq!(offers(&mut harness, 2.0), ["a.2"]);
    // Wanted again while it is being killed.
    harness.request("DELETE", "/a", b"").unwrap();
    harness.request("POST", "/a", b"").unwrap();
    update(&mut harness, "a.2", TaskState::Killed);
    timer(&mut harness, 100);
    assert_eq!(offers(&mut harness, 2.0), ["a.3"]);
    // Another configuration.
    let config = Config::from(vec![("names".to_owned(), "c".to_owned())]);
    let calls = harness.turn([Event::ConfigChanged(config)]).unwrap();
    assert!(calls.contains(&Call::Kill("a.3".to_owned())) && calls.contains(&Call::Kill("b.1".to_owned())), "{calls:?}");
    harness.restart().unwrap();
    assert_eq!(offers(&mut harness, 2.0), ["c.2"], "above all that was launched by removed ones when it was named");
}

/// Wants jobs of so many cores each, and writes so many keys in each turn.
struct Sizes {
    jobs: Jobs,
    keys: usize,
}

impl Scheduler for Sizes {
    fn init(config: &Config) -> Result<Self, Error> {
        let sizes = config.get("cpus").unwrap_or_default().split_whitespace().enumerate();
        let job = |(number, cpus): (usize, &str)| {
            let spec = TaskSpec::shell("true").cpus(cpus.parse().unwrap_or(0.0));
            Job::new(format!("{number}-of-{cpus}"), spec)
        };
        Ok(Self { jobs: Jobs::load(sizes.map(job))?, keys: config.parse_or("keys", 0)? })
    }

    fn handle(&mut self, turn: &mut Turn, event: Event) -> Result<(), Error> {
        (0..self.keys).try_for_each(|key| state::set(&format!("other/{key}"), &key))?;
        self.jobs.handle(turn, &event)
    }

    fn end_turn(&mut self, turn: &mut Turn) -> Result<(), Error> {
        self.jobs.end_turn(turn)
    }
}

/// What is launched on one offer after another, and for how long each is declined.
fn rounds(sizes: &[String], keys: usize, rounds: u64) -> Vec<(Vec<String>, Option<u64>)> {
    let keys = keys.to_string();
    let mut harness = Harness::<Sizes>::new(&[("cpus", &sizes.join(" ")), ("keys", &keys)]).unwrap();
    let round = |number: u64| {
        let calls = harness.turn([Event::Offers(vec![offer(number, 4.0, 1 << 20)])]).unwrap();
        let declined = calls.iter().find_map(|call| match call {
            Call::Decline { refuse_ms, .. } => Some(*refuse_ms),
            _ => None,
        });
        (ids(&calls), declined)
    };
    (1..=rounds).map(round).collect()
}

#[test]
fn jobs_that_fit_nowhere_do_not_hold_up_those_behind_them() {
    let all = |large: &dyn Fn(usize) -> f64, count: usize| {
        let large = (0..count).map(|number| large(number).to_string());
        large.chain(["1".to_owned(), "2".to_owned()]).collect::<Vec<_>>()
    };
    // Of the same needs, however many: one of them says it for all.
    let found = rounds(&all(&|_| 64.0, 300), 0, 1);
    assert_eq!(found, [(vec!["300-of-1.1".to_owned(), "301-of-2.1".to_owned()], None)]);
    // Each of another size: where it was given up the next round goes on, and offers come again for it at once.
    let found = rounds(&all(&|number| 64.0 + number as f64, 100), 0, 2);
    let launched = vec!["100-of-1.1".to_owned(), "101-of-2.1".to_owned()];
    assert_eq!(found, [(Vec::new(), Some(0)), (launched, None)]);
    // Nor when the turn has room for the keys of two launches only.
    let found = rounds(&all(&|_| 64.0, 10), 996, 1);
    assert_eq!(found[0].0, ["10-of-1.1", "11-of-2.1"]);
    // When all were tried for nothing, that is said for a while.
    let large: Vec<String> = (0..100).map(|number| (64 + number).to_string()).collect();
    let found = rounds(&large, 0, 4);
    let declined: Vec<Option<u64>> = found.into_iter().map(|(_, declined)| declined).collect();
    assert_eq!(declined, [Some(0), Some(REFUSE_MS), Some(0), Some(REFUSE_MS)]);
}

#[test]
fn names_are_checked_and_one_spec_is_defined_once() {
    for bad in ["", ".a", "a/b", "a b", &"x".repeat(201)] {
        assert!(job(bad).check().is_err(), "{bad:?}");
    }
    let spec = TaskSpec::shell("true");
    let mut turn = Turn::new(crate::testing::turn_info(1, 0));
    let pending = ["a", "b"].map(|task| Pending::new(task, spec.clone()));
    let other = Pending::new("c", spec.clone().cpus(0.2));
    assert_eq!(spec, pending[1].spec);
    turn.place(vec![offer(1, 9.0, 999)], pending.into_iter().chain([other]), 0).unwrap();
    assert_eq!(turn.defined(), 2);
}
