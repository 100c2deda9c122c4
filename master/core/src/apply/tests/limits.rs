//! Limits of one turn, and bounds of a cluster: what is just within them, and what passes them by one.

use super::{batch, results};
use crate::commands::validate_turn;
use crate::effect::CommandResult;
use crate::limits::{AGENTS_MAX, COMPONENTS_MAX, FRAMEWORKS_MAX, LIMITED_ROLES_MAX};
use crate::testing::MemRows;
use crate::{Config, Core};
use tessera_types::{Digest, EffectiveLimits, LimitName, TurnRefusal};
use tessera_wire::v1::{self, command::Command as C};

fn writes(keys: usize, bytes: usize) -> v1::CommitTurn {
    let write = |n: usize| v1::KeyWrite {
        key: format!("{n:04}"),
        value: Some(vec![0; if n == 0 { bytes - 4 * keys } else { 0 }]),
    };
    v1::CommitTurn { writes: (0..keys).map(write).collect(), ..Default::default() }
}

fn specs(count: usize, bytes: usize) -> v1::CommitTurn {
    let spec = |n: usize| v1::SpecBytes {
        digest: Vec::new(),
        encoded: vec![0; if n == 0 { bytes } else { 0 }],
    };
    v1::CommitTurn { specs: (0..count).map(spec).collect(), ..Default::default() }
}

#[test]
fn turns_end_at_the_limits_of_their_role() {
    use LimitName as L;
    type Turn = fn(usize) -> v1::CommitTurn;
    let cases: [(L, usize, Turn); 4] = [
        (L::TurnKeys, 10, |n| writes(n, 100)),
        (L::TurnStateBytes, 65_536, |n| writes(3, n)),
        (L::TurnSpecs, 2, |n| specs(n, 10)),
        (L::TurnSpecBytes, 65_536, |n| specs(2, n)),
    ];
    for (name, max, make) in cases {
        let mut limits = EffectiveLimits::default();
        limits.put(name, max as u64);
        assert_eq!(validate_turn(&make(max), &limits), Ok(()), "{name}");
        let text = format!("at most {max} per turn, not {}", max + 1);
        let refusal = TurnRefusal::Limit { name: name.to_string(), text };
        assert_eq!(validate_turn(&make(max + 1), &limits), Err(refusal), "{name}");
        assert_eq!(validate_turn(&make(max + 1), &EffectiveLimits::default()), Ok(()), "{name}");
    }
}

type Make = fn(usize) -> C;

fn component(n: usize) -> C {
    C::AddComponent(v1::AddComponent {
        digest: Digest::of(&n.to_le_bytes()).0.to_vec(),
        size_bytes: 1,
        world: v1::World::Scheduler.into(),
        state: Some(v1::StateVersions { writes: 1, ..Default::default() }),
        ..Default::default()
    })
}

fn agent(n: usize) -> C {
    let description = Some(v1::AgentDescription { hostname: "h".into(), ..Default::default() });
    let (agent_key, boot) = (format!("key-{n}"), "boot".to_owned());
    C::RegisterAgent(v1::RegisterAgent { agent_key, boot, description, ..Default::default() })
}

fn framework(n: usize) -> C {
    C::CreateFramework(v1::CreateFramework {
        name: format!("f{n}"),
        // A role may have fewer.
        role: format!("tenant{}", n % 100),
        component: Digest::of(&0_usize.to_le_bytes()).0.to_vec(),
        ..Default::default()
    })
}

fn limit(n: usize) -> C {
    let set = vec![v1::Limit { name: LimitName::Failures.to_string(), value: 3 }];
    C::SetLimits(v1::SetLimits { role: format!("tenant{n}"), set, unset: Vec::new(), expected: None })
}

/// At its bound one more is refused by the bound's name and with a way out, and what is there is known as ever.
#[test]
fn what_a_cluster_has_ends_at_its_bounds() {
    let cases: [(usize, &str, Make); 4] = [
        (COMPONENTS_MAX, "limit COMPONENTS_MAX: at most 10000; `tessera component prune`", component),
        (AGENTS_MAX, "limit AGENTS_MAX: at most 50000; `tessera agent gone`", agent),
        (FRAMEWORKS_MAX, "limit FRAMEWORKS_MAX: at most 10000; `tessera framework rm`", framework),
        (LIMITED_ROLES_MAX, "limit LIMITED_ROLES_MAX: limits are set for at most 10000 roles; `--unset`", limit),
    ];
    for (max, text, make) in cases {
        let rows = MemRows::default();
        let mut core = Core::load(&rows, Config::default()).unwrap();
        let _ = core.apply(1, 1, &batch(vec![component(0)]), &rows).unwrap();
        let all = core.apply(2, 1, &batch((0..max).map(make).collect()), &rows).unwrap();
        let refused = results(&all).into_iter().find(|result| matches!(result, CommandResult::Refused(_)));
        assert_eq!(refused, None, "{text}");
        let more = core.apply(3, 1, &batch(vec![make(max), make(0)]), &rows).unwrap();
        let [CommandResult::Refused(refused), known] = &results(&more)[..] else {
            panic!("{text}: {:?}", results(&more));
        };
        assert!(refused.to_string().starts_with(text), "{refused}");
        assert!(!by_a_bound(known), "{text}: {known:?}");
    }
}

/// Whether it is refused by a bound. A framework of the same name is refused for its name.
fn by_a_bound(result: &CommandResult) -> bool {
    matches!(result, CommandResult::Refused(refused) if refused.to_string().starts_with("limit "))
}
