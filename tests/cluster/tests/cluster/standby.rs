//! A scheduler whose agent is lost goes on where its code was compiled ahead, and nothing is compiled there.

use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tessera_cluster::cluster::{PATIENCE, Parts, Process};
use tessera_cluster::guests::guest;
use tessera_cluster::rest::Rest;
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure, failure, procfs};

/// Compiling the large component may take so long, twice, beside other tests.
const LONG: Duration = Duration::from_secs(600);
/// As many functions as a JavaScript engine has.
const LARGE_FUNCTIONS: u32 = 32_000;

/// Three agents, by the order of their registration.
struct Three {
    parts: Parts,
    rest: Rest,
    agents: Vec<(&'static str, Process)>,
}

impl Three {
    async fn start(name: &str) -> Outcome<Self> {
        let mut parts = Parts::new(name).await?;
        parts.agent_flags = ["--cpus-milli", "1000", "--mem-mib", "1024"].map(Into::into).to_vec();
        let rest = parts.start_master("m").await?;
        let mut three = Self { parts, rest, agents: Vec::new() };
        for name in ["a", "b", "c"] {
            let args = three.parts.agent_args(name, "m");
            let log = three.parts.dir().join(format!("{name}.log"));
            three.agents.push((name, Process::start(&log, &args)?));
            let count = three.agents.len();
            three.see(&format!("{count} agents are connected"), "/v1/agents", |list| {
                let agents = list["items"].as_array();
                agents.is_some_and(|agents| {
                    agents.iter().filter(|agent| agent["state"] == "connected").count() == count
                })
            })
            .await?;
        }
        Ok(three)
    }

    async fn see(&self, what: &str, path: &str, good: impl Fn(&Value) -> bool) -> Outcome<Value> {
        until(what, LONG, async || {
            let found = self.rest.document(path).await.map_err(|error| error.to_string())?;
            if good(&found) { Ok(found) } else { Err(found.to_string()) }
        })
        .await
    }

    fn dir(&self, agent: &str) -> Outcome<PathBuf> {
        let number: usize = agent.trim_start_matches('a').parse()?;
        let (name, _) = self.agents.get(number - 1).ok_or_else(|| failure(agent.to_owned()))?;
        Ok(self.parts.dir().join(name))
    }

    /// What the agent says it has compiled so far.
    async fn compilations(&self, agent: &str) -> Outcome<u64> {
        let found = self.rest.document(&format!("/v1/agents/{agent}")).await?;
        found["compilations"].as_u64().ok_or_else(|| failure(found.to_string()))
    }

    /// Wait until the scheduler has a standby that has it compiled; who hosts it, and who stands by.
    async fn standing(&self) -> Outcome<(String, String)> {
        let found = self.see("a standby has it compiled", "/v1/frameworks/run", |found| {
            found["standby"]["state"] == "compiled" && found["state"] == "running"
        });
        let found = found.await?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let both = text(&found["agent"]).zip(text(&found["standby"]["agent"]));
        both.ok_or_else(|| failure(found.to_string()))
    }

    /// Lose an agent and what runs on it; how long until the scheduler has answered on another one.
    async fn lose(&mut self, host: &str, standby: &str) -> Outcome<Duration> {
        let dir = self.dir(host)?;
        let number: usize = host.trim_start_matches('a').parse()?;
        let began = Instant::now();
        self.agents[number - 1].1.kill_9()?;
        for pid in procfs::find("tessera-worker", &dir) {
            procfs::kill_9(pid)?;
        }
        self.see(&format!("its scheduler runs on {standby}"), "/v1/frameworks/run", |found| {
            found["agent"] == standby && found["state"] == "running"
        })
        .await?;
        let answer = until("its scheduler answers", PATIENCE, async || {
            let document = json!({"shell": "true"});
            let answer = self.rest.post("/frameworks/run/tasks", &document).await;
            answer.and_then(|answer| answer.ok()).map_err(|error| error.to_string())
        });
        answer.await?;
        Ok(began.elapsed())
    }

    /// Put a framework of this component on the cluster.
    async fn create(&self, component: Vec<u8>) -> Outcome {
        let answer = self.rest.send("POST", "/v1/components", &[], component).await?.ok()?;
        let digest = answer.json()["digest"].clone();
        let document = json!({"name": "run", "role": "default", "component": digest});
        self.rest.post("/v1/frameworks", &document).await?.ok()?;
        Ok(())
    }

    fn finish(mut self) -> Outcome {
        for (_, agent) in &mut self.agents {
            if agent.ended()?.is_none() {
                agent.stop()?;
            }
        }
        self.parts.finish()
    }
}

/// Lose the host with an image at the standby, and then once more without one.
async fn lose_twice(name: &str, component: Vec<u8>) -> Outcome {
    let mut three = Three::start(name).await?;
    three.create(component).await?;
    let (host, standby) = three.standing().await?;
    ensure(host != standby, || format!("{host} stands by for itself"))?;
    ensure(three.compilations(&standby).await? == 1, || "it compiled it once, ahead".to_owned())?;
    let with = three.lose(&host, &standby).await?;
    let compiled = three.compilations(&standby).await?;
    ensure(compiled == 1, || format!("{standby} compiled {compiled} times: the last when it was needed"))?;

    // The same without an image: the counter tells the difference.
    let (host, standby) = three.standing().await?;
    let before = three.compilations(&standby).await?;
    let images = three.dir(&standby)?.join("images");
    for image in std::fs::read_dir(images)? {
        std::fs::remove_file(image?.path())?;
    }
    let without = three.lose(&host, &standby).await?;
    let compiled = three.compilations(&standby).await?;
    ensure(compiled == before + 1, || format!("{standby} compiled {compiled} times after {before}"))?;
    println!("from the loss of the agent to an answer: {with:?} with an image, {without:?} without");
    three.finish()
}

#[tokio::test]
async fn a_scheduler_goes_on_where_it_was_compiled_ahead() -> Outcome {
    lose_twice("standby", std::fs::read(guest("run")?)?).await
}

/// A measurement: run it alone, with `--ignored --nocapture`.
#[tokio::test]
#[ignore = "takes minutes of CPU time"]
async fn a_large_scheduler_goes_on_where_it_was_compiled_ahead() -> Outcome {
    lose_twice("standby-large", grown(std::fs::read(guest("run")?)?)).await
}

/// The component with one more module, which nothing instantiates and every engine compiles.
fn grown(mut component: Vec<u8>) -> Vec<u8> {
    let mut module = b"\0asm\x01\0\0\0".to_vec();
    // One type: (i32) -> i32.
    section(&mut module, 1, &[1, 0x60, 1, 0x7f, 1, 0x7f]);
    let mut types = leb(LARGE_FUNCTIONS);
    types.extend(std::iter::repeat_n(0, LARGE_FUNCTIONS as usize));
    section(&mut module, 3, &types);
    let mut code = leb(LARGE_FUNCTIONS);
    for function in 0..LARGE_FUNCTIONS {
        // No locals; local.get 0, then some rounds of `i32.const n; i32.mul; local.get 0; i32.xor`.
        let mut body = vec![0, 0x20, 0];
        for round in 0..24 {
            body.push(0x41);
            body.extend(signed_leb(function + round));
            body.extend([0x6c, 0x20, 0, 0x73]);
        }
        body.push(0x0b);
        code.extend(leb(u32::try_from(body.len()).unwrap_or(u32::MAX)));
        code.extend(body);
    }
    section(&mut module, 10, &code);
    section(&mut component, 1, &module);
    component
}

fn section(to: &mut Vec<u8>, id: u8, content: &[u8]) {
    to.push(id);
    to.extend(leb(u32::try_from(content.len()).unwrap_or(u32::MAX)));
    to.extend(content);
}

fn leb(mut n: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n >= 0x80 {
        bytes.push((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}

/// The same for numbers that are read with a sign; these have none.
fn signed_leb(n: u32) -> Vec<u8> {
    let mut bytes = leb(n);
    if let Some(last) = bytes.last_mut()
        && *last & 0x40 != 0
    {
        *last |= 0x80;
        bytes.push(0);
    }
    bytes
}
