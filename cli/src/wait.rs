//! Waiting for what goes on by itself, and asking before what cannot be undone.
//!
//! Invariants: leaving a wait changes nothing in the cluster, and says how to go on watching; nobody is asked where
//! nobody can answer. Must never cancel anything.

use crate::error::{CliError, Kind};
use crate::follow::{Pace, Patience};
use crate::output;
use std::io::{BufRead as _, Write as _};
use std::time::{Duration, Instant};
use tessera_types::parse_duration;

/// Pictures of a wait on a terminal.
const SPINNER: [char; 4] = ['|', '/', '-', '\\'];
/// How often the picture changes.
const TICK: Duration = Duration::from_millis(120);

/// Whether to ask.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct YesArgs {
    /// Do not ask; without a terminal nobody is asked anyway
    #[arg(short, long)]
    pub yes: bool,
}

impl YesArgs {
    /// Ask whether this is meant.
    ///
    /// # Errors
    /// When it is not.
    pub fn confirm(self, what: &str) -> Result<(), CliError> {
        if self.yes || !output::can_ask() {
            return Ok(());
        }
        let _ = write!(std::io::stderr(), "{}\nGo on? [y/N] ", output::clean(what));
        let mut answer = String::new();
        let _ = std::io::stdin().lock().read_line(&mut answer);
        if is_yes(&answer) {
            return Ok(());
        }
        Err(CliError::new(Kind::Refused, "nothing was done").hint("--yes does it without asking"))
    }
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

/// Reads how long to wait: a number of seconds, or with a unit, `10m`.
///
/// # Errors
/// When it is neither.
pub fn parse_seconds(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(seconds) => Ok(seconds),
        Err(_) => parse_duration(text).map(|ms| ms.div_ceil(1_000)).map_err(|_| format!("{text:?} is neither seconds nor a duration such as 10m")),
    }
}

/// How far something is.
pub enum Step<T> {
    /// It is there.
    Done(T),
    /// Not yet, and where it stands.
    Going(String),
}

/// What is waited for.
pub struct Waiting {
    /// What is to become true: "version 3 of words is final".
    pub what: String,
    /// A command that shows how it goes on.
    pub go_on: String,
    /// For how long.
    pub within: Duration,
}

/// Look again and again until it is there.
///
/// # Errors
/// What a look says, [`Kind::Timeout`], or [`Kind::Interrupted`] when the user left.
pub async fn until<T>(
    waiting: Waiting,
    mut look: impl AsyncFnMut() -> Result<Step<T>, CliError>,
) -> Result<T, CliError> {
    let deadline = Instant::now() + waiting.within;
    let mut patience = Patience::default();
    let (mut meter, mut pace) = (Meter::new(), Pace::default());
    let mut stand = String::new();
    loop {
        let looked = tokio::select! {
            looked = look() => looked,
            _ = tokio::signal::ctrl_c() => return Err(left(&waiting)),
        };
        match patience.judge(looked)? {
            Some(Step::Done(value)) => return Ok(value),
            Some(Step::Going(how)) => stand = how,
            None => {}
        }
        meter.show(&format!("waiting until {}: {stand}", waiting.what));
        if Instant::now() >= deadline {
            let seconds = waiting.within.as_secs();
            let text = format!("timed out after {seconds} s of waiting until {}: {stand}", waiting.what);
            return Err(CliError::new(Kind::Timeout, text)
                .hint(format!("it goes on by itself; `{}` shows how far it is", waiting.go_on)));
        }
        tokio::select! {
            () = pace.wait(false) => {}
            _ = tokio::signal::ctrl_c() => return Err(left(&waiting)),
        }
    }
}

fn left(waiting: &Waiting) -> CliError {
    CliError::new(Kind::Interrupted, format!("left before {}", waiting.what))
        .hint(format!("it goes on by itself; `{}` shows how far it is", waiting.go_on))
}

/// One line of stderr that says how far something is: it is rewritten on a terminal, and elsewhere written anew
/// when it says something else.
pub struct Meter {
    terminal: bool,
    since: Instant,
    drawn: Option<Instant>,
    last: String,
    turn: usize,
}

impl Meter {
    /// Nothing is shown yet.
    pub fn new() -> Self {
        Self { terminal: output::is_watched(), since: Instant::now(), drawn: None, last: String::new(), turn: 0 }
    }

    /// Say this.
    pub fn show(&mut self, text: &str) {
        if !self.terminal {
            if self.last != text {
                output::note(&output::clean(text));
                text.clone_into(&mut self.last);
            }
            return;
        }
        if self.drawn.is_some_and(|drawn| drawn.elapsed() < TICK) {
            return;
        }
        self.drawn = Some(Instant::now());
        self.turn = (self.turn + 1) % SPINNER.len();
        let line = format!("{} {} ({} s)", SPINNER[self.turn], output::clean(text), self.since.elapsed().as_secs());
        let width = output::settings().width.unwrap_or(80).saturating_sub(1);
        let line: String = line.chars().take(width).collect();
        // Nobody is left to be told when this fails.
        let _ = write!(std::io::stderr(), "\r\x1b[K{line}");
    }

    /// Say how many bytes of all have gone.
    pub fn show_bytes(&mut self, what: &str, done: u64, all: u64) {
        // Elsewhere than on a terminal one line is enough, and no bar.
        if !self.terminal {
            return;
        }
        let percent = done.saturating_mul(100).checked_div(all).unwrap_or(100).min(100);
        let full = usize::try_from(percent / 5).unwrap_or(20);
        let bar = format!("{}{}", "#".repeat(full), ".".repeat(20_usize.saturating_sub(full)));
        self.show(&format!("{what} [{bar}] {percent} % of {}", output::bytes(all)));
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if self.drawn.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Step, Waiting, is_yes, parse_seconds, until};
    use crate::error::{CliError, Kind};
    use std::time::Duration;

    #[test]
    fn seconds_have_a_unit_or_none() {
        for (text, expected) in [("5", Some(5)), ("5s", Some(5)), ("10m", Some(600)), ("1ms", Some(1)), ("x", None), ("-1", None), ("", None)] {
            assert_eq!(parse_seconds(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn only_yes_is_yes() {
        for (answer, expected) in [("y\n", true), ("YES", true), ("", false), ("n", false), ("yep", false)] {
            assert_eq!(is_yes(answer), expected, "{answer:?}");
        }
    }

    #[tokio::test]
    async fn a_wait_ends_with_what_it_waits_for_or_says_how_to_go_on() {
        let waiting = |within| Waiting { what: "it is done".into(), go_on: "tessera x".into(), within };
        let mut looks = 0;
        let done = until(waiting(Duration::from_secs(60)), async || {
            looks += 1;
            Ok(if looks == 3 { Step::Done(looks) } else { Step::Going(format!("look {looks}")) })
        });
        assert_eq!(done.await.unwrap(), 3);
        let never = until(waiting(Duration::ZERO), async || Ok(Step::<()>::Going("half".into())));
        let error = never.await.unwrap_err();
        assert_eq!(error.kind, Kind::Timeout);
        assert!(error.message.contains("half") && error.hint.unwrap().contains("tessera x"));
        let refused = until(waiting(Duration::from_secs(60)), async || {
            Err::<Step<()>, _>(CliError::new(Kind::Refused, "no"))
        });
        assert_eq!(refused.await.unwrap_err().kind, Kind::Refused);
    }
}
