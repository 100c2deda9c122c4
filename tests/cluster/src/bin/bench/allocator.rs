//! The allocator alone, measured by a program of the masters' core: nothing but numbers, so that what is
//! measured is the decision.

use crate::report::{Report, Row, Target};
use std::process::{Command, Stdio};
use tessera_cluster::Outcome;

/// Build and run that program, and take what it says into the report.
pub fn measure(report: &mut Report) -> Outcome {
    eprintln!("bench: the allocator");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let program = ["run", "--quiet", "--locked", "-p", "tessera-master-core", "--example", "allocator"];
    let output = Command::new(cargo).args(program).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("the program that measures the allocator ended with {}", output.status).into());
    }
    let text = String::from_utf8(output.stdout)?;
    for line in text.lines() {
        report.add(row(line).ok_or_else(|| format!("not a number of the allocator: {line:?}"))?);
    }
    Ok(())
}

/// What, value, unit and the target, if there is one.
fn row(line: &str) -> Option<Row> {
    let mut words = line.split('\t');
    let (what, value) = (words.next()?, words.next()?.parse().ok()?);
    let unit = match words.next()? {
        "ms" => "ms",
        "µs" => "µs",
        "%" => "%",
        "times" => "",
        _ => return None,
    };
    let row = Row::new(what, value, unit);
    match words.next()? {
        "" => Some(row),
        most => Some(row.target(Target::AtMost(most.parse().ok()?))),
    }
}
