//! Limits of one turn: what is just within them, and what passes them by one.

use crate::commands::validate_turn;
use tessera_types::{EffectiveLimits, LimitName, TurnRefusal};
use tessera_wire::v1;

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
