//! Counts the words of one file: `wordcount-task INPUT OUTPUT`, paths inside the sandbox.
//!
//! A word is a run of ASCII letters, counted in lower case. The output has one line per word,
//! `<count> <word>`, sorted by word. With `PACE_MS` in the environment it first waits that long,
//! so that a demonstration can disturb it. Must leave no output that is not whole: any failure is
//! an exit code other than 0.

use std::collections::BTreeMap;
use std::io::Error;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [input, output] = args.as_slice() else {
        eprintln!("usage: wordcount-task INPUT OUTPUT");
        return ExitCode::from(2);
    };
    match run(input, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{input} to {output}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(input: &str, output: &str) -> Result<(), Error> {
    let pace_ms = std::env::var("PACE_MS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    std::thread::sleep(Duration::from_millis(pace_ms));
    let lines = count(&std::fs::read(input)?);
    std::fs::write(output, lines)
}

fn count(text: &[u8]) -> String {
    let mut counts: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    for word in text
        .split(|byte| !byte.is_ascii_alphabetic())
        .filter(|word| !word.is_empty())
    {
        *counts.entry(word.to_ascii_lowercase()).or_default() += 1;
    }
    counts
        .iter()
        .map(|(word, count)| format!("{count} {}\n", String::from_utf8_lossy(word)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn words_are_runs_of_ascii_letters_in_lower_case() {
        assert_eq!(
            count("The cat, the_CAT; naïve 4x4\n".as_bytes()),
            "2 cat\n1 na\n2 the\n1 ve\n1 x\n"
        );
        assert_eq!(count(b"  \n"), "");
    }
}
