//! Recordings: files of an agent, listed and fetched through the master.

use crate::harness::{FakeAgent, Master, config, with_token};
use reqwest::{Method, StatusCode};
use serde_json::json;
use tessera_wire::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Answers questions for files: a list of one recording, and its bytes.
async fn serve_files(agent: &mut FakeAgent, recording: Vec<u8>) {
    let (sender, answers) = mpsc::channel(4);
    let (number, session) = (agent.registered.agent, agent.registered.session);
    let hello = v1::FileChunk {
        agent: number,
        session,
        ..Default::default()
    };
    sender.send(hello).await.unwrap();
    let request = with_token(
        tonic::Request::new(ReceiverStream::new(answers)),
        &agent.token,
    );
    let mut questions = agent.client.files(request).await.unwrap().into_inner();
    tokio::spawn(async move {
        while let Ok(Some(question)) = questions.message().await {
            let list = json!([{"id": "e1-1", "epoch": 1, "life": 1, "bytes": recording.len(), "live": true}]);
            let (all, error) = match question.path.as_str() {
                "recordings" => (list.to_string().into_bytes(), ""),
                "recordings/e1-1" => (recording.clone(), ""),
                _ => (Vec::new(), "there is no such file"),
            };
            let from = usize::try_from(question.offset).unwrap().min(all.len());
            let to = (from + question.length as usize).min(all.len());
            let chunk = v1::FileChunk {
                request: question.request,
                data: all[from..to].to_vec(),
                size: all.len() as u64,
                error: error.into(),
                ..Default::default()
            };
            if sender.send(chunk).await.is_err() {
                return;
            }
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recordings_are_listed_and_streamed_from_the_agent_that_has_them() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(config(dir.path())).await;
    master.create_framework("app").await;
    let path = "/v1/frameworks/app/recordings";
    assert_eq!(
        master.get(path).await["items"],
        json!([]),
        "no agent has any"
    );

    let mut agent = FakeAgent::connect(&master, 0).await;
    agent.host_instance().await;
    let bytes: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    serve_files(&mut agent, bytes.clone()).await;

    let listed = master.get(path).await;
    let item = &listed["items"][0];
    let name = format!("a{}", agent.registered.agent);
    assert_eq!(
        (&item["id"], &item["agent"], &item["bytes"]),
        (&json!("e1-1"), &json!(name), &json!(200_000))
    );
    for query in [String::new(), format!("?agent={name}")] {
        let answer = master
            .request(Method::GET, &format!("{path}/e1-1{query}"))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.content_length(), Some(200_000));
        assert!(
            answer.bytes().await.unwrap() == bytes,
            "the bytes are those of the agent"
        );
    }
    for (query, status) in [
        ("/e9-9", 404),
        ("/..%2fx", 400),
        ("/e1-1?agent=a77", 503),
        ("/e1-1?agent=x", 400),
        ("?agnt=a1", 400),
    ] {
        let answer = master
            .request(Method::GET, &format!("{path}{query}"))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status().as_u16(), status, "{query}");
    }
    master.stop().await;
}
