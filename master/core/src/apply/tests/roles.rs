//! What is said of roles: stored, bounded, taken back, and kept by launches.

use super::{batch, results};
use crate::effect::CommandResult;
use crate::leader::preempt::{Shortage, victims};
use crate::limits::ROLES_MAX;
use crate::testing::MemRows;
use crate::{Config, Core};
use prost::Message as _;
use tessera_types::{AgentId, Digest, FrameworkId, Quantities, Reason, Resources};
use tessera_wire::v1::planned_operation::Operation as Planned;
use tessera_wire::v1::{self, command::Command as C};

fn weight(role: String, weight_milli: u32) -> C {
    C::SetRole(v1::SetRole { role, weight_milli: Some(weight_milli), ..Default::default() })
}

#[test]
fn a_role_is_stored_with_the_entry_that_changed_it_and_goes_when_nothing_is_said() {
    let mut rows = MemRows::default();
    let mut core = Core::load(&rows, Config::default()).unwrap();
    for (index, milli, version) in [(7, 2_000, 7), (8, 3_000, 8), (9, 1_000, 0)] {
        let applied = core.apply(index, 1, &batch(vec![weight("a/b".into(), milli)]), &rows).unwrap();
        assert_eq!(results(&applied), [CommandResult::Done]);
        rows.write(applied.rows);
        let policy = core.role(&"a/b".parse().unwrap()).policy;
        assert_eq!((policy.weight_milli, policy.version), (milli, version));
        assert_eq!(core.diff(&Core::load(&rows, Config::default()).unwrap()), None);
        assert_eq!(core.check(), Ok(()));
    }
    assert!(core.state.roles.is_empty());
}

#[test]
fn so_many_roles_and_no_more() {
    let rows = MemRows::default();
    let mut core = Core::load(&rows, Config::default()).unwrap();
    let many = (0..ROLES_MAX).map(|n| weight(format!("r{n}"), 2_000)).collect();
    let applied = core.apply(1, 1, &batch(many), &rows).unwrap();
    assert!(results(&applied).iter().all(|result| *result == CommandResult::Done));
    let more = vec![weight("one-more".into(), 2_000), weight("r1".into(), 3_000), weight("other".into(), 1_000)];
    let applied = core.apply(2, 1, &batch(more), &rows).unwrap();
    let [CommandResult::Refused(refused), CommandResult::Done, CommandResult::Done] = &results(&applied)[..] else {
        panic!("{:?}", results(&applied));
    };
    assert!(refused.to_string().contains("`tessera role rm`"), "{refused}");
}

/// A cluster of one agent with 8 CPUs, and the framework `f` in role `a/b`, placed there.
struct Site {
    rows: MemRows,
    core: Core,
    index: u64,
    turns: u64,
}

/// What is launched: task, CPUs, gang, revocable.
type Launch<'a> = (&'a str, i64, u32, bool);

impl Site {
    fn new() -> Self {
        let rows = MemRows::default();
        let mut core = Core::load(&rows, Config::default()).unwrap();
        core.state.meta.cluster_version = crate::CLUSTER_VERSION;
        let mut site = Self { rows, core, index: 0, turns: 0 };
        let total = Some(v1::Resources { cpus_milli: 8_000, mem_mib: 8_000, ..Default::default() });
        let agent = v1::AgentDescription { hostname: "h".into(), total, ..Default::default() };
        site.apply(vec![
            C::AddComponent(v1::AddComponent {
                digest: vec![1; 32],
                size_bytes: 1,
                world: v1::World::Scheduler.into(),
                ..Default::default()
            }),
            C::RegisterAgent(v1::RegisterAgent {
                agent_key: "k".into(),
                boot: "b".into(),
                description: Some(agent),
                ..Default::default()
            }),
            C::CreateFramework(v1::CreateFramework {
                name: "f".into(),
                role: "a/b".into(),
                component: vec![1; 32],
                ..Default::default()
            }),
            C::PlaceScheduler(v1::PlaceScheduler { framework: 1, agent: 1, epoch: 0 }),
        ]);
        site
    }

    fn apply(&mut self, commands: Vec<C>) -> Vec<CommandResult> {
        self.index += 1;
        let applied = self.core.apply(self.index, 1, &batch(commands), &self.rows).unwrap();
        let results = results(&applied);
        self.rows.write(applied.rows);
        assert_eq!(self.core.check(), Ok(()));
        assert_eq!(self.core.diff(&Core::load(&self.rows, Config::default()).unwrap()), None);
        results
    }

    fn limit(&mut self, role: &str, cpus: i64) {
        let amounts = vec![v1::Amount { kind: "cpus".into(), amount: cpus }];
        let limit = Some(v1::Amounts { amounts });
        let set = C::SetRole(v1::SetRole { role: role.into(), limit, ..Default::default() });
        assert_eq!(self.apply(vec![set]), [CommandResult::Done]);
    }

    /// State and reason of each task after a turn that launches them.
    fn launch(&mut self, launches: &[Launch<'_>]) -> Vec<String> {
        let mut specs = Vec::new();
        let mut operations = Vec::new();
        for (task, cpus_milli, gang, revocable) in launches {
            let spec = v1::TaskSpec {
                body: Some(v1::task_spec::Body::Shell("true".into())),
                resources: Some(v1::Resources { cpus_milli: *cpus_milli, mem_mib: 10, ..Default::default() }),
                revocable: *revocable,
                ..Default::default()
            };
            let encoded = spec.encode_to_vec();
            let digest = Digest::of(&encoded).0.to_vec();
            specs.push(v1::SpecBytes { digest: digest.clone(), encoded });
            operations.push(v1::PlannedOperation {
                operation: Some(Planned::Launch(v1::PlannedLaunch {
                    launch: Some(v1::Launch { task: (*task).into(), spec: digest, ..Default::default() }),
                    agent: 1,
                    gang: *gang,
                    ..Default::default()
                })),
            });
        }
        self.turns += 1;
        self.apply(vec![C::CommitTurn(v1::CommitTurn {
            framework: 1,
            epoch: 1,
            number: self.turns,
            turn_hash: vec![0; 32],
            operations,
            specs,
            ..Default::default()
        })]);
        launches.iter().map(|(task, ..)| self.show(task)).collect()
    }

    fn show(&self, task: &str) -> String {
        let task = self.core.task(FrameworkId(1), &task.parse().unwrap(), &self.rows).unwrap().unwrap();
        format!("{} {}", task.state, task.status.reason.code()).trim_end().to_owned()
    }
}

#[test]
fn no_launch_passes_a_quota_limit_of_its_role_or_of_one_above() {
    let mut site = Site::new();
    site.limit("a", 2_500);
    let quota = "TASK_DROPPED QUOTA";
    let gang = "TASK_DROPPED GANG";
    let staging = "TASK_STAGING";
    assert_eq!(site.launch(&[("t1", 1_000, 0, false), ("t2", 2_000, 0, false)]), [staging, quota]);
    // All of a gang, or nothing; and each counts those before it.
    assert_eq!(site.launch(&[("t3", 1_000, 1, false), ("t4", 1_000, 1, false)]), [gang, quota]);
    // What may be taken back is outside of quota.
    assert_eq!(site.launch(&[("t5", 4_000, 0, true), ("t6", 1_500, 0, false)]), [staging, staging]);
    let role = site.core.role(&"a".parse().unwrap());
    assert_eq!((role.used.amount("cpus"), role.revocable.amount("cpus")), (2_500, 4_000));
    // One that is lowered ends nothing; nothing comes on top of it.
    site.limit("a/b", 100);
    assert_eq!(site.launch(&[("t7", 10, 0, false)]), [quota]);
    assert_eq!(site.show("t6"), staging);
    let kill = |task: &str| v1::preempt_tasks::Task { framework: 1, task: task.into() };
    let tasks = vec![kill("t5"), kill("t6"), kill("t1"), kill("none")];
    site.apply(vec![C::PreemptTasks(v1::PreemptTasks { tasks, role: "q".into() })]);
    let killed = |task: &str| site.core.state.task(FrameworkId(1), &task.parse().unwrap()).unwrap().kill;
    assert_eq!(killed("t5").map(|kill| (kill.reason, kill.grace_ms)), Some((Reason::Preempted, 30_000)));
    assert_eq!((killed("t6"), killed("t1")), (None, None));
}

#[test]
fn the_youngest_revocable_tasks_make_room_as_far_as_they_help() {
    let mut site = Site::new();
    site.launch(&[("old", 1_000, 0, true), ("fixed", 1_000, 0, false)]);
    site.core.state.meta.time_ms = 50;
    site.launch(&[("young", 1_000, 0, true), ("younger", 1_000, 0, true)]);
    let victims = |site: &Site, cpus_milli: i64, gpus: i64| {
        let missing = Resources::of(Quantities { cpus_milli, ..Quantities::ZERO }).with("gpus", gpus);
        let shortage = Shortage { role: "q".into(), agent: AgentId(1), resources: missing };
        let victims = victims(&site.core.state, &shortage).into_iter();
        victims.map(|(_, task)| task.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(victims(&site, 1_500, 0), ["younger", "young"]);
    assert_eq!(victims(&site, 2_500, 0), ["younger", "young", "old"]);
    assert_eq!(victims(&site, 0, 1_000), [""; 0]);
    let tasks = vec![v1::preempt_tasks::Task { framework: 1, task: "younger".into() }];
    site.apply(vec![C::PreemptTasks(v1::PreemptTasks { tasks, role: "q".into() })]);
    assert_eq!(victims(&site, 1_000, 0), [""; 0], "what is being killed counts");
    assert_eq!(victims(&site, 1_500, 0), ["young"]);
}
