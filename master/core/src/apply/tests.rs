//! Tests of applying: golden bytes, hostile commands, and random ones against the self-check.

mod lifecycle;
mod limits;
mod numbered;
mod repeats;
mod roles;
mod version;

use super::*;
use crate::testing::MemRows;
use tessera_wire::v1::command::Command as C;

fn batch(commands: Vec<C>) -> Vec<u8> {
    let commands = commands.into_iter().enumerate().map(|(n, command)| v1::Command {
        ticket: n as u64 + 1,
        origin: Some(v1::Origin { principal: "admin".into(), ..v1::Origin::default() }),
        command: Some(command),
    });
    v1::CommandBatch { version: 1, time_ms: 5, commands: commands.collect() }.encode_to_vec()
}

fn results(applied: &Applied) -> Vec<CommandResult> {
    let done = applied.effects.iter().filter_map(|effect| match effect {
        Effect::Done { result, .. } => Some(result.clone()),
        _ => None,
    });
    done.collect()
}

/// Empty commands, one of each kind: what a hostile or broken leader could send.
fn one_of_each() -> Vec<C> {
    vec![
        C::InitCluster(v1::InitCluster::default()),
        C::RegisterAgent(v1::RegisterAgent::default()),
        C::MarkUnreachable(v1::MarkUnreachable::default()),
        C::ReconcileAgent(v1::ReconcileAgent::default()),
        C::UpdateStatuses(v1::UpdateStatuses::default()),
        C::AddComponent(v1::AddComponent::default()),
        C::RemoveComponent(v1::RemoveComponent::default()),
        C::CreateFramework(v1::CreateFramework::default()),
        C::RemoveFramework(v1::RemoveFramework::default()),
        C::PlaceScheduler(v1::PlaceScheduler::default()),
        C::CommitTurn(v1::CommitTurn::default()),
        C::KillTask(v1::KillTask::default()),
        C::RecordFailure(v1::RecordFailure::default()),
        C::SetLimits(v1::SetLimits::default()),
        C::UpgradeFramework(v1::UpgradeFramework::default()),
        C::RollBackFramework(v1::RollBackFramework::default()),
        C::SetConfig(v1::SetConfig::default()),
        C::ReleaseFramework(v1::ReleaseFramework::default()),
        C::MergeState(v1::MergeState::default()),
        C::SetAgentMode(v1::SetAgentMode::default()),
        C::EndDrain(v1::EndDrain::default()),
        C::MarkGone(v1::MarkGone::default()),
        C::SetMaintenance(v1::SetMaintenance::default()),
        C::GiveUpTasks(v1::GiveUpTasks::default()),
        C::HoldExpiry(v1::HoldExpiry::default()),
        C::RefuseBoot(v1::RefuseBoot::default()),
        C::SetClusterVersion(v1::SetClusterVersion::default()),
        C::OpenSession(v1::OpenSession::default()),
        C::SetRole(v1::SetRole::default()),
        C::PreemptTasks(v1::PreemptTasks::default()),
    ]
}

#[test]
fn an_entry_has_these_bytes() {
    let place = v1::PlaceScheduler { framework: 1, agent: 2, epoch: 3 };
    let bytes: String =
        batch(vec![C::PlaceScheduler(place)]).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(bytes, "080110051a13080112070a0561646d696e5a06080110021803");
}

#[test]
fn empty_commands_are_refused_and_change_only_time_and_index() {
    let mut state = State::default();
    let rows = MemRows::default();
    let applied = apply(&mut state, 9, 1, &batch(one_of_each()), &rows).unwrap();
    assert_eq!(results(&applied).len(), one_of_each().len());
    for (command, result) in one_of_each().iter().zip(results(&applied)) {
        let refused = matches!(
            result,
            CommandResult::Refused(_)
                | CommandResult::Turn(tessera_types::TurnOutcome::Refused(_))
        );
        assert!(refused, "{command:?}: {result:?}");
    }
    let meta = crate::state::Meta { time_ms: 5, index: 9, ..crate::state::Meta::default() };
    assert_eq!(state, State { meta, ..State::default() });
    assert_eq!(applied.rows.len(), 1, "only the row of counters");
}

#[test]
fn entries_that_are_no_batches_or_newer_stop_the_replica() {
    let rows = MemRows::default();
    let mut state = State::default();
    let error = apply(&mut state, 1, 1, &[0xff; 9], &rows).unwrap_err();
    assert!(matches!(error, ApplyError::Malformed { index: 1, .. }), "{error}");
    let newer = v1::CommandBatch { version: 2, ..v1::CommandBatch::default() }.encode_to_vec();
    let error = apply(&mut state, 2, 1, &newer, &rows).unwrap_err();
    assert_eq!(error, ApplyError::NewerVersion { index: 2, found: 2 });
    assert_eq!(state, State::default());
}

#[test]
fn time_never_goes_back() {
    let mut state = State::default();
    state.meta.time_ms = 100;
    let rows = MemRows::default();
    let init = C::InitCluster(v1::InitCluster { cluster: "c".into() });
    apply(&mut state, 1, 1, &batch(vec![init]), &rows).unwrap();
    assert_eq!(state.meta.time_ms, 100);
}

/// Any mixture of half-right commands leaves a state that passes the check and loads again.
#[test]
fn mutated_commands_never_break_the_state() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let mut rows = MemRows::default();
    let mut core = crate::Core::load(&rows, crate::Config::default()).unwrap();
    core.state.meta.cluster_version = crate::CLUSTER_VERSION;
    let (mut live, mut executors, mut groups, mut drained) = (0, 0, 0, 0);
    for index in 1..2_000_u64 {
        let known = core.state.frameworks.iter();
        let known: Vec<_> = known.map(|(id, f)| (id.0, f.epoch.0, f.next_turn().0)).collect();
        let commands = (0..=random(3)).map(|_| random_command(&mut random, &known)).collect();
        let applied = core.apply(index, 1, &batch(commands), &rows).unwrap();
        rows.write(applied.rows);
        if index % 50 == 0 {
            let again = crate::Core::load(&rows, crate::Config::default()).unwrap();
            assert_eq!(core.diff(&again), None, "entry {index}");
        }
        assert_eq!(core.check(), Ok(()), "entry {index}");
        live += core.counts().tasks_live;
        drained += core.state.agents.values().filter(|agent| agent.drain.is_some()).count();
        executors += core.state.agents.values().map(|agent| agent.executors.len()).sum::<usize>();
        let tasks = core.state.frameworks.values().flat_map(|framework| framework.tasks.values());
        groups += tasks.filter(|task| task.group != 0 && !task.state.is_terminal()).count();
    }
    assert!(live > 0 && executors > 0 && groups > 0, "it idled: {live}, {executors}, {groups}");
    let gone = core.state.gone.len();
    assert!(drained > 0 && gone > 0, "agents were left alone: {drained}, {gone}");
}

fn gpus_of(count: u64) -> Vec<v1::ResourceItem> {
    let amount_milli = i64::try_from(count).unwrap() * 1000;
    (count > 0).then(|| v1::ResourceItem { name: "gpus".into(), amount_milli }).into_iter().collect()
}

/// A command for one of these frameworks, with its epoch and next turn, or for none.
fn random_command(random: &mut impl FnMut(u64) -> u64, known: &[(u64, u64, u64)]) -> C {
    let total = |n: i64, gpus: u64| Some(v1::Resources { cpus_milli: n, mem_mib: n, disk_mib: 0, items: gpus_of(gpus) });
    let any = usize::try_from(random(1 + known.len() as u64)).unwrap();
    let (framework, epoch, number) = known.get(any).copied().unwrap_or((1, 0, 1));
    let agent = 1 + random(3);
    let task = format!("t{}", random(40));
    match random(14) {
        0 => C::RegisterAgent(v1::RegisterAgent {
            agent: 0,
            agent_key: format!("k{}", random(9)),
            boot: format!("b{}", random(3)),
            description: Some(v1::AgentDescription {
                hostname: "h".into(),
                total: total(1_000 + i64::try_from(random(1_000)).unwrap(), random(3)),
                ..v1::AgentDescription::default()
            }),
        }),
        1 if random(4) == 0 => C::MarkUnreachable(v1::MarkUnreachable { agent }),
        1 if random(2) == 0 => C::AddComponent(v1::AddComponent {
            digest: vec![2; 32],
            size_bytes: 1,
            world: v1::World::Executor.into(),
            ..Default::default()
        }),
        1 => C::AddComponent(v1::AddComponent {
            digest: vec![1; 32],
            size_bytes: 1,
            world: v1::World::Scheduler.into(), ..Default::default() }),
        2 if random(4) == 0 => C::RemoveFramework(v1::RemoveFramework { framework }),
        2 => C::CreateFramework(v1::CreateFramework {
            name: format!("n{}", random(3)),
            role: ["r", "r/x", "r/x/y"][usize::try_from(random(3)).unwrap()].into(),
            component: vec![1; 32],
            config: vec![],
            unreachable: None,
        }),
        3 => C::PlaceScheduler(v1::PlaceScheduler { framework, agent, epoch: random(2) }),
        4 if random(3) == 0 => C::SetRole(v1::SetRole {
            role: ["r", "r/x", "q"][usize::try_from(random(3)).unwrap()].into(),
            limit: Some(v1::Amounts { amounts: vec![v1::Amount { kind: "cpus".into(), amount: i64::try_from(random(900)).unwrap() }] }),
            weight_milli: Some(u32::try_from(random(3)).unwrap()),
            ..Default::default()
        }),
        4 if random(3) == 0 => C::PreemptTasks(v1::PreemptTasks {
            tasks: vec![v1::preempt_tasks::Task { framework, task }],
            role: "r".into(),
        }),
        4 => C::KillTask(v1::KillTask { framework, task, grace_ms: None }),
        5 => C::ReconcileAgent(v1::ReconcileAgent {
            agent,
            tasks: vec![v1::ReconciledTask {
                framework,
                task,
                state: i32::try_from(random(15)).unwrap(),
                attempt: 1,
            }],
        }),
        6..=8 => C::UpdateStatuses(v1::UpdateStatuses {
            agent,
            statuses: vec![v1::AgentStatus {
                framework,
                sequence: random(6),
                status: Some(v1::TaskStatus {
                    task,
                    state: 1 + i32::try_from(random(14)).unwrap(),
                    attempt: 1,
                    ..v1::TaskStatus::default()
                }),
            }],
        }),
        9 => random_upkeep(random, agent, framework),
        _ => {
            let epoch = if random(8) == 0 { random(3) } else { epoch };
            let number = if random(8) == 0 { random(60) } else { number };
            random_turn(random, (framework, epoch, number), agent, task)
        }
    }
}

/// A command of operators or of the clock.
fn random_upkeep(random: &mut impl FnMut(u64) -> u64, agent: u64, framework: u64) -> C {
    match random(12) {
        0 => C::MarkGone(v1::MarkGone { agent }),
        1 | 2 => C::EndDrain(v1::EndDrain { agent }),
        3 | 4 => C::GiveUpTasks(v1::GiveUpTasks { agent, framework }),
        5 | 6 => C::MarkUnreachable(v1::MarkUnreachable { agent }),
        7 if random(2) == 0 => {
            C::RefuseBoot(v1::RefuseBoot { agent, boot: format!("b{}", random(3)) })
        }
        7 => C::SetMaintenance(v1::SetMaintenance {
            agent,
            maintenance: (random(2) == 0).then(|| v1::Maintenance { start_ms: 9, end_ms: 10 }),
        }),
        8 => C::SetConfig(v1::SetConfig {
            framework,
            unreachable: Some(v1::UnreachablePolicy {
                replace_after_ms: random(2),
                keep_first: random(2) == 0,
            }),
            ..v1::SetConfig::default()
        }),
        _ => C::SetAgentMode(v1::SetAgentMode {
            agent,
            deactivated: random(3) == 0,
            drain_ms: (random(3) == 0).then_some(0),
        }),
    }
}

fn random_turn(
    random: &mut impl FnMut(u64) -> u64,
    (framework, epoch, number): (u64, u64, u64),
    agent: u64,
    task: String,
) -> C {
    use tessera_wire::v1::planned_operation::Operation as Planned;
    let body = match random(3) {
        0 => v1::task_spec::Body::Shell("true".into()),
        kind => v1::task_spec::Body::Executor(v1::ExecutorTask {
            executor: format!("e{}", random(2)),
            component: vec![2; 32],
            resources: Some(v1::Resources { cpus_milli: 10, mem_mib: 16, ..Default::default() }),
            config: vec![v1::Pair { key: "k".into(), value: kind.to_string() }],
            data: vec![],
        }),
    };
    let spec = v1::TaskSpec {
        body: Some(body),
        resources: Some(v1::Resources { cpus_milli: 200, mem_mib: 200, disk_mib: 0, items: gpus_of(random(2)) }),
        revocable: random(2) == 0,
        ..v1::TaskSpec::default()
    }
    .encode_to_vec();
    let digest = Digest::of(&spec).0.to_vec();
    let gang = u32::try_from(random(2)).unwrap();
    let launches = (0..=random(3)).map(|_| v1::PlannedOperation {
        operation: Some(Planned::Launch(v1::PlannedLaunch {
            launch: Some(v1::Launch {
                task: format!("t{}", random(40)),
                spec: digest.clone(),
                ..v1::Launch::default()
            }),
            agent: if random(4) == 0 { 1 + random(3) } else { agent },
            group: u32::try_from(random(3)).unwrap(),
            gang,
            ..v1::PlannedLaunch::default()
        })),
    });
    let mut operations: Vec<_> = launches.collect();
    let executor = format!("e{}", random(4));
    operations.push(v1::PlannedOperation {
        operation: Some(Planned::EndExecutor(v1::PlannedExecutorEnd { agent, executor })),
    });
    operations.push(v1::PlannedOperation {
        operation: Some(Planned::SetTimer(v1::TimerEvent { id: task.clone(), due_ms: random(50) })),
    });
    C::CommitTurn(v1::CommitTurn {
        framework,
        epoch,
        number,
        turn_hash: vec![0; 32],
        consumed: vec![v1::Consumed {
            consumed: Some(v1::consumed::Consumed::Update(v1::ConsumedUpdate {
                task: task.clone(),
                sequence: random(5),
            })),
        }],
        operations,
        writes: vec![v1::KeyWrite { key: "k".into(), value: Some(vec![0; 3]) }],
        specs: vec![v1::SpecBytes { digest, encoded: spec }], ..Default::default() })
}
