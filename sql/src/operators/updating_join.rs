//! A join without a window: a table of all pairs so far, of which each epoch says what has changed.
//!
//! # Design
//!
//! Both sides' rows are kept by their keys. What an inner join gains by an epoch is: the left side's changes with the right side's rows
//! before, and the left side's rows now with the right side's changes. An outer join is computed before and now for the keys that have
//! changed, and what is different is given. A row without a change for `ttl` of event time is forgotten; what was joined with it stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, UInt32Array, new_null_array};
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, Schema, SchemaRef};
use arrow::row::{OwnedRow, RowConverter};
use datafusion::error::Result;
use hashbrown::HashMap;
use orderflow_operators::epoch::{EpochInfo, Micros};
use orderflow_operators::keys::KeyGroup;

use super::join::{JoinKind, JoinSpec, Pairs};
use super::state::{by_group, concat_groups};
use super::timers::Timers;
use super::{GroupedState, Operator, Output, Rejects};
use crate::rows::{self, META, canonical, hashes, meta_after_rows, row_converter, with_meta};

/// A join of all rows so far. Both inputs as [`JoinSpec`] says.
pub(crate) struct UpdatingJoin {
    spec: JoinSpec,
    ttl: Micros,
    sides: [Side; 2],
    joined_converter: RowConverter,
    key_converter: RowConverter,
    state_schema: SchemaRef,
}

struct Side {
    columns: SchemaRef,
    converter: RowConverter,
    rows: HashMap<OwnedRow, Rows>,
    timers: Timers,
}

/// How often each row of a key is there, and when it last changed.
type Rows = BTreeMap<OwnedRow, (i64, Micros)>;

/// Rows by key.
type ByKey = BTreeMap<OwnedRow, Rows>;

/// Where each key's rows begin and end.
type Ranges = BTreeMap<OwnedRow, std::ops::Range<u32>>;

/// What comes and goes, by row.
type Changes = BTreeMap<OwnedRow, (i64, Micros)>;

impl UpdatingJoin {
    pub fn new(spec: JoinSpec, inputs: [SchemaRef; 2], ttl: Micros) -> Self {
        let side = |columns: &SchemaRef| Side {
            columns: with_meta(columns.fields()),
            converter: row_converter(columns.fields()),
            rows: HashMap::new(),
            timers: Timers::default(),
        };
        let keys = &inputs[0].fields()[META + spec.left.fields().len()..];
        let int = |name| Arc::new(Field::new(name, DataType::Int64, false));
        let fields: [FieldRef; 4] = [Arc::new(Field::new("key", DataType::Utf8, false)), int("side"), int("count"), int("time")];
        let own = spec.left.fields().iter().chain(spec.right.fields()).chain(keys);
        let own = own.map(|f| Arc::new(Field::new(f.name(), f.data_type().clone(), true)));
        UpdatingJoin {
            sides: [side(&spec.left), side(&spec.right)],
            joined_converter: row_converter(&spec.joined.fields()[META..]),
            key_converter: row_converter(keys),
            state_schema: Arc::new(Schema::new(fields.into_iter().chain(own).collect::<Vec<_>>())),
            spec,
            ttl,
        }
    }

    fn is_outer(&self) -> bool {
        self.spec.kind != JoinKind::Inner
    }

    /// An epoch's changes of a side by key; rows with a null in a key apart, as they have no partner.
    fn changes(&self, side: usize, rows: &RecordBatch) -> Result<(ByKey, Changes)> {
        let columns = self.sides[side].columns.fields().len() - META;
        let keys = self.spec.keys(rows, columns);
        let converted = self.key_converter.convert_columns(keys)?;
        let contents = self.sides[side].converter.convert_columns(&rows.columns()[META..META + columns])?;
        let (times, retract) = (rows::times(rows), rows::retractions(rows));
        let (mut by_key, mut alone) = (ByKey::new(), Changes::new());
        for (row, &at) in times.iter().enumerate() {
            let has_key = keys.iter().all(|k| k.is_valid(row));
            let of = if has_key { by_key.entry(converted.row(row).owned()).or_default() } else { &mut alone };
            let (count, time) = of.entry(contents.row(row).owned()).or_insert((0, at));
            *count += if retract.value(row) { -1 } else { 1 };
            *time = (*time).max(at);
        }
        Ok((by_key, alone))
    }

    fn before(&self, side: usize, keys: &BTreeSet<OwnedRow>) -> ByKey {
        keys.iter().filter_map(|key| Some((key.clone(), self.sides[side].rows.get(key)?.clone()))).collect()
    }

    fn apply(&mut self, side: usize, changes: &ByKey) {
        let side = &mut self.sides[side];
        for (key, changed) in changes {
            let rows = side.rows.entry(key.clone()).or_default();
            for (row, (count, time)) in changed {
                let entry = rows.entry(row.clone()).or_insert((0, *time));
                entry.0 += count;
                entry.1 = entry.1.max(*time);
                if entry.0 == 0 {
                    rows.remove(row);
                } else {
                    side.timers.set(entry.1.saturating_add(self.ttl), key);
                }
            }
            if rows.is_empty() {
                side.rows.remove(key);
            }
        }
    }

    /// A side's rows as a batch, with where each key's begin and end.
    fn batch(&self, side: usize, rows: &ByKey) -> Result<(RecordBatch, Vec<i64>, Ranges)> {
        let (mut ranges, mut counts, mut times, mut all) = (BTreeMap::new(), Vec::new(), Vec::new(), Vec::new());
        for (key, rows) in rows {
            let start = all.len() as u32;
            for (row, (count, time)) in rows {
                all.push(row.row());
                counts.push(*count);
                times.push(*time);
            }
            ranges.insert(key.clone(), start..all.len() as u32);
        }
        let columns = self.sides[side].converter.convert_rows(all)?;
        let batch = rows::batch(&self.sides[side].columns, meta_after_rows(times, false).into_iter().chain(columns).collect());
        Ok((batch, counts, ranges))
    }

    /// Adds what the join of some rows gives; `sign` is −1 to take it back. With `alone`, rows without a partner are kept as the kind of join says.
    fn join(&self, sides: [&ByKey; 2], sign: i64, alone: bool, changes: &mut Changes, rejects: &mut Rejects) -> Result<()> {
        let (left, left_counts, left_ranges) = self.batch(0, sides[0])?;
        let (right, right_counts, right_ranges) = self.batch(1, sides[1])?;
        let (mut l, mut r) = (Vec::new(), Vec::new());
        for (key, range) in &left_ranges {
            let Some(partners) = right_ranges.get(key) else { continue };
            for row in range.clone() {
                for partner in partners.clone() {
                    l.push(row);
                    r.push(partner);
                }
            }
        }
        let pairs = self.spec.matching(&left, &right, Pairs { left: l.into(), right: r.into() }, rejects)?;
        let count =
            |l: Option<u32>, r: Option<u32>| sign * l.map_or(1, |l| left_counts[l as usize]) * r.map_or(1, |r| right_counts[r as usize]);
        self.add(&left, &right, &pairs, &count, changes)?;
        if alone {
            let without = |rows: &RecordBatch, partners: &UInt32Array| {
                let mut has = vec![false; rows.num_rows()];
                partners.values().iter().for_each(|row| has[*row as usize] = true);
                has.iter().enumerate().filter(|(_, has)| !**has).map(|(row, _)| Some(row as u32)).collect::<UInt32Array>()
            };
            let nulls = |count: usize| std::iter::repeat_n(None, count).collect::<UInt32Array>();
            if self.spec.kind.keeps_left() {
                let rows = without(&left, &pairs.left);
                self.add(&left, &right, &Pairs { right: nulls(rows.len()), left: rows }, &count, changes)?;
            }
            if self.spec.kind.keeps_right() {
                let rows = without(&right, &pairs.right);
                self.add(&left, &right, &Pairs { left: nulls(rows.len()), right: rows }, &count, changes)?;
            }
        }
        Ok(())
    }

    fn add(
        &self,
        left: &RecordBatch,
        right: &RecordBatch,
        pairs: &Pairs,
        count: &dyn Fn(Option<u32>, Option<u32>) -> i64,
        changes: &mut Changes,
    ) -> Result<()> {
        let time = |rows: &RecordBatch, row: Option<u32>| row.map_or(Micros::MIN, |row| rows::times(rows)[row as usize]);
        let both = || pairs.left.iter().zip(pairs.right.iter());
        let times: Vec<Micros> = both().map(|(l, r)| time(left, l).max(time(right, r))).collect();
        let joined = self.spec.joined(left, right, pairs, meta_after_rows(times.clone(), false).to_vec())?;
        let converted = self.joined_converter.convert_columns(&joined.columns()[META..])?;
        for (row, ((l, r), at)) in both().zip(times).enumerate() {
            let entry = changes.entry(converted.row(row).owned()).or_insert((0, at));
            entry.0 += count(l, r);
            entry.1 = entry.1.max(at);
        }
        Ok(())
    }

    fn emit(&self, changes: Changes, output: &mut Output) -> Result<()> {
        for retract in [true, false] {
            let matching = changes.iter().filter(|(_, (count, _))| if retract { *count < 0 } else { *count > 0 });
            let repeated = matching.flat_map(|(row, (count, time))| std::iter::repeat_n((row, *time), count.unsigned_abs() as usize));
            let (rows, times): (Vec<&OwnedRow>, Vec<Micros>) = repeated.unzip();
            if !rows.is_empty() {
                let columns = self.joined_converter.convert_rows(rows.into_iter().map(|row| row.row()))?;
                let meta = meta_after_rows(times, retract);
                output.rows.push(rows::batch(&self.spec.schema, meta.into_iter().chain(columns).collect()));
            }
        }
        Ok(())
    }

    fn forget(&mut self, watermark: Micros) {
        for side in &mut self.sides {
            for key in side.timers.due(watermark) {
                if let Some(rows) = side.rows.get_mut(&key) {
                    rows.retain(|_, (_, time)| time.saturating_add(self.ttl) > watermark);
                    if rows.is_empty() {
                        side.rows.remove(&key);
                    }
                }
            }
        }
    }
}

impl Operator for UpdatingJoin {
    fn on_epoch(&mut self, info: &EpochInfo, inputs: &mut [Option<RecordBatch>], output: &mut Output) -> Result<()> {
        let mut taken = [(ByKey::new(), Changes::new()), (ByKey::new(), Changes::new())];
        for (side, taken) in taken.iter_mut().enumerate() {
            if let Some(rows) = inputs[side].take() {
                *taken = self.changes(side, &canonical(rows))?;
            }
        }
        let [(left, left_alone), (right, right_alone)] = taken;
        let mut changes = Changes::new();
        let rejects = &mut output.rejects;
        if self.is_outer() {
            let keys: BTreeSet<OwnedRow> = left.keys().chain(right.keys()).cloned().collect();
            self.join([&self.before(0, &keys), &self.before(1, &keys)], -1, true, &mut changes, rejects)?;
            self.apply(0, &left);
            self.apply(1, &right);
            // A condition that has no value was rejected when the rows came.
            self.join([&self.before(0, &keys), &self.before(1, &keys)], 1, true, &mut changes, rejects)?;
            let none = OwnedKey::none(&self.key_converter);
            let apart = |rows: Changes| ByKey::from_iter((!rows.is_empty()).then(|| (none.clone(), rows)));
            if self.spec.kind.keeps_left() {
                self.join([&apart(left_alone), &ByKey::new()], 1, true, &mut changes, rejects)?;
            }
            if self.spec.kind.keeps_right() {
                self.join([&ByKey::new(), &apart(right_alone)], 1, true, &mut changes, rejects)?;
            }
        } else {
            let (left_keys, right_keys) = (left.keys().cloned().collect(), right.keys().cloned().collect());
            let right_before = self.before(1, &left_keys);
            self.join([&left, &right_before], 1, false, &mut changes, rejects)?;
            self.apply(0, &left);
            self.join([&self.before(0, &right_keys), &right], 1, false, &mut changes, rejects)?;
            self.apply(1, &right);
        }
        changes.retain(|_, (count, _)| *count != 0);
        self.forget(info.watermark);
        self.emit(changes, output)
    }

    fn state(&mut self) -> Option<&mut dyn GroupedState> {
        Some(self)
    }
}

/// A key for rows that have none.
struct OwnedKey;

impl OwnedKey {
    fn none(converter: &RowConverter) -> OwnedRow {
        converter.parser().parse(&[]).owned()
    }
}

impl GroupedState for UpdatingJoin {
    fn dump(&mut self) -> Result<Vec<(KeyGroup, RecordBatch)>> {
        let mut parts = Vec::new();
        for (number, side) in self.sides.iter().enumerate() {
            let mut by_key: Vec<(&OwnedRow, &Rows)> = side.rows.iter().collect();
            by_key.sort_by(|a, b| a.0.cmp(b.0));
            let entries: Vec<_> = by_key.into_iter().flat_map(|(key, rows)| rows.iter().map(move |(row, at)| (key, row, *at))).collect();
            let count = entries.len();
            let ints = |values: Vec<i64>| Arc::new(Int64Array::from(values)) as ArrayRef;
            let mut columns = vec![
                ints(vec![number as i64; count]),
                ints(entries.iter().map(|e| e.2.0).collect()),
                ints(entries.iter().map(|e| e.2.1).collect()),
            ];
            let own = side.converter.convert_rows(entries.iter().map(|e| e.1.row()))?;
            let other = &self.sides[1 - number].columns.fields()[META..];
            let other: Vec<ArrayRef> = other.iter().map(|f| new_null_array(f.data_type(), count)).collect();
            let (left, right) = if number == 0 { (own, other) } else { (other, own) };
            let keys = self.key_converter.convert_rows(entries.iter().map(|e| e.0.row()))?;
            let hashes = hashes(&keys, count);
            columns.extend(left.into_iter().chain(right).chain(keys));
            parts.extend(by_group(&self.state_schema, columns, &hashes));
        }
        Ok(concat_groups(parts))
    }

    fn restore(&mut self, _watermark: Micros, rows: &RecordBatch) -> Result<()> {
        let ints = |column: usize| rows.column(column).as_primitive::<Int64Type>().values().to_vec();
        let (sides, counts, times) = (ints(1), ints(2), ints(3));
        let left = self.spec.left.fields().len();
        let right = self.spec.right.fields().len();
        let contents = [
            self.sides[0].converter.convert_columns(&rows.columns()[4..4 + left])?,
            self.sides[1].converter.convert_columns(&rows.columns()[4 + left..4 + left + right])?,
        ];
        let keys = self.key_converter.convert_columns(&rows.columns()[4 + left + right..])?;
        for row in 0..rows.num_rows() {
            let side = usize::from(sides[row] != 0);
            let key = keys.row(row).owned();
            let content = contents[side].row(row).owned();
            let of = &mut self.sides[side];
            of.timers.set(times[row].saturating_add(self.ttl), &key);
            of.rows.entry(key).or_default().insert(content, (counts[row], times[row]));
        }
        Ok(())
    }
}
