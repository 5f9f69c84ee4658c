//! `ROW_NUMBER() OVER (PARTITION BY … ORDER BY …)` without a window, with a condition on the number: the first rows of each partition, of all so far.
//!
//! # Design
//!
//! A partition is its rows in order; where rows only come, those behind the limit are forgotten at once. After an epoch the first rows are compared place by
//! place with those before: what has changed is taken back and given anew. Rows that are alike in what they are ordered by are ordered by all their
//! values. A partition without a row for `ttl` of event time is taken back and forgotten.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, UInt64Array};
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, Schema, SchemaRef};
use arrow::row::{OwnedRow, RowConverter};
use datafusion::error::Result;
use hashbrown::HashMap;
use orderflow_operators::epoch::{EpochInfo, Micros};
use orderflow_operators::keys::KeyGroup;

use super::row_number::{SortKey, sort_converter};
use super::state::by_group;
use super::timers::Timers;
use super::{GroupedState, Operator, Output};
use crate::rows::{self, META, RowCodec, canonical, hashes, meta_after_rows};

/// Output: the first `columns` columns of the query, then the number (uint64).
pub(crate) struct TopRows {
    columns: usize,
    partition: Vec<usize>,
    order: Vec<SortKey>,
    limit: usize,
    /// Whether rows are also taken back.
    retracts: bool,
    ttl: Micros,
    schema: SchemaRef,
    state_schema: SchemaRef,
    partition_codec: RowCodec,
    order_converter: RowConverter,
    /// Of all columns behind [`META`].
    row_codec: RowCodec,
    partitions: HashMap<OwnedRow, Partition>,
    timers: Timers,
}

#[derive(Default, Clone)]
struct Partition {
    /// How often each row is there, by what it is ordered by and all its values.
    rows: BTreeMap<(OwnedRow, OwnedRow), i64>,
    time: Micros,
}

impl Partition {
    fn first(&self, limit: usize) -> Vec<OwnedRow> {
        let repeated = self.rows.iter().flat_map(|((_, row), count)| std::iter::repeat_n(row, (*count).max(0) as usize));
        repeated.take(limit).cloned().collect()
    }
}

impl TopRows {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        input: &SchemaRef,
        columns: usize,
        partition: Vec<usize>,
        order: Vec<SortKey>,
        limit: u64,
        retracts: bool,
        ttl: Micros,
        schema: SchemaRef,
    ) -> Result<Self> {
        let int = |name| Arc::new(Field::new(name, DataType::Int64, false));
        let fields: [FieldRef; 3] = [Arc::new(Field::new("key", DataType::Utf8, false)), int("time"), int("count")];
        let fields = fields.into_iter().chain(input.fields()[META..].iter().cloned());
        Ok(TopRows {
            state_schema: Arc::new(Schema::new(fields.collect::<Vec<_>>())),
            partition_codec: RowCodec::new(partition.iter().map(|c| &input.fields()[*c])),
            order_converter: sort_converter(input, &order)?,
            row_codec: RowCodec::new(&input.fields()[META..]),
            columns,
            partition,
            order,
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            retracts,
            ttl,
            schema,
            partitions: HashMap::new(),
            timers: Timers::default(),
        })
    }

    /// Adds rows to their partitions.
    fn put(&mut self, rows: &RecordBatch, first: usize, counts: &[i64], times: &[Micros]) -> Result<Vec<OwnedRow>> {
        let shift = |column: usize| column - META + first;
        let of = |columns: Vec<usize>| columns.into_iter().map(|c| rows.column(shift(c)).clone()).collect::<Vec<ArrayRef>>();
        let partitions = self.partition_codec.encode(&of(self.partition.clone()), rows.num_rows())?;
        let orders = if self.order.is_empty() {
            None
        } else {
            Some(self.order_converter.convert_columns(&of(self.order.iter().map(|k| k.column).collect()))?)
        };
        let contents = self.row_codec.encode(&rows.columns()[first..], rows.num_rows())?;
        let mut touched = Vec::new();
        for row in 0..rows.num_rows() {
            let key = partitions.row(row).owned();
            let content = contents.row(row).owned();
            let order = orders.as_ref().map_or_else(|| content.clone(), |orders| orders.row(row).owned());
            let partition = self.partitions.entry(key.clone()).or_insert_with(|| Partition { time: times[row], ..Partition::default() });
            let entry = (order, content);
            let count = partition.rows.entry(entry.clone()).or_default();
            *count += counts[row];
            if *count == 0 {
                partition.rows.remove(&entry);
            }
            // Each entry is there at least once, so that those behind the limit never count.
            if !self.retracts && partition.rows.len() > self.limit {
                partition.rows.pop_last();
            }
            partition.time = partition.time.max(times[row]);
            touched.push(key);
        }
        touched.sort_unstable();
        touched.dedup();
        for key in &touched {
            if let Some(partition) = self.partitions.get(key) {
                self.timers.set(partition.time.saturating_add(self.ttl), key);
            }
        }
        Ok(touched)
    }

    fn emit(&self, changes: &[(OwnedRow, u64, Micros)], retract: bool, output: &mut Output) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let meta = meta_after_rows(changes.iter().map(|c| c.2).collect(), retract);
        let own = self.row_codec.decode(changes.iter().map(|c| c.0.row()))?;
        let number: ArrayRef = Arc::new(UInt64Array::from_iter_values(changes.iter().map(|c| c.1)));
        let columns = meta.into_iter().chain(own.into_iter().take(self.columns)).chain([number]).collect();
        output.rows.push(rows::batch(&self.schema, columns));
        Ok(())
    }
}

impl Operator for TopRows {
    fn on_epoch(&mut self, info: &EpochInfo, inputs: &mut [Option<RecordBatch>], output: &mut Output) -> Result<()> {
        let (mut taken_back, mut given) = (Vec::new(), Vec::new());
        let numbered = |rows: Vec<OwnedRow>, time: Micros| rows.into_iter().zip(1_u64..).map(move |(row, number)| (row, number, time));
        if let Some(rows) = inputs[0].take() {
            let rows = canonical(rows);
            let keys: Vec<ArrayRef> = self.partition.iter().map(|c| rows.column(*c).clone()).collect();
            let keys = self.partition_codec.encode(&keys, rows.num_rows())?;
            let mut before: BTreeMap<OwnedRow, Vec<OwnedRow>> = BTreeMap::new();
            for row in 0..rows.num_rows() {
                if let std::collections::btree_map::Entry::Vacant(entry) = before.entry(keys.row(row).owned()) {
                    let first = self.partitions.get(entry.key()).map(|p| p.first(self.limit)).unwrap_or_default();
                    entry.insert(first);
                }
            }
            let counts: Vec<i64> = rows::retractions(&rows).values().iter().map(|retract| if retract { -1 } else { 1 }).collect();
            let times = rows::times(&rows).to_vec();
            for key in self.put(&rows, META, &counts, &times)? {
                let before = before.remove(&key).unwrap_or_default();
                let Some(partition) = self.partitions.get(&key) else { continue };
                let (now, time) = (partition.first(self.limit), partition.time);
                if partition.rows.is_empty() {
                    self.partitions.remove(&key);
                }
                for place in 0..before.len().max(now.len()) {
                    let (old, new) = (before.get(place), now.get(place));
                    if old != new {
                        let number = place as u64 + 1;
                        taken_back.extend(old.map(|row| (row.clone(), number, time)));
                        given.extend(new.map(|row| (row.clone(), number, time)));
                    }
                }
            }
        }
        for key in self.timers.due(info.watermark) {
            if self.partitions.get(&key).is_some_and(|p| p.time.saturating_add(self.ttl) <= info.watermark)
                && let Some(partition) = self.partitions.remove(&key)
            {
                taken_back.extend(numbered(partition.first(self.limit), partition.time));
            }
        }
        self.emit(&taken_back, true, output)?;
        self.emit(&given, false, output)
    }

    fn state(&mut self) -> Option<&mut dyn GroupedState> {
        Some(self)
    }
}

impl GroupedState for TopRows {
    fn dump(&mut self) -> Result<Vec<(KeyGroup, RecordBatch)>> {
        let mut partitions: Vec<(&OwnedRow, &Partition)> = self.partitions.iter().collect();
        partitions.sort_by(|a, b| a.0.cmp(b.0));
        let entries = partitions.into_iter().flat_map(|(_, p)| p.rows.iter().map(|((_, row), count)| (p.time, *count, row)));
        let entries: Vec<(Micros, i64, &OwnedRow)> = entries.collect();
        let own = self.row_codec.decode(entries.iter().map(|e| e.2.row()))?;
        let keys: Vec<ArrayRef> = self.partition.iter().map(|c| own[c - META].clone()).collect();
        let hashes = hashes(&keys, entries.len());
        let times: ArrayRef = Arc::new(Int64Array::from_iter_values(entries.iter().map(|e| e.0)));
        let counts: ArrayRef = Arc::new(Int64Array::from_iter_values(entries.iter().map(|e| e.1)));
        Ok(by_group(&self.state_schema, [times, counts].into_iter().chain(own).collect(), &hashes))
    }

    fn restore(&mut self, _watermark: Micros, rows: &RecordBatch) -> Result<()> {
        let ints = |column: usize| rows.column(column).as_primitive::<Int64Type>().values().to_vec();
        let (times, counts) = (ints(1), ints(2));
        self.put(rows, 3, &counts, &times)?;
        Ok(())
    }
}
