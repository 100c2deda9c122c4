//! Agents that take it for a new session when they hear where the masters are.

use crate::harness::{FakeAgent, Master, an_offer, config, empty_turn, launching_turn, report, with_token};
use std::time::Duration;
use tessera_types::TaskState;
use tessera_wire::v1;
use tessera_wire::v1::agent_message::Message as Up;
use tessera_wire::v1::event::Event;
use tessera_wire::v1::master_message::Message as Down;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

/// Between two beats, as agents beat.
const BEAT: Duration = Duration::from_secs(1);
/// Longest wait for an answer.
const DEADLINE: Duration = Duration::from_secs(20);

/// A lane of beats, which are sent and answered until this is dropped.
struct Lane {
    answered: watch::Receiver<u64>,
    beating: tokio::task::JoinHandle<()>,
}

impl Lane {
    async fn open(agent: &mut FakeAgent) -> Self {
        let (sender, outgoing) = mpsc::channel(1);
        let request = with_token(tonic::Request::new(ReceiverStream::new(outgoing)), &agent.token);
        let mut answers = agent.client.liveness(request).await.unwrap().into_inner();
        let (agent, session) = (agent.registered.agent, agent.registered.session);
        let (answer, answered) = watch::channel(0);
        let beating = tokio::spawn(async move {
            let mut every = tokio::time::interval(BEAT);
            for count in 1.. {
                every.tick().await;
                if sender.send(v1::Beat { agent, session, count }).await.is_err() {
                    return;
                }
                match answers.message().await {
                    Ok(Some(beat)) => answer.send_replace(beat.count),
                    Ok(None) | Err(_) => return,
                };
            }
        });
        Self { answered, beating }
    }

    /// Another beat than those before is answered.
    async fn beats(&mut self) {
        let before = *self.answered.borrow_and_update();
        let more = self.answered.wait_for(|count| *count > before);
        let answered = tokio::time::timeout(DEADLINE, more).await.expect("a beat is answered in time");
        assert!(answered.is_ok(), "the lane of beats was ended");
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.beating.abort();
    }
}

/// What a turn came to.
fn result(message: Down) -> Option<v1::TurnResult> {
    match message {
        Down::TurnResult(result) => Some(result),
        _ => None,
    }
}

/// They open the lane of beats anew, announce what they host, and repeat statuses, all in the session that they have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_goes_on_that_announces_itself_once_more_when_a_master_has_joined() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let master = Master::start(config(dir.path())).await;
    master.create_framework("demo").await;
    let mut agent = FakeAgent::connect(&master, 0).await;
    let mut before = Lane::open(&mut agent).await;
    let instance = agent.host_instance().await;
    let (batch, offer) = agent.batch_with("an offer", an_offer).await;
    agent.send(Up::Turn(launching_turn(&batch, &offer, "t1"))).await;
    agent.wait_for("the result", result).await;
    report(&agent, 1, "t1", 1, TaskState::Running).await;
    let runs = |event: &Event| match event {
        Event::Update(update) => Some(update.sequence),
        _ => None,
    };
    // This batch is not answered yet when another master joins.
    let (batch, sequence) = agent.batch_with("that it runs", runs).await;

    let mut joins = config(other.path());
    joins.join = vec![master.config.agent_listen.to_string()];
    joins.token_file = Some(master.config.data_dir.join(tessera_master::TOKEN_FILE));
    let address = joins.agent_listen.to_string();
    let second = Master::start(joins).await;
    // It is told where the masters are, and of its session nothing: agents of the version before pass over it.
    let moved = agent
        .wait_for("where the masters are", |message| match message {
            Down::Masters(moved) => Some(moved),
            _ => None,
        })
        .await;
    assert!(moved.addresses.contains(&address), "{moved:?}");

    before.beats().await;
    drop(before);
    let mut beats = Lane::open(&mut agent).await;
    let key = Some(v1::InstanceKey { framework: instance.framework, epoch: instance.epoch });
    let ready = v1::InstanceReady { key, rebuilt: false, next_turn: batch.number, outside: 0 };
    agent.send(Up::InstanceReady(ready)).await;
    report(&agent, 1, "t1", 1, TaskState::Running).await;
    // The worker had the batch, and gets it once more under its number; one turn answers both.
    let (repeated, told) = agent.batch_with("the same batch", runs).await;
    assert_eq!((repeated.number, told), (batch.number, sequence));
    // Of turns before.
    agent.backlog.retain(|message| !matches!(message, Down::TurnResult(_)));
    agent.send(Up::Turn(empty_turn(&repeated))).await;
    let outcome = agent.wait_for("the result", result).await;
    let committed = outcome.outcome.and_then(|outcome| outcome.outcome);
    assert!(matches!(committed, Some(v1::turn_outcome::Outcome::Next(_))), "{committed:?}");
    beats.beats().await;
    let task = master.get("/v1/tasks/demo/t1").await;
    assert_eq!(task["state"], "TASK_RUNNING", "{task}");
    let framework = master.get("/v1/frameworks/demo").await;
    assert!(framework["state"] == "running" && framework["epoch"] == instance.epoch, "{framework}");

    for master in [second, master] {
        master.shutdown.cancel();
        // With one of two gone there is no majority that could be handed over to: how it ends is another test's.
        let _ = master.task.await;
    }
}
