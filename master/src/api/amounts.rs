//! Amounts of resources as people write them: `{"cpus": 4.5, "mem_mib": 1024, "gpus": 2}`.
//!
//! Invariants: three decimal places at most, and every one of them counts: nothing is rounded. What the API shows can
//! be sent back to it.

use super::error::ApiError;
use serde_json::{Map, Number, Value};
use std::collections::BTreeMap;
use tessera_types::{Amounts, CPUS, DISK, MEM, Quantities, Resources, parse_milli};

/// Memory in documents.
const MEM_MIB: &str = "mem_mib";
/// Disk in documents.
const DISK_MIB: &str = "disk_mib";

/// Amounts by name, as documents have them.
pub type AmountsJson = BTreeMap<String, Number>;

/// Thousandths as a decimal number.
pub fn decimal(milli: i64) -> Number {
    if milli % 1_000 == 0 {
        return Number::from(milli / 1_000);
    }
    // At most 2^40: the shortest text of the quotient has these three places.
    Number::from_f64(milli as f64 / 1_000.0).unwrap_or_else(|| Number::from(0))
}

/// A decimal number with at most three places, in thousandths.
pub fn milli(field: &str, value: &Value) -> Result<i64, ApiError> {
    let text = match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.trim().to_owned(),
        _ => return Err(ApiError::invalid(field, "a number, or a text that is one")),
    };
    parse_milli(&text).ok_or_else(|| ApiError::invalid(field, format!("{text:?} is no number of at most three decimal places")))
}

/// MiB: a whole number, or a text with a unit.
fn mib(field: &str, value: &Value) -> Result<i64, ApiError> {
    let found = match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => parse_mib(text.trim()),
        _ => None,
    };
    found.filter(|mib| *mib >= 0).ok_or_else(|| {
        ApiError::invalid(field, "a whole number of MiB, or a text with a unit: \"512MiB\", \"4GiB\", \"1TiB\"")
    })
}

fn parse_mib(text: &str) -> Option<i64> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let of_unit = match unit.trim() {
        "" | "M" | "Mi" | "MiB" => 1,
        "G" | "Gi" | "GiB" => 1 << 10,
        "T" | "Ti" | "TiB" => 1 << 20,
        _ => return None,
    };
    number.parse::<i64>().ok()?.checked_mul(of_unit)
}

/// Amounts of a document.
pub fn read(field: &str, of: &Map<String, Value>) -> Result<Amounts, ApiError> {
    let mut amounts = BTreeMap::new();
    for (name, value) in of {
        let at = format!("{field}.{name}");
        let (kind, amount) = match name.as_str() {
            CPUS => (CPUS, milli(&at, value)?),
            MEM_MIB => (MEM, mib(&at, value)?),
            DISK_MIB => (DISK, mib(&at, value)?),
            MEM | DISK => {
                return Err(ApiError::invalid(at, format!("is written {name}_mib"))
                    .hint(format!("{{\"{name}_mib\": 1024}}, or {{\"{name}_mib\": \"1GiB\"}}")));
            }
            other => (other, milli(&at, value)?),
        };
        amounts.insert(kind.to_owned(), amount);
    }
    Ok(Amounts(amounts))
}

/// CPU, memory and disk of a document.
pub fn read_quantities(field: &str, of: &Map<String, Value>) -> Result<Quantities, ApiError> {
    let amounts = read(field, of)?;
    if let Some((other, _)) = amounts.iter().find(|(kind, _)| ![CPUS, MEM, DISK].contains(kind)) {
        return Err(ApiError::invalid(format!("{field}.{other}"), "only cpus, mem_mib and disk_mib"));
    }
    let amount = |kind| amounts.get(kind).unwrap_or(0);
    Ok(Quantities { cpus_milli: amount(CPUS), mem_mib: amount(MEM), disk_mib: amount(DISK) })
}

fn shown(kind: &str, amount: i64) -> (String, Number) {
    match kind {
        MEM => (MEM_MIB.to_owned(), amount.into()),
        DISK => (DISK_MIB.to_owned(), amount.into()),
        other => (other.to_owned(), decimal(amount)),
    }
}

/// As documents have them.
pub fn write(amounts: &Amounts) -> AmountsJson {
    amounts.iter().map(|(kind, amount)| shown(kind, amount)).collect()
}

/// CPU, memory and disk.
pub fn write_quantities(quantities: Quantities) -> AmountsJson {
    let Quantities { cpus_milli, mem_mib, disk_mib } = quantities;
    [(CPUS, cpus_milli), (MEM, mem_mib), (DISK, disk_mib)].into_iter().map(|(kind, amount)| shown(kind, amount)).collect()
}

/// All kinds of resources.
pub fn write_resources(resources: &Resources) -> AmountsJson {
    let mut all = write_quantities(resources.quantities);
    let mut named: BTreeMap<&str, i64> = BTreeMap::new();
    for (key, amount) in &resources.items {
        let sum = named.entry(key.name.as_str()).or_default();
        *sum = sum.saturating_add(*amount);
    }
    all.extend(named.into_iter().map(|(name, amount)| shown(name, amount)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn amounts_are_exact_both_ways() {
        for (given, kind, amount) in [
            (json!({"cpus": 4.5}), CPUS, Some(4_500)),
            (json!({"cpus": 0.001}), CPUS, Some(1)),
            (json!({"cpus": "2.25"}), CPUS, Some(2_250)),
            (json!({"cpus": 0.1}), CPUS, Some(100)),
            (json!({"cpus": 1_099_511_627.776}), CPUS, Some(1 << 40)),
            (json!({"mem_mib": 1024}), MEM, Some(1_024)),
            (json!({"mem_mib": "4GiB"}), MEM, Some(4_096)),
            (json!({"disk_mib": "1 TiB"}), DISK, Some(1 << 20)),
            (json!({"gpus": 2}), "gpus", Some(2_000)),
            (json!({"cpus": 0.0001}), CPUS, None),
            (json!({"cpus": -1}), CPUS, None),
            (json!({"cpus": "1e3"}), CPUS, None),
            (json!({"cpus": null}), CPUS, None),
            (json!({"mem_mib": 1.5}), MEM, None),
            (json!({"mem_mib": "4KB"}), MEM, None),
            (json!({"mem": 4}), MEM, None),
        ] {
            let read = read("limit", given.as_object().unwrap());
            assert_eq!(read.as_ref().ok().and_then(|amounts| amounts.get(kind)), amount, "{given}");
            if let Ok(amounts) = read {
                let again = serde_json::to_value(write(&amounts)).unwrap();
                assert_eq!(self::read("limit", again.as_object().unwrap()).unwrap(), amounts, "{again}");
            }
        }
    }

    #[test]
    fn smallest_offers_are_of_plain_kinds() {
        let of = json!({"cpus": 1, "mem_mib": 5});
        let found = read_quantities("min_offer", of.as_object().unwrap()).unwrap();
        assert_eq!(found, Quantities { cpus_milli: 1_000, mem_mib: 5, disk_mib: 0 });
        assert!(read_quantities("min_offer", json!({"gpus": 1}).as_object().unwrap()).is_err());
    }
}
