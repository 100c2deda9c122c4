//! Histories of registers and lists as short text, one operation a line:
//! `process key call-return what`, without a return where the outcome is unknown. What: `write v`,
//! `remove`, `read v`, `swap v w done`, `swap v w differs`; `append v`, `list v,w`. Nothing is `-`.

use tessera_linear::{
    Append, AppendAnswer, History, Operation, Outcome, RegisterAnswer, RegisterCall,
};

fn value(word: &str) -> Option<String> {
    (word != "-").then(|| word.to_owned())
}

fn lines<I, O>(text: &str, parse: impl Fn(&[&str]) -> (I, O)) -> History<I, O> {
    let operations = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            let (call, returned) = words[2].split_once('-').expect(line);
            let (input, output) = parse(&words[3..]);
            let outcome = match returned {
                "" => Outcome::Unknown,
                at => Outcome::Returned {
                    at: at.parse().expect(line),
                    output,
                },
            };
            let (process, call) = (words[0].parse().expect(line), call.parse().expect(line));
            Operation {
                process,
                key: words[1].to_owned(),
                call,
                input,
                outcome,
            }
        });
    History::new(operations.collect()).expect("a history")
}

/// A history of registers.
pub fn register(text: &str) -> History<RegisterCall, RegisterAnswer> {
    use RegisterAnswer::{Differs, Done, Value};
    lines(text, |what| match what {
        ["write", v] => (RegisterCall::Write { value: value(v) }, Done),
        ["remove"] => (RegisterCall::Write { value: None }, Done),
        ["read", v] => (RegisterCall::Read, Value { value: value(v) }),
        ["read"] => (RegisterCall::Read, Done),
        ["swap", v, w, rest @ ..] => (
            RegisterCall::Cas {
                from: value(v),
                to: value(w),
            },
            if rest == ["differs"] { Differs } else { Done },
        ),
        _ => panic!("{what:?}"),
    })
}

/// A history of lists.
pub fn list(text: &str) -> History<Append, AppendAnswer> {
    lines(text, |what| match what {
        ["append", v] => (
            Append::Append {
                value: (*v).to_owned(),
            },
            AppendAnswer::Done,
        ),
        ["list", v] => {
            let values =
                value(v).map_or_else(Vec::new, |v| v.split(',').map(str::to_owned).collect());
            (Append::Read, AppendAnswer::Values { values })
        }
        _ => panic!("{what:?}"),
    })
}
