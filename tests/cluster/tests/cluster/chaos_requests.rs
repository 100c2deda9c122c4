//! Requests that meet masters in the middle of something: joining, dying, being removed.

use crate::told::told;
use nix::sys::signal::Signal;
use std::time::Duration;
use tessera_cluster::cluster::{PATIENCE, Process};
use tessera_cluster::guests::guest;
use tessera_cluster::masters::Group;
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure, procfs};

/// Above what a follower keeps in memory of a request.
const LARGE: usize = 3 << 20;

/// A component with a custom section that makes it large.
fn large_component() -> Outcome<Vec<u8>> {
    let mut bytes = std::fs::read(guest("echo")?)?;
    let mut section = b"\x07padding".to_vec();
    section.resize(LARGE, b'.');
    bytes.push(0);
    let mut left = section.len();
    while left > 0x7f {
        bytes.push(u8::try_from(left & 0x7f)? | 0x80);
        left >>= 7;
    }
    bytes.push(u8::try_from(left)?);
    bytes.extend(section);
    Ok(bytes)
}

#[tokio::test]
async fn a_master_that_joins_says_so() -> Outcome {
    let mut group = Group::beside("joining", 2).await?;
    group.members[1].kill_9()?;
    std::fs::remove_dir_all(&group.members[1].dir)?;
    // Alone, the first one leads nothing that could take the other one in.
    group.run(1)?;
    let rest = group.rest(1)?;
    for path in ["/health", "/v1/limits", "/anything"] {
        until("it says that it joins", PATIENCE, async || {
            let asked = tokio::time::timeout(Duration::from_secs(2), rest.get(path)).await;
            let answer = asked.map_err(|_| "no answer".to_owned())?.map_err(|error| error.to_string())?;
            let told = answer.status == 503
                && told("JOINING", &answer.error_code()).is_ok()
                && answer.headers.contains_key("retry-after")
                && answer.text().contains("not joined its cluster yet: ");
            if told { Ok(()) } else { Err(format!("{path}: {answer:?}")) }
        })
        .await?;
    }
    group.finish()
}

/// The leader stands still while it has a large upload that came to a follower; the next leader gets it, too.
#[tokio::test]
async fn a_large_upload_outlives_its_leader() -> Outcome {
    let mut group = Group::beside("large", 3).await?;
    let component = large_component()?;
    for kills in [false, true] {
        let leader = group.leader().await?;
        let rest = group.rest((leader + 1) % 3)?;
        let pid = group.members[leader].process.as_ref().map_or(0, Process::pid);
        procfs::signal(pid, Signal::SIGSTOP)?;
        let mut bytes = component.clone();
        bytes.extend([0, 2, 1, b'a' + u8::from(kills)]);
        let upload = tokio::spawn(async move { rest.send("POST", "/v1/components", &[], bytes).await });
        if kills {
            group.members[leader].kill_9()?;
        }
        let answer = upload.await??.ok()?;
        ensure(answer.json()["digest"].is_string(), || answer.text())?;
        if kills {
            group.run(leader)?;
        } else {
            procfs::signal(pid, Signal::SIGCONT)?;
        }
        group.voters(3).await?;
    }
    group.finish()
}

/// Of three, one dies and another is to be removed in the same moment: the one that is left could not go on.
#[tokio::test]
async fn no_master_is_removed_right_after_another_one_died() -> Outcome {
    let mut group = Group::start("right-after", 3).await?;
    for round in 0..3 {
        let leader = group.leader().await?;
        let dies = (leader + 1) % 3;
        let stays = group.node((leader + 2) % 3).await?;
        until("all are well", PATIENCE, async || {
            let view = group.view(leader).await.map_err(|error| error.to_string())?;
            if view["healthy_voters"] == 3 { Ok(()) } else { Err(view.to_string()) }
        })
        .await?;
        let rest = group.rest(leader)?;
        group.members[dies].kill_9()?;
        let answer = rest.send("DELETE", &format!("/v1/masters/{stays}"), &[], Vec::new()).await?;
        ensure(answer.status == 409 && answer.text().contains("are needed"), || {
            format!("round {round}: {answer:?}")
        })?;
        group.run(dies)?;
        group.voters(3).await?;
    }
    group.finish()
}
