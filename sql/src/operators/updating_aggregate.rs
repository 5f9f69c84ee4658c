//! `GROUP BY` without a window: a table of all groups so far, of which each epoch says what has changed.
//!
//! # Design
//!
//! Where rows only come, a group is known by the states of its aggregates. Where rows are also taken back, by its rows: a group
//! that changes is aggregated anew, since not every aggregate can forget (`min`, `max`). An epoch gives at most one change
//! of a group: its row before is taken back, its row now is given. A group without a row for `ttl` of event time is taken back and forgotten.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, Schema, SchemaRef};
use arrow::row::OwnedRow;
use datafusion::common::ScalarValue;
use datafusion::error::Result;
use hashbrown::HashMap;
use orderflow_operators::epoch::{EpochInfo, Micros};
use orderflow_operators::keys::KeyGroup;

use super::aggregates::{Aggregates, columns_of, values_at};
use super::state::by_group;
use super::timers::Timers;
use super::window_aggregate::key_schema;
use super::{GroupedState, Operator, Output};
use crate::rows::{self, META, RowCodec, canonical, hashes, meta_after_rows};

/// Aggregates of all rows so far. Input: the keys behind the [`META`] columns, then what the aggregates' arguments name. Output: keys, aggregates.
pub(crate) struct UpdatingAggregate {
    keys: usize,
    aggregates: Aggregates,
    /// Whether rows are also taken back.
    retracts: bool,
    ttl: Micros,
    input: SchemaRef,
    schema: SchemaRef,
    output_fields: Vec<FieldRef>,
    state_schema: SchemaRef,
    key_codec: RowCodec,
    /// Of all columns behind [`META`], where rows are taken back.
    row_codec: RowCodec,
    groups: HashMap<OwnedRow, Group>,
    timers: Timers,
}

struct Group {
    content: Content,
    /// The aggregates' values, as last given.
    values: Vec<ScalarValue>,
    /// The latest event time of its rows.
    time: Micros,
}

enum Content {
    /// The aggregates' states.
    States(Vec<ScalarValue>),
    /// The rows (all columns behind [`META`]), and how often each is there.
    Rows(BTreeMap<OwnedRow, i64>),
}

impl UpdatingAggregate {
    pub fn new(input: &SchemaRef, keys: usize, aggregates: Aggregates, retracts: bool, ttl: Micros, schema: SchemaRef) -> Self {
        let key_schema = key_schema(input, keys);
        let own = &input.fields()[META..];
        let int = |name| Arc::new(Field::new(name, DataType::Int64, false));
        let mut fields: Vec<FieldRef> = vec![Arc::new(Field::new("key", DataType::Utf8, false)), int("time")];
        if retracts {
            fields.push(int("count"));
            fields.extend(own.iter().cloned());
        } else {
            fields.extend(key_schema.fields().iter().cloned());
            fields.extend(aggregates.state_fields().iter().map(|f| Arc::new(f.as_ref().clone().with_nullable(true))));
        }
        UpdatingAggregate {
            keys,
            retracts,
            ttl,
            output_fields: schema.fields()[META + keys..].to_vec(),
            key_codec: RowCodec::new(key_schema.fields()),
            // Arguments that are never taken back need not be kept in an order.
            row_codec: if retracts { RowCodec::new(own) } else { RowCodec::new([]) },
            state_schema: Arc::new(Schema::new(fields)),
            input: input.clone(),
            aggregates,
            schema,
            groups: HashMap::new(),
            timers: Timers::default(),
        }
    }

    /// Adds an epoch's rows; returns the keys that they touch, with what is known of them and the time of their last row.
    fn take_in(&mut self, rows: &RecordBatch) -> Result<Vec<(OwnedRow, Option<Content>, Micros)>> {
        let converted = self.key_codec.encode(&rows.columns()[META..META + self.keys], rows.num_rows())?;
        let times = rows::times(rows);
        let mut index: HashMap<OwnedRow, usize> = HashMap::new();
        let mut touched: Vec<(OwnedRow, Micros)> = Vec::new();
        let mut group_of = Vec::with_capacity(rows.num_rows());
        for (row, &time) in times.iter().enumerate() {
            let group = *index.entry_ref(&converted.row(row).owned()).or_insert_with(|| {
                touched.push((converted.row(row).owned(), time));
                touched.len() - 1
            });
            touched[group].1 = touched[group].1.max(time);
            group_of.push(group);
        }
        for (key, time) in &mut touched {
            if let Some(group) = self.groups.get(key) {
                *time = group.time.max(*time);
            }
        }
        let contents =
            if self.retracts { self.changed_rows(rows, &touched, &group_of)? } else { self.changed_states(rows, &touched, &group_of)? };
        Ok(touched.into_iter().zip(contents).map(|((key, time), content)| (key, content, time)).collect())
    }

    fn changed_states(&self, rows: &RecordBatch, touched: &[(OwnedRow, Micros)], group_of: &[usize]) -> Result<Vec<Option<Content>>> {
        let mut accumulators = self.aggregates.accumulators()?;
        let known = touched.iter().enumerate().filter_map(|(group, (key, _))| match self.groups.get(key)?.content {
            Content::States(ref states) => Some((group, states.as_slice())),
            Content::Rows(_) => None,
        });
        let (groups, states): (Vec<usize>, Vec<&[ScalarValue]>) = known.unzip();
        if !groups.is_empty() {
            let states = columns_of(states.into_iter(), self.aggregates.state_fields())?;
            self.aggregates.merge(&mut accumulators, &states, &groups, touched.len())?;
        }
        self.aggregates.update(&mut accumulators, rows, group_of, touched.len())?;
        let states = self.aggregates.state(&mut accumulators)?;
        (0..touched.len()).map(|group| Ok(Some(Content::States(values_at(&states, group)?)))).collect()
    }

    fn changed_rows(&mut self, rows: &RecordBatch, touched: &[(OwnedRow, Micros)], group_of: &[usize]) -> Result<Vec<Option<Content>>> {
        let converted = self.row_codec.encode(&rows.columns()[META..], rows.num_rows())?;
        let retract = rows::retractions(rows);
        let before = touched.iter().map(|(key, _)| match self.groups.get_mut(key).map(|g| &mut g.content) {
            Some(Content::Rows(rows)) => std::mem::take(rows),
            _ => BTreeMap::new(),
        });
        let mut contents: Vec<BTreeMap<OwnedRow, i64>> = before.collect();
        for (row, group) in group_of.iter().enumerate() {
            let count = contents[*group].entry(converted.row(row).owned()).or_default();
            *count += if retract.value(row) { -1 } else { 1 };
        }
        // A row that is taken back before it came, within one epoch, is gone when both are in.
        contents.iter_mut().for_each(|rows| rows.retain(|_, count| *count != 0));
        Ok(contents.into_iter().map(|rows| (!rows.is_empty()).then_some(Content::Rows(rows))).collect())
    }

    /// The aggregates' values of some groups.
    fn values(&self, contents: &[&Content]) -> Result<Vec<Vec<ScalarValue>>> {
        let mut accumulators = self.aggregates.accumulators()?;
        if self.retracts {
            let (mut rows, mut groups) = (Vec::new(), Vec::new());
            for (group, content) in contents.iter().enumerate() {
                let Content::Rows(own) = content else { continue };
                for (row, count) in own {
                    for _ in 0..(*count).max(0) {
                        rows.push(row.row());
                        groups.push(group);
                    }
                }
            }
            let times = vec![0; rows.len()];
            let columns = self.row_codec.decode(rows)?;
            let batch = rows::batch(&self.input, meta_after_rows(times, false).into_iter().chain(columns).collect());
            self.aggregates.update(&mut accumulators, &batch, &groups, contents.len())?;
        } else {
            let states = contents.iter().filter_map(|content| match content {
                Content::States(states) => Some(states.as_slice()),
                Content::Rows(_) => None,
            });
            let states: Vec<&[ScalarValue]> = states.collect();
            let groups: Vec<usize> = (0..states.len()).collect();
            let states = columns_of(states.into_iter(), self.aggregates.state_fields())?;
            self.aggregates.merge(&mut accumulators, &states, &groups, contents.len())?;
        }
        let values = self.aggregates.evaluate(&mut accumulators)?;
        (0..contents.len()).map(|group| values_at(&values, group)).collect()
    }

    fn emit(&self, changes: &[(OwnedRow, Vec<ScalarValue>, Micros)], retract: bool, output: &mut Output) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let meta = meta_after_rows(changes.iter().map(|(_, _, time)| *time).collect(), retract);
        let keys = self.key_codec.decode(changes.iter().map(|(key, ..)| key.row()))?;
        let values = columns_of(changes.iter().map(|(_, values, _)| values.as_slice()), &self.output_fields)?;
        output.rows.push(rows::batch(&self.schema, meta.into_iter().chain(keys).chain(values).collect()));
        Ok(())
    }
}

impl Operator for UpdatingAggregate {
    fn on_epoch(&mut self, info: &EpochInfo, inputs: &mut [Option<RecordBatch>], output: &mut Output) -> Result<()> {
        let (mut taken_back, mut given) = (Vec::new(), Vec::new());
        if let Some(rows) = inputs[0].take() {
            let touched = self.take_in(&canonical(rows))?;
            let contents: Vec<&Content> = touched.iter().filter_map(|(_, content, _)| content.as_ref()).collect();
            let mut values = self.values(&contents)?.into_iter();
            for (key, content, time) in touched {
                let before = self.groups.remove(&key);
                let Some(content) = content else {
                    taken_back.extend(before.map(|group| (key, group.values, time)));
                    continue;
                };
                let values = values.next().expect("each content has its values");
                if before.as_ref().is_none_or(|group| group.values != values) {
                    taken_back.extend(before.map(|group| (key.clone(), group.values, time)));
                    given.push((key.clone(), values.clone(), time));
                }
                self.timers.set(time.saturating_add(self.ttl), &key);
                self.groups.insert(key, Group { content, values, time });
            }
        }
        for key in self.timers.due(info.watermark) {
            if self.groups.get(&key).is_some_and(|group| group.time.saturating_add(self.ttl) <= info.watermark)
                && let Some(group) = self.groups.remove(&key)
            {
                taken_back.push((key, group.values, group.time));
            }
        }
        self.emit(&taken_back, true, output)?;
        self.emit(&given, false, output)
    }

    fn state(&mut self) -> Option<&mut dyn GroupedState> {
        Some(self)
    }
}

impl GroupedState for UpdatingAggregate {
    fn dump(&mut self) -> Result<Vec<(KeyGroup, RecordBatch)>> {
        let mut groups: Vec<(&OwnedRow, &Group)> = self.groups.iter().collect();
        groups.sort_by(|a, b| a.0.cmp(b.0));
        let mut entries: Vec<(Micros, i64, &OwnedRow)> = Vec::new();
        let mut states: Vec<&[ScalarValue]> = Vec::new();
        for (key, group) in groups {
            match &group.content {
                Content::States(own) => {
                    entries.push((group.time, 1, key));
                    states.push(own);
                }
                Content::Rows(rows) => entries.extend(rows.iter().map(|(row, count)| (group.time, *count, row))),
            }
        }
        let ints = |of: fn(&(Micros, i64, &OwnedRow)) -> i64| Arc::new(Int64Array::from_iter_values(entries.iter().map(of))) as ArrayRef;
        let mut columns = vec![ints(|e| e.0)];
        let codec = if self.retracts { &self.row_codec } else { &self.key_codec };
        let own = codec.decode(entries.iter().map(|e| e.2.row()))?;
        let hashes = hashes(&own[..self.keys], entries.len());
        if self.retracts {
            columns.push(ints(|e| e.1));
        }
        columns.extend(own);
        if !self.retracts {
            columns.extend(columns_of(states.into_iter(), self.aggregates.state_fields())?);
        }
        Ok(by_group(&self.state_schema, columns, &hashes))
    }

    fn restore(&mut self, _watermark: Micros, rows: &RecordBatch) -> Result<()> {
        let ints = |column: usize| rows.column(column).as_primitive::<Int64Type>().values().to_vec();
        let times = ints(1);
        let first = if self.retracts { 3 } else { 2 };
        let keys = self.key_codec.encode(&rows.columns()[first..first + self.keys], rows.num_rows())?;
        let mut restored: BTreeMap<OwnedRow, (Content, Micros)> = BTreeMap::new();
        if self.retracts {
            let counts = ints(2);
            let own = self.row_codec.encode(&rows.columns()[first..], rows.num_rows())?;
            for row in 0..rows.num_rows() {
                let entry = restored.entry(keys.row(row).owned()).or_insert_with(|| (Content::Rows(BTreeMap::new()), times[row]));
                if let Content::Rows(rows) = &mut entry.0 {
                    rows.insert(own.row(row).owned(), counts[row]);
                }
            }
        } else {
            for (row, &time) in times.iter().enumerate() {
                let states = values_at(&rows.columns()[first + self.keys..], row)?;
                restored.insert(keys.row(row).owned(), (Content::States(states), time));
            }
        }
        let contents: Vec<&Content> = restored.values().map(|(content, _)| content).collect();
        let values = self.values(&contents)?;
        for ((key, (content, time)), values) in restored.into_iter().zip(values) {
            self.timers.set(time.saturating_add(self.ttl), &key);
            self.groups.insert(key, Group { content, values, time });
        }
        Ok(())
    }
}
