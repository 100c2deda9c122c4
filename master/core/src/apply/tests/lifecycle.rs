//! Random upgrades, migrations, failures, rollbacks and merges against a model of the state that
//! instances see.

use super::batch;
use crate::testing::MemRows;
use crate::{Config, Core, VersionOutcome};
use std::collections::BTreeMap;
use tessera_types::{Digest, FrameworkId, LimitName};
use tessera_wire::v1::{self, command::Command as C, planned_operation::Operation as Planned};

const F: FrameworkId = FrameworkId(1);

type Values = BTreeMap<String, Vec<u8>>;

struct Model {
    core: Core,
    rows: MemRows,
    index: u64,
    /// What instances see.
    values: Values,
    /// What a rollback of the upgrade under way goes back to.
    before: Option<Values>,
    rolled_back: usize,
    finished: usize,
    quarantined: usize,
}

fn component(n: u8) -> Vec<u8> {
    Digest::of(&[n]).0.to_vec()
}

impl Model {
    fn new() -> Self {
        let rows = MemRows::default();
        let core = Core::load(&rows, Config::default()).unwrap();
        let mut model = Self {
            core,
            rows,
            index: 0,
            values: Values::new(),
            before: None,
            rolled_back: 0,
            finished: 0,
            quarantined: 0,
        };
        let register = C::RegisterAgent(v1::RegisterAgent {
            agent_key: "k".into(),
            description: Some(v1::AgentDescription { hostname: "h".into(), ..Default::default() }),
            ..Default::default()
        });
        // Versions 1, 1, 2, 2, … of the state; every component reads all others, odd ones migrate.
        let add = |n: u8| {
            C::AddComponent(v1::AddComponent {
                digest: component(n),
                size_bytes: 1,
                world: v1::World::Scheduler.into(),
                state: Some(v1::StateVersions {
                    writes: 1 + u32::from(n / 2),
                    reads: (1..9).collect(),
                    migrates: n % 2 == 1,
                }),
                ..Default::default()
            })
        };
        let create = C::CreateFramework(v1::CreateFramework {
            name: "n".into(),
            role: "r".into(),
            component: component(0),
            config: vec![],
            unreachable: None,
        });
        model.apply(std::iter::once(register).chain((0..8).map(add)).chain([create]).collect());
        model
    }

    fn apply(&mut self, commands: Vec<C>) {
        self.index += 1;
        let applied = self.core.apply(self.index, 1, &batch(commands), &self.rows).unwrap();
        self.rows.write(applied.rows);
        assert_eq!(self.core.check(), Ok(()), "entry {}", self.index);
        assert_eq!(self.core.check_rows(&self.rows), Ok(()), "entry {}", self.index);
    }

    /// What instances see, through pages of a few.
    fn seen(&self) -> Values {
        let mut seen = Values::new();
        loop {
            let last = seen.keys().next_back().cloned();
            let page = self.core.state_page(F, last.as_deref(), 3, &self.rows).unwrap();
            if page.is_empty() {
                return seen;
            }
            seen.extend(page.into_iter().map(|write| (write.key, write.value.unwrap())));
        }
    }

    /// A turn with writes of random keys; with an operation, it ends a trial.
    fn turn(&mut self, random: &mut impl FnMut(u64) -> u64) -> C {
        let view = self.core.framework(F).unwrap();
        let mut writes: BTreeMap<String, Option<Vec<u8>>> = BTreeMap::new();
        for _ in 0..random(5) {
            let value = (random(3) > 0).then(|| vec![7; usize::try_from(random(20)).unwrap()]);
            writes.insert(format!("k{}", random(12)), value);
        }
        for (key, value) in &writes {
            match value {
                Some(value) => self.values.insert(key.clone(), value.clone()),
                None => self.values.remove(key),
            };
        }
        let migrating = view.upgrade.as_ref().is_some_and(|upgrade| upgrade.migrating);
        let done = migrating && random(3) == 0;
        let operates = !migrating && random(3) == 0;
        if operates && self.before.take().is_some() {
            self.finished += 1;
        }
        let suppress = v1::PlannedOperation { operation: Some(Planned::Suppress(true)) };
        C::CommitTurn(v1::CommitTurn {
            framework: F.0,
            epoch: view.epoch.0,
            number: view.last_turn.0 + 1,
            turn_hash: vec![0; 32],
            operations: if operates { vec![suppress] } else { vec![] },
            writes: writes.into_iter().map(|(key, value)| v1::KeyWrite { key, value }).collect(),
            migration: migrating.then_some(v1::MigrationStep { done }),
            ..Default::default()
        })
    }

    fn roll_back(&mut self, failed_version: u64) -> C {
        if let Some(before) = self.before.take() {
            self.values = before;
            self.rolled_back += 1;
        }
        C::RollBackFramework(v1::RollBackFramework {
            framework: F.0,
            failed_version,
            reason: "it was asked for".into(),
            ..Default::default()
        })
    }

    fn step(&mut self, random: &mut impl FnMut(u64) -> u64) {
        let view = self.core.framework(F).unwrap();
        let version = view.versions.last().unwrap().version;
        let place = |epoch: u64| {
            C::PlaceScheduler(v1::PlaceScheduler { framework: F.0, agent: 1, epoch })
        };
        let commands = match random(12) {
            0 if view.upgrade.is_none() && !view.merging => {
                let next = component(u8::try_from(random(8)).unwrap());
                if next != view.component.0 {
                    self.before = Some(self.values.clone());
                }
                vec![C::UpgradeFramework(v1::UpgradeFramework {
                    framework: F.0,
                    component: next,
                })]
            }
            1 if view.upgrade.is_some() => vec![self.roll_back(version)],
            2 if view.upgrade.is_some() && random(2) == 0 => vec![self.roll_back(0)],
            // Stale: the version that failed is not the one in force.
            3 => vec![C::RollBackFramework(v1::RollBackFramework {
                framework: F.0,
                failed_version: version + 1,
                ..Default::default()
            })],
            4 => vec![place(view.epoch.0)],
            // Now and then enough of them for a quarantine.
            5 => {
                let failed = C::RecordFailure(v1::RecordFailure {
                    framework: F.0,
                    epoch: view.epoch.0,
                    reason: "TRAPPED".into(),
                    guest: true,
                    ..Default::default()
                });
                vec![failed; usize::try_from(1 + random(6)).unwrap()]
            }
            6 | 7 => vec![C::ReleaseFramework(v1::ReleaseFramework { framework: F.0 })],
            8 => vec![C::MergeState(v1::MergeState { framework: F.0 })],
            // A merge in the entry of the turn that makes it necessary.
            9 => vec![self.turn(random), C::MergeState(v1::MergeState { framework: F.0 })],
            _ => vec![self.turn(random)],
        };
        self.apply(commands);
        self.quarantined += usize::from(self.core.framework(F).unwrap().quarantine.is_some());
    }
}

#[test]
fn random_lifecycles_keep_the_state_that_they_promise() {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let mut model = Model::new();
    for step in 0..3_000 {
        model.step(&mut random);
        assert_eq!(model.seen(), model.values, "step {step}");
        if step % 50 == 0 {
            let again = Core::load(&model.rows, Config::default()).unwrap();
            assert_eq!(model.core.diff(&again), None, "step {step}");
        }
    }
    let Model { rolled_back, finished, quarantined, .. } = model;
    let counts = (rolled_back, finished, quarantined);
    assert!(rolled_back > 20 && finished > 20 && quarantined > 20, "no idle run: {counts:?}");
    let view = model.core.framework(F).unwrap();
    assert!(view.versions.len() == 16, "old versions were dropped");
    assert!(view.versions.iter().any(|v| matches!(v.outcome, VersionOutcome::Failed(_))));
}

#[test]
fn the_rule_that_quarantines_is_named_and_its_limit_counts() {
    // Failures in a row and per window, and after how many failures which rule holds.
    let cases: [(u64, u64, usize, LimitName); 3] = [
        (5, 20, 5, LimitName::Failures),
        (9, 3, 3, LimitName::FailuresPerWindow),
        (1, 1, 1, LimitName::Failures),
    ];
    for (failures, per_window, expected, rule) in cases {
        let mut model = Model::new();
        let set = [(LimitName::Failures, failures), (LimitName::FailuresPerWindow, per_window)];
        model.apply(vec![C::SetLimits(v1::SetLimits {
            role: "r".into(),
            set: set.into_iter().map(Into::into).collect(),
            unset: vec![],
            expected: None,
        })]);
        for n in 1..=expected {
            let view = model.core.framework(F).unwrap();
            assert_eq!(view.quarantine, None, "after {} failures", n - 1);
            model.apply(vec![C::RecordFailure(v1::RecordFailure {
                framework: F.0,
                epoch: view.epoch.0,
                reason: "TRAPPED".into(),
                guest: true,
                ..Default::default()
            })]);
        }
        let view = model.core.framework(F).unwrap();
        assert_eq!(view.quarantine.map(|quarantine| quarantine.rule), Some(rule.to_string()));
    }
}
