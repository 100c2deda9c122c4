//! Reads a page of metrics again: for tests, and for whoever shows them without a Prometheus.
//!
//! Invariants: a page that Prometheus would refuse is refused, with the line. Must never panic.

/// One metric with its values: the name as it stands there, labels, and the value's text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Family {
    /// Its name.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// Values.
    pub samples: Vec<(String, Vec<(String, String)>, String)>,
}

/// Every metric of a page.
///
/// # Errors
/// The line that breaks a rule, and which.
pub fn parse(text: &str) -> Result<Vec<Family>, String> {
    let mut families: Vec<Family> = Vec::new();
    for line in text.lines() {
        let refuse = |rule: &str| format!("{rule}: {line}");
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, _) = rest.split_once(' ').ok_or_else(|| refuse("help without text"))?;
            if families.iter().any(|family| family.name == name) {
                return Err(refuse("a metric stands there twice"));
            }
            families.push(Family { name: checked(name).ok_or_else(|| refuse("not a name"))?, ..Family::default() });
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let family = families.last_mut().filter(|family| family.kind.is_empty() && family.samples.is_empty());
            match (family, rest.split_once(' ')) {
                (Some(family), Some((name, kind @ ("counter" | "gauge" | "histogram")))) if name == family.name => {
                    family.kind = kind.to_owned();
                }
                _ => return Err(refuse("a type that belongs to nothing")),
            }
        } else {
            let sample = sample(line).ok_or_else(|| refuse("not a value"))?;
            let family = families.last_mut().ok_or_else(|| refuse("a value without its metric"))?;
            let suffix = sample.0.strip_prefix(&family.name).ok_or_else(|| refuse("a value of another metric"))?;
            let allowed: &[&str] =
                if family.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            if !allowed.contains(&suffix) {
                return Err(refuse("a value of another metric"));
            }
            if family.samples.iter().any(|other| (&other.0, &other.1) == (&sample.0, &sample.1)) {
                return Err(refuse("a value stands there twice"));
            }
            family.samples.push(sample);
        }
    }
    Ok(families)
}

fn checked(name: &str) -> Option<String> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    (!name.is_empty() && name.chars().all(good) && !name.starts_with(|c: char| c.is_ascii_digit())).then(|| name.to_owned())
}

fn sample(line: &str) -> Option<(String, Vec<(String, String)>, String)> {
    let end = line.find(['{', ' '])?;
    let name = checked(line.get(..end)?)?;
    let mut rest = line.get(end..)?;
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.push((checked(label)?, value));
            match after.strip_prefix(',') {
                Some(more) => rest = more,
                None => {
                    rest = after.strip_prefix('}')?;
                    break;
                }
            }
        }
    }
    let value = rest.strip_prefix(' ')?;
    let digits = value.strip_prefix('-').unwrap_or(value);
    let number = !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit() || c == '.');
    number.then(|| (name, labels, value.to_owned()))
}

/// The text up to the closing mark, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                c @ ('\\' | '"') => value.push(c),
                _ => return None,
            },
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_breaks_a_rule_is_refused() {
        let head = "# HELP a b\n# TYPE a gauge\n";
        assert_eq!(parse(&format!("{head}a{{b=\"x,}}\\\"y\"}} -1.5\n")).unwrap()[0].samples[0].1[0].1, "x,}\"y");
        for bad in [
            "a 1",
            "# HELP a b\n# TYPE a gauge\nb 1",
            "# HELP a b\n# TYPE a gauge\na 1\na 1",
            "# HELP a b\n# HELP a b",
            "# HELP a b\n# TYPE a number",
            "# HELP a b\n# TYPE a gauge\na one",
            "# HELP a b\n# TYPE a gauge\na{b=\"c} 1",
            "# HELP a b\n# TYPE a histogram\na 1",
            "# TYPE a gauge",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
