//! How long the command line takes to start.

use crate::machine::quantile;
use crate::report::{Report, Row, Target};
use std::time::Instant;
use tessera_cluster::cluster::tessera;
use tessera_cluster::{Outcome, ensure};

/// Starts of which the middle one counts; some before them are for the page cache.
const STARTS: usize = 100;
/// Those before.
const WARM: usize = 5;
/// What a start may take, in ms.
const START_MAX_MS: f64 = 20.0;

/// Starts that need no cluster, one after the other.
pub async fn measure(report: &mut Report) -> Outcome {
    eprintln!("bench: the command line");
    for (args, what) in [(&["--version"][..], "`tessera --version`"), (&["task", "ls", "--help"], "`tessera task ls --help`")] {
        let mut times = Vec::new();
        for _ in 0..WARM + STARTS {
            let began = Instant::now();
            let output = tessera(args, &[]).await?;
            times.push(began.elapsed().as_secs_f64() * 1e3);
            ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())?;
        }
        let mut times = times.split_off(WARM);
        let p50 = quantile(&mut times, 0.5);
        report.add(Row::new(format!("{what}, from its start to its end, p50"), p50, "ms").target(Target::AtMost(START_MAX_MS)));
        report.add(Row::new("the same, p99", quantile(&mut times, 0.99), "ms"));
    }
    Ok(())
}
