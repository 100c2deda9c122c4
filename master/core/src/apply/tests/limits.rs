//! Limits of one turn: what is just within them, and what passes them by one.

use super::{batch, results};
use crate::commands::validate_turn;
use crate::effect::CommandResult;
use crate::limits::COMPONENTS_MAX;
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
    type Make = fn(usize) -> v1::CommitTurn;
    let cases: [(L, usize, Make); 4] = [
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

/// At their bound one more component is refused by the bound's name, and one that is there is known as ever.
#[test]
fn components_end_at_their_bound() {
    let rows = MemRows::default();
    let mut core = Core::load(&rows, Config::default()).unwrap();
    let add = |n: usize| {
        C::AddComponent(v1::AddComponent {
            digest: Digest::of(&n.to_le_bytes()).0.to_vec(),
            size_bytes: 1,
            world: v1::World::Command.into(),
            ..Default::default()
        })
    };
    let all = core.apply(1, 1, &batch((0..COMPONENTS_MAX).map(add).collect()), &rows).unwrap();
    assert!(results(&all).iter().all(|result| !matches!(result, CommandResult::Refused(_))));
    let more = core.apply(2, 1, &batch(vec![add(COMPONENTS_MAX), add(0)]), &rows).unwrap();
    let [CommandResult::Refused(refused), known] = &results(&more)[..] else {
        panic!("{:?}", results(&more));
    };
    assert!(refused.to_string().starts_with("limit COMPONENTS_MAX: at most 10000; `tessera component prune`"), "{refused}");
    assert!(!matches!(known, CommandResult::Refused(_)), "{known:?}");
}
