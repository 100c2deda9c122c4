//! Components that are compiled ahead of need: one at a time, as long as they are desired, and told to masters
//! that speak of it.

mod harness;

use harness::Agent;
use tessera_agent_core::SupplyFailure;
use tessera_types::Digest;
use tessera_wire::v1;

const NOTHING: [&str; 0] = [];

/// Two digests, in order.
fn digests() -> [Digest; 2] {
    let mut both = [Digest::of(b"one"), Digest::of(b"two")];
    both.sort();
    both
}

fn ask(digest: &Digest) -> String {
    format!("compile ahead {}", &digest.hex()[..4])
}

fn desire(agent: &mut Agent, generation: u64, components: Option<&[Digest]>) -> Vec<String> {
    let components = components.map(|digests| digests.iter().map(|digest| digest.0.to_vec()).collect());
    let desired = v1::Desired {
        generation,
        full: true,
        compile_ahead: components.map(|components| v1::CompileAhead { components }),
        ..v1::Desired::default()
    };
    let actions = agent.core.on_desired(desired, agent.now);
    let mut lines = agent.take(actions);
    lines.retain(|line| !line.starts_with("checkpoint") && !line.starts_with("ack "));
    lines
}

fn answer(agent: &mut Agent, digest: Digest, result: Result<(), SupplyFailure>) -> Vec<String> {
    let actions = agent.core.on_compiled_ahead(digest, result, agent.now);
    agent.take(actions)
}

fn kept(agent: &Agent) -> Vec<Digest> {
    agent.core.kept_ahead().copied().collect()
}

#[test]
fn one_is_asked_for_at_a_time_and_masters_are_told_once() {
    let (mut agent, [one, two]) = (Agent::new(), digests());
    let lines = desire(&mut agent, 1, Some(&[one, two]));
    assert_eq!(lines, [ask(&one), "ahead WAITING WAITING, 0 compiled".into()]);
    let lines = answer(&mut agent, one, Ok(()));
    assert_eq!(lines, [ask(&two), "ahead COMPILED WAITING, 0 compiled".into()]);
    let actions = agent.core.on_compilations(2, agent.now);
    assert_eq!(agent.take(actions), ["ahead COMPILED WAITING, 2 compiled"]);
    assert_eq!(answer(&mut agent, two, Ok(())), ["ahead COMPILED COMPILED, 2 compiled"]);
    assert_eq!(desire(&mut agent, 2, Some(&[one, two])), NOTHING, "what is known is not done or said again");
    assert_eq!(kept(&agent), [one, two]);
}

#[test]
fn a_failure_is_said_and_tried_again_later_and_an_unusable_one_is_not() {
    let (mut agent, [one, two]) = (Agent::new(), digests());
    desire(&mut agent, 1, Some(&[one, two]));
    let lines = answer(&mut agent, one, Err(SupplyFailure::Retry("cut off".into())));
    assert_eq!(lines, [ask(&two), "ahead FAILED cut off WAITING, 0 compiled".into()]);
    let lines = answer(&mut agent, two, Err(SupplyFailure::Unusable("bad".into())));
    assert_eq!(lines, ["ahead FAILED cut off FAILED bad, 0 compiled"]);
    for pause_ms in [1_000, 2_000, 4_000] {
        assert_eq!(agent.pass(pause_ms - 1), NOTHING);
        assert_eq!(agent.pass(1), [ask(&one)]);
        let lines = answer(&mut agent, one, Err(SupplyFailure::Retry("cut off".into())));
        assert_eq!(lines, NOTHING, "it is known");
    }
    for _ in 0..8 {
        agent.pass(300_000);
        answer(&mut agent, one, Err(SupplyFailure::Retry("cut off".into())));
    }
    assert_eq!(agent.pass(300_000), [ask(&one)], "the pause has an upper bound");
}

#[test]
fn what_is_not_desired_any_more_is_forgotten_and_does_not_hold_up_others() {
    let (mut agent, [one, two]) = (Agent::new(), digests());
    desire(&mut agent, 1, Some(&[one]));
    let lines = desire(&mut agent, 2, Some(&[two]));
    assert_eq!(lines, ["ahead WAITING, 0 compiled"], "the first is still being compiled");
    assert_eq!(kept(&agent), [two]);
    assert_eq!(answer(&mut agent, one, Ok(())), [ask(&two)]);
    answer(&mut agent, two, Ok(()));
    assert_eq!(desire(&mut agent, 3, Some(&[])), ["ahead, 0 compiled"]);
    assert_eq!(kept(&agent), []);
}

#[test]
fn masters_that_do_not_speak_of_it_are_told_nothing() {
    let (mut agent, [one, two]) = (Agent::new(), digests());
    desire(&mut agent, 1, Some(&[one, two]));
    let actions = agent.core.on_session_down(agent.now);
    agent.take(actions);
    let actions = agent.core.on_compiled_ahead(one, Ok(()), agent.now);
    assert_eq!(agent.take(actions), NOTHING, "without a session no component can be fetched");
    // Another master may be older.
    assert_eq!(agent.register(), [ask(&two)], "what was desired still is");
    assert_eq!(desire(&mut agent, 2, None), NOTHING);
    assert_eq!(answer(&mut agent, two, Ok(())), NOTHING);
    // And one that speaks of it is told everything.
    let actions = agent.core.on_session_down(agent.now);
    agent.take(actions);
    assert_eq!(agent.register(), NOTHING);
    let lines = desire(&mut agent, 3, Some(&[one]));
    assert_eq!(lines, [ask(&one), "ahead WAITING, 0 compiled".into()]);
}

#[test]
fn too_many_are_left_out_and_said() {
    let mut agent = Agent::new();
    let many: Vec<Digest> = (0..1_030_u32).map(|n| Digest::of(&n.to_be_bytes())).collect();
    let lines = desire(&mut agent, 1, Some(&many));
    assert_eq!(lines[0], "warn 6 components are not compiled ahead: at most 1024 are");
    assert_eq!(kept(&agent).len(), 1_024);
}
