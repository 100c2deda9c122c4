//! A page of metrics in Prometheus's text format.
//!
//! Invariants: families stand in the order of the table, each once and with its help, also when it has no value now;
//! only metrics of the process in question are there; a value has exactly the labels that its row names. Must never
//! ask anybody for a value.

use crate::number::BOUNDS_US;
use crate::{Histogram, Kind, METRICS, Name, Who};
use std::fmt::Write as _;

/// A value, exact: what is a fraction is made from whole parts of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// As it is.
    Whole(u64),
    /// Thousandths.
    Milli(i64),
    /// Millionths.
    Micro(u64),
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole(value) => write!(f, "{value}"),
            Self::Milli(value) => {
                let sign = if *value < 0 { "-" } else { "" };
                let value = value.unsigned_abs();
                write!(f, "{sign}{}.{:03}", value / 1_000, value % 1_000)
            }
            Self::Micro(value) => write!(f, "{}.{:06}", value / 1_000_000, value % 1_000_000),
        }
    }
}

/// The page as it is being made.
#[derive(Debug)]
pub struct Page {
    who: Who,
    samples: Vec<String>,
}

impl Page {
    /// An empty page of such a process.
    #[must_use]
    pub fn new(who: Who) -> Self {
        Self { who, samples: vec![String::new(); METRICS.len()] }
    }

    /// A value. Its labels' values stand in the order of the row.
    pub fn set(&mut self, name: Name, labels: &[&str], value: Value) {
        let row = name.row();
        debug_assert!(row.who.contains(&self.who), "{} is not of this process", row.name);
        debug_assert_eq!(row.labels.len(), labels.len(), "{}", row.name);
        let text = &mut self.samples[name as usize];
        text.push_str(row.name);
        write_labels(text, row.labels, labels, None);
        // Writing to a String cannot fail.
        let _ = writeln!(text, " {value}");
    }

    /// A whole number.
    pub fn whole(&mut self, name: Name, labels: &[&str], value: u64) {
        self.set(name, labels, Value::Whole(value));
    }

    /// How long something took.
    pub fn histogram(&mut self, name: Name, labels: &[&str], histogram: &Histogram) {
        let row = name.row();
        let (classes, sum_us) = histogram.read();
        let text = &mut self.samples[name as usize];
        let mut all = 0;
        let bounds = BOUNDS_US.iter().map(|us| Value::Micro(*us).to_string()).chain(["+Inf".to_owned()]);
        for (count, bound) in classes.iter().zip(bounds) {
            all += count;
            let _ = write!(text, "{}_bucket", row.name);
            write_labels(text, row.labels, labels, Some(&bound));
            let _ = writeln!(text, " {all}");
        }
        for (suffix, value) in [("_sum", Value::Micro(sum_us)), ("_count", Value::Whole(all))] {
            let _ = write!(text, "{}{suffix}", row.name);
            write_labels(text, row.labels, labels, None);
            let _ = writeln!(text, " {value}");
        }
    }

    /// Its text.
    #[must_use]
    pub fn finish(self) -> String {
        let mut text = String::new();
        for (row, samples) in METRICS.iter().zip(self.samples) {
            if row.who.contains(&self.who) {
                let kind = match row.kind {
                    Kind::Counter => "counter",
                    Kind::Gauge => "gauge",
                    Kind::Histogram => "histogram",
                };
                let _ = write!(text, "# HELP {0} {1}\n# TYPE {0} {kind}\n{samples}", row.name, row.help);
            }
        }
        text
    }
}

fn write_labels(text: &mut String, names: &[&str], values: &[&str], bound: Option<&str>) {
    let pairs = names.iter().zip(values).map(|(name, value)| (*name, *value));
    let mut first = true;
    for (name, value) in pairs.chain(bound.map(|bound| ("le", bound))) {
        text.push(if first { '{' } else { ',' });
        first = false;
        text.push_str(name);
        text.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                c => text.push(c),
            }
        }
        text.push('"');
    }
    if !first {
        text.push('}');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn values_are_exact() {
        for (value, text) in [
            (Value::Whole(7), "7"),
            (Value::Milli(1_500), "1.500"),
            (Value::Milli(-5), "-0.005"),
            (Value::Micro(50), "0.000050"),
        ] {
            assert_eq!(value.to_string(), text);
        }
    }

    #[test]
    fn every_family_of_the_process_is_there_and_the_text_is_well_formed() {
        for who in [Who::Master, Who::Agent] {
            let families = crate::parse(&Page::new(who).finish()).unwrap();
            let names: Vec<&str> = families.iter().map(|family| family.name.as_str()).collect();
            let expected: Vec<&str> = METRICS.iter().filter(|row| row.who.contains(&who)).map(|row| row.name).collect();
            assert_eq!(names, expected);
        }
    }

    #[test]
    fn labels_are_quoted_and_classes_add_up() {
        let mut page = Page::new(Who::Master);
        page.whole(Name::Tasks, &["a\\b\"c\nd"], 3);
        let histogram = Histogram::new();
        for us in [10, 10, 9_000_000] {
            histogram.took(Duration::from_micros(us));
        }
        page.histogram(Name::CommitSeconds, &[], &histogram);
        let text = page.finish();
        assert!(text.contains(r#"{state="a\\b\"c\nd"} 3"#), "{text}");
        let families = crate::parse(&text).unwrap();
        let commit = families.iter().find(|family| family.name == Name::CommitSeconds.row().name).unwrap();
        let of = |suffix: &str, label: Option<&str>| {
            let found = commit.samples.iter().find(|sample| {
                sample.0.ends_with(suffix) && label.is_none_or(|label| sample.1 == [("le".to_owned(), label.to_owned())])
            });
            found.map(|sample| sample.2.clone())
        };
        assert_eq!(of("_bucket", Some("0.000050")).as_deref(), Some("2"));
        assert_eq!(of("_bucket", Some("+Inf")).as_deref(), Some("3"));
        assert_eq!(of("_sum", None).as_deref(), Some("9.000020"));
    }
}
