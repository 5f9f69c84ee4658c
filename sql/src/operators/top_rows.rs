//! `ROW_NUMBER() OVER (PARTITION BY … ORDER BY …)` without a window, with a condition on the number: the first rows of each partition, of all so far.
//!
//! # Design
//!
//! A row is kept as bytes that compare as rows do: first what it is ordered by, then all its values, so that rows that are alike in what they are ordered by are
//! ordered by all their values. A partition is its rows in order; where rows only come, those behind the limit are never kept. Few rows are in a sorted
//! array, which for the usual partition of one to ten is smaller and quicker than a tree.
//!
//! An epoch's rows are taken partition by partition. The first rows are compared place by place with those before: what has changed is taken back and
//! given anew. A partition without a row for `ttl` of event time is taken back and forgotten.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, UInt64Array};
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, Schema, SchemaRef};
use arrow::row::{RowConverter, Rows};
use datafusion::error::Result;
use hashbrown::HashMap;
use orderflow_operators::epoch::{EpochInfo, Micros};
use orderflow_operators::keys::KeyGroup;

use super::row_number::{SortKey, sort_converter};
use super::state::by_group;
use super::timers::Timers;
use super::{GroupedState, Operator, Output};
use crate::rows::{self, META, RowCodec, canonical, hashes, meta_after_rows, row_converter};

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
    row_converter: RowConverter,
    partitions: HashMap<Rc<[u8]>, Partition>,
    timers: Timers<Rc<[u8]>>,
}

/// A row: its bytes, and where in them its values begin.
#[derive(Clone)]
struct Ranked {
    bytes: Rc<[u8]>,
    values_at: u32,
}

impl Ranked {
    fn values(&self) -> &[u8] {
        &self.bytes[self.values_at as usize..]
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}
impl Eq for Ranked {}
impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.bytes.cmp(&other.bytes)
    }
}
impl Borrow<[u8]> for Ranked {
    fn borrow(&self) -> &[u8] {
        &self.bytes
    }
}

/// Rows in order, and how often each is there.
enum Ordered {
    /// Of rows that only come: at most as many as the limit.
    Few(Vec<(Ranked, i64)>),
    Many(BTreeMap<Ranked, i64>),
}

/// A larger limit is one for trees.
const FEW_MAX: usize = 256;

struct Partition {
    rows: Ordered,
    /// Of its last row.
    time: Micros,
}

impl Partition {
    fn new(limit: usize, retracts: bool, time: Micros) -> Partition {
        let rows = if retracts || limit > FEW_MAX { Ordered::Many(BTreeMap::new()) } else { Ordered::Few(Vec::new()) };
        Partition { rows, time }
    }

    /// Adds a row so many times. Of rows that only come, none behind the `limit` is kept.
    fn add(&mut self, bytes: &[u8], values_at: usize, count: i64, limit: usize, retracts: bool) {
        let ranked = || Ranked { bytes: bytes.into(), values_at: values_at as u32 };
        match &mut self.rows {
            Ordered::Few(rows) => match rows.binary_search_by(|(row, _)| row.bytes.as_ref().cmp(bytes)) {
                Ok(at) => rows[at].1 += count,
                Err(at) if at >= limit => {}
                Err(at) => {
                    // Each is there at least once, so that those behind the limit never count.
                    rows.truncate(limit - 1);
                    if rows.capacity() == rows.len() {
                        rows.reserve_exact((rows.len() + 1).next_power_of_two().min(limit) - rows.len());
                    }
                    rows.insert(at, (ranked(), count));
                }
            },
            Ordered::Many(rows) => {
                match rows.get_mut(bytes) {
                    None => {
                        rows.insert(ranked(), count);
                    }
                    Some(before) if *before + count == 0 => {
                        rows.remove(bytes);
                    }
                    Some(before) => *before += count,
                }
                if !retracts && rows.len() > limit {
                    rows.pop_last();
                }
            }
        }
    }

    fn iter(&self) -> Box<dyn Iterator<Item = (&Ranked, i64)> + '_> {
        match &self.rows {
            Ordered::Few(rows) => Box::new(rows.iter().map(|(row, count)| (row, *count))),
            Ordered::Many(rows) => Box::new(rows.iter().map(|(row, count)| (row, *count))),
        }
    }

    fn is_empty(&self) -> bool {
        match &self.rows {
            Ordered::Few(rows) => rows.is_empty(),
            Ordered::Many(rows) => rows.is_empty(),
        }
    }

    fn first(&self, limit: usize) -> Vec<Ranked> {
        let repeated = self.iter().flat_map(|(row, count)| std::iter::repeat_n(row, count.max(0) as usize));
        repeated.take(limit).cloned().collect()
    }
}

/// Rows of a batch, encoded.
struct Encoded {
    partitions: Rows,
    orders: Option<Rows>,
    values: Rows,
}

impl Encoded {
    /// A row's bytes, written to `bytes`; returns where its values begin.
    fn write(&self, row: usize, bytes: &mut Vec<u8>) -> usize {
        bytes.clear();
        if let Some(orders) = &self.orders {
            bytes.extend_from_slice(orders.row(row).data());
        }
        let values_at = bytes.len();
        bytes.extend_from_slice(self.values.row(row).data());
        values_at
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
            row_converter: row_converter(&input.fields()[META..]),
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

    /// The rows whose columns begin at `first`.
    fn encode(&self, rows: &RecordBatch, first: usize) -> Result<Encoded> {
        let of =
            |columns: &mut dyn Iterator<Item = usize>| columns.map(|c| rows.column(c - META + first).clone()).collect::<Vec<ArrayRef>>();
        Ok(Encoded {
            partitions: self.partition_codec.encode(&of(&mut self.partition.iter().copied()), rows.num_rows())?,
            orders: match self.order.as_slice() {
                [] => None,
                order => Some(self.order_converter.convert_columns(&of(&mut order.iter().map(|k| k.column)))?),
            },
            values: self.row_converter.convert_columns(&rows.columns()[first..])?,
        })
    }

    /// Adds rows to their partitions; says of each partition what its first rows were before.
    fn put(&mut self, encoded: &Encoded, counts: &[i64], times: &[Micros]) -> Vec<(Rc<[u8]>, Vec<Ranked>)> {
        // Rows by partition, in their order.
        let mut group_of: HashMap<&[u8], usize> = HashMap::new();
        let mut groups: Vec<(usize, usize)> = Vec::new();
        let mut next: Vec<usize> = vec![usize::MAX; counts.len()];
        for row in 0..counts.len() {
            match group_of.entry(encoded.partitions.row(row).data()) {
                hashbrown::hash_map::Entry::Vacant(entry) => {
                    entry.insert(groups.len());
                    groups.push((row, row));
                }
                hashbrown::hash_map::Entry::Occupied(entry) => {
                    let (_, last) = &mut groups[*entry.get()];
                    next[*last] = row;
                    *last = row;
                }
            }
        }
        drop(group_of);
        let mut touched = Vec::with_capacity(groups.len());
        let mut bytes = Vec::new();
        for (mut row, _) in groups {
            let key = encoded.partitions.row(row).data();
            let (key, before) = match self.partitions.get_key_value(key) {
                Some((key, partition)) => (key.clone(), partition.first(self.limit)),
                None => {
                    let key: Rc<[u8]> = key.into();
                    let time = times[row];
                    self.partitions.insert(key.clone(), Partition::new(self.limit, self.retracts, time));
                    self.timers.set(time.saturating_add(self.ttl), &key);
                    (key, Vec::new())
                }
            };
            let Some(partition) = self.partitions.get_mut(&key) else { continue };
            while row != usize::MAX {
                let values_at = encoded.write(row, &mut bytes);
                partition.add(&bytes, values_at, counts[row], self.limit, self.retracts);
                partition.time = partition.time.max(times[row]);
                row = next[row];
            }
            touched.push((key, before));
        }
        touched
    }

    fn emit(&self, changes: &[(Ranked, u64, Micros)], retract: bool, output: &mut Output) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let meta = meta_after_rows(changes.iter().map(|c| c.2).collect(), retract);
        let own = self.decode(changes.iter().map(|c| &c.0))?;
        let number: ArrayRef = Arc::new(UInt64Array::from_iter_values(changes.iter().map(|c| c.1)));
        let columns = meta.into_iter().chain(own.into_iter().take(self.columns)).chain([number]).collect();
        output.rows.push(rows::batch(&self.schema, columns));
        Ok(())
    }

    /// The columns behind [`META`].
    fn decode<'a>(&self, rows: impl Iterator<Item = &'a Ranked>) -> Result<Vec<ArrayRef>> {
        let parser = self.row_converter.parser();
        Ok(self.row_converter.convert_rows(rows.map(|row| parser.parse(row.values())))?)
    }
}

impl Operator for TopRows {
    fn on_epoch(&mut self, info: &EpochInfo, inputs: &mut [Option<RecordBatch>], output: &mut Output) -> Result<()> {
        let (mut taken_back, mut given) = (Vec::new(), Vec::new());
        let numbered = |rows: Vec<Ranked>, time: Micros| rows.into_iter().zip(1_u64..).map(move |(row, number)| (row, number, time));
        if let Some(rows) = inputs[0].take() {
            let rows = canonical(rows);
            let encoded = self.encode(&rows, META)?;
            let counts: Vec<i64> = rows::retractions(&rows).values().iter().map(|retract| if retract { -1 } else { 1 }).collect();
            for (key, before) in self.put(&encoded, &counts, rows::times(&rows)) {
                let Some(partition) = self.partitions.get(&key) else { continue };
                let (now, time) = (partition.first(self.limit), partition.time);
                if partition.is_empty() {
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
            let Some(due) = self.partitions.get(&key).map(|p| p.time.saturating_add(self.ttl)) else { continue };
            if due > info.watermark {
                // It had rows since.
                self.timers.set(due, &key);
            } else if let Some(partition) = self.partitions.remove(&key) {
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
        let mut partitions: Vec<(&Rc<[u8]>, &Partition)> = self.partitions.iter().collect();
        partitions.sort_by(|a, b| a.0.cmp(b.0));
        let entries = partitions.into_iter().flat_map(|(_, p)| p.iter().map(|(row, count)| (p.time, count, row)));
        let entries: Vec<(Micros, i64, &Ranked)> = entries.collect();
        let own = self.decode(entries.iter().map(|e| e.2))?;
        let keys: Vec<ArrayRef> = self.partition.iter().map(|c| own[c - META].clone()).collect();
        let hashes = hashes(&keys, entries.len());
        let times: ArrayRef = Arc::new(Int64Array::from_iter_values(entries.iter().map(|e| e.0)));
        let counts: ArrayRef = Arc::new(Int64Array::from_iter_values(entries.iter().map(|e| e.1)));
        Ok(by_group(&self.state_schema, [times, counts].into_iter().chain(own).collect(), &hashes))
    }

    fn restore(&mut self, _watermark: Micros, rows: &RecordBatch) -> Result<()> {
        let ints = |column: usize| rows.column(column).as_primitive::<Int64Type>().values().to_vec();
        let (times, counts) = (ints(1), ints(2));
        let encoded = self.encode(rows, 3)?;
        self.put(&encoded, &counts, &times);
        Ok(())
    }
}
