//! The state of a scheduler as its instances see it: values, and above them what an upgrade that is not
//! final has written.
//!
//! Owns how the two tables are read and written together. Invariants: while an upgrade is under way the
//! values are not touched by its scheduler, so that giving it up is dropping the upper table; while the upper table is
//! being folded in, a new value goes below and takes the place of the one above. Must never decide
//! which of these is the case.

use crate::rows::{self, DELETED, Overlay, Rows, RowsError, WRITTEN};
use std::collections::BTreeMap;
use tessera_types::FrameworkId;

/// Where writes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layer {
    /// There is one generation.
    Values,
    /// An upgrade is under way.
    Above,
    /// A finished upgrade is being folded in.
    Folding,
}

/// What a row of the new generation says of its key.
fn above(row: &[u8]) -> Result<Option<Vec<u8>>, RowsError> {
    match row.split_first() {
        Some((&WRITTEN, value)) => Ok(Some(value.to_vec())),
        Some((&DELETED, [])) => Ok(None),
        _ => Err(RowsError("a value of a new generation has an unknown form".into())),
    }
}

/// The value of a key, whole key given.
pub(crate) fn get(
    rows: &Overlay<'_>,
    layer: Layer,
    key: &[u8],
) -> Result<Option<Vec<u8>>, RowsError> {
    if layer != Layer::Values
        && let Some(row) = rows.get(rows::GENERATION, key)?
    {
        return above(&row);
    }
    rows.get(rows::VALUES, key)
}

/// Set or delete a key, whole key given.
pub(crate) fn write(rows: &mut Overlay<'_>, layer: Layer, key: Vec<u8>, value: Option<Vec<u8>>) {
    match layer {
        Layer::Above => {
            let row = match value {
                Some(value) => [&[WRITTEN], value.as_slice()].concat(),
                None => vec![DELETED],
            };
            rows.put(rows::GENERATION, key, row);
            return;
        }
        Layer::Folding => rows.delete(rows::GENERATION, key.clone()),
        Layer::Values => {}
    }
    match value {
        Some(value) => rows.put(rows::VALUES, key, value),
        None => rows.delete(rows::VALUES, key),
    }
}

/// Set or delete a key in both generations, whole key given: neither of them remembers anything else.
pub(crate) fn write_through(
    rows: &mut Overlay<'_>,
    layer: Layer,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
) {
    let both = if layer == Layer::Above { Layer::Folding } else { layer };
    write(rows, both, key, value);
}

/// Fold rows of the new generation into the values, as many as the bounds allow. Returns whether none
/// is left.
pub(crate) fn fold(
    rows: &mut Overlay<'_>,
    framework: FrameworkId,
    keys_max: usize,
    bytes_max: usize,
) -> Result<bool, RowsError> {
    /// Rows read at once: a value has up to 256 KiB.
    const PAGE: usize = 16;
    let prefix = rows::framework_key(framework);
    let (mut keys, mut bytes) = (0, 0);
    let mut after: Option<Vec<u8>> = None;
    loop {
        let page = rows.scan(rows::GENERATION, &prefix, after.as_deref(), PAGE)?;
        if page.is_empty() {
            return Ok(true);
        }
        for (key, row) in page {
            if keys >= keys_max || bytes >= bytes_max {
                return Ok(false);
            }
            keys += 1;
            bytes += row.len();
            let value = above(&row)?;
            after = Some(key.clone());
            write(rows, Layer::Folding, key, value);
        }
    }
}

/// At most `limit` keys and values after a key, in order; none only when there are no more.
pub(crate) fn page(
    rows: &dyn Rows,
    two_generations: bool,
    framework: FrameworkId,
    after: Option<Vec<u8>>,
    limit: usize,
) -> Result<Vec<(Vec<u8>, Vec<u8>)>, RowsError> {
    let prefix = rows::framework_key(framework);
    if !two_generations {
        return rows.scan(rows::VALUES, &prefix, after.as_deref(), limit);
    }
    let mut after = after;
    loop {
        let values = rows.scan(rows::VALUES, &prefix, after.as_deref(), limit)?;
        let newer = rows.scan(rows::GENERATION, &prefix, after.as_deref(), limit)?;
        // Beyond the last key of a full page nothing is known of that table.
        let full = [&values, &newer].into_iter().filter(|page| page.len() >= limit);
        let horizon = full.filter_map(|page| page.last()).map(|(key, _)| key.clone()).min();
        let known = |key: &Vec<u8>| horizon.as_ref().is_none_or(|horizon| key <= horizon);
        let mut merged: BTreeMap<Vec<u8>, Option<Vec<u8>>> = BTreeMap::new();
        for (key, value) in values.into_iter().filter(|(key, _)| known(key)) {
            merged.insert(key, Some(value));
        }
        for (key, row) in newer.into_iter().filter(|(key, _)| known(key)) {
            merged.insert(key, above(&row)?);
        }
        let found: Vec<_> = merged
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?)))
            .take(limit)
            .collect();
        if !found.is_empty() || horizon.is_none() {
            return Ok(found);
        }
        after = horizon;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::RowChange;
    use crate::testing::MemRows;

    const F: FrameworkId = FrameworkId(1);

    fn key(n: u8) -> Vec<u8> {
        rows::owned_key(F, &[n])
    }

    /// Keys 0 to 39 below; above, every third deleted, every fifth replaced, and 40 to 44 new.
    fn stored() -> MemRows {
        let mut stored = MemRows::default();
        let mut changes = Vec::new();
        let mut put = |table, n: u8, value: Vec<u8>| {
            changes.push(RowChange::Put { table, key: key(n), value });
        };
        for n in 0..40 {
            put(rows::VALUES, n, vec![n]);
            match n {
                n if n % 3 == 0 => put(rows::GENERATION, n, vec![DELETED]),
                n if n % 5 == 0 => put(rows::GENERATION, n, vec![WRITTEN, n, n]),
                _ => {}
            }
        }
        for n in 40..45 {
            put(rows::GENERATION, n, vec![WRITTEN, n]);
        }
        stored.write(changes);
        stored
    }

    fn expected() -> Vec<(Vec<u8>, Vec<u8>)> {
        let values = (0..45).filter(|n| n % 3 != 0 || *n >= 40);
        values.map(|n| (key(n), if n % 5 == 0 && n < 40 { vec![n, n] } else { vec![n] })).collect()
    }

    fn all(stored: &MemRows, limit: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut found: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        loop {
            let after = found.last().map(|(key, _)| key.clone());
            let page = page(stored, true, F, after, limit).unwrap();
            assert!(page.len() <= limit);
            if page.is_empty() {
                return found;
            }
            found.extend(page);
        }
    }

    #[test]
    fn pages_of_any_size_show_the_newer_value_and_nothing_deleted() {
        for limit in [1, 2, 3, 7, 44, 1000] {
            assert_eq!(all(&stored(), limit), expected(), "pages of {limit}");
        }
    }

    #[test]
    fn folding_in_parts_never_changes_what_is_seen() {
        let mut stored = stored();
        for round in 0.. {
            let mut overlay = Overlay::new(&stored);
            let done = fold(&mut overlay, F, 4, 1 << 20).unwrap();
            let changes = overlay.into_changes();
            stored.write(changes);
            assert_eq!(all(&stored, 7), expected(), "round {round}");
            if done {
                assert!(round > 2, "it was done in parts");
                break;
            }
        }
        assert_eq!(stored.count(rows::GENERATION), 0);
        assert_eq!(page(&stored, false, F, None, 1000).unwrap(), expected());
    }

    #[test]
    fn folding_stops_at_the_bound_of_bytes() {
        let mut stored = MemRows::default();
        let row = [vec![WRITTEN], vec![7; 600]].concat();
        let put = |n| RowChange::Put { table: rows::GENERATION, key: key(n), value: row.clone() };
        stored.write((0..10).map(put).collect());
        let mut overlay = Overlay::new(&stored);
        assert_eq!(fold(&mut overlay, F, 1000, 1000), Ok(false));
        let changes = overlay.into_changes();
        stored.write(changes);
        assert_eq!(stored.count(rows::GENERATION), 8);
    }

    #[test]
    fn what_one_entry_wrote_is_folded_by_the_same_entry() {
        let stored = MemRows::default();
        let mut overlay = Overlay::new(&stored);
        write(&mut overlay, Layer::Above, key(1), Some(vec![9]));
        assert_eq!(get(&overlay, Layer::Above, &key(1)), Ok(Some(vec![9])));
        assert_eq!(fold(&mut overlay, F, 10, 10), Ok(true));
        assert_eq!(get(&overlay, Layer::Values, &key(1)), Ok(Some(vec![9])));
        write(&mut overlay, Layer::Above, key(1), None);
        assert_eq!(get(&overlay, Layer::Above, &key(1)), Ok(None));
        write(&mut overlay, Layer::Folding, key(1), Some(vec![8]));
        assert_eq!(get(&overlay, Layer::Folding, &key(1)), Ok(Some(vec![8])));
        assert_eq!(fold(&mut overlay, F, 10, 10), Ok(true), "nothing was left above");
    }
}
