//! `GROUP BY tumble(…)` and `GROUP BY hop(…)`.
//!
//! # Design
//!
//! Event time is cut into *panes* as wide as the slide. A pane has the accumulators of its groups. When the watermark has passed a pane's end, no row
//! can come to it any more, and it is kept as the states of its accumulators, in columns. When it has passed a window's end, the states of the window's
//! panes are merged and evaluated; `tumble` has one pane a window, which is evaluated as it is.
//!
//! A row is late when its pane is over at the start of its epoch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StructArray, TimestampMicrosecondArray, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use datafusion::error::Result;
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;
use hashbrown::HashMap;
use orderflow_operators::epoch::{EpochInfo, Micros};
use orderflow_operators::keys::KeyGroup;

use super::aggregates::{Accumulators, Aggregates};
use super::state::{by_group, concat_groups};
use super::{GroupedState, Operator, Output, Reject};
use crate::rows::{self, META, canonical, hashes, meta_after_rows};
use crate::stage::windows::window_type;

/// Aggregates of overlapping or adjoining windows.
///
/// Input: the keys behind the [`META`] columns, then what the aggregates' arguments name. Output: keys and the window at its place, then the aggregates.
pub(crate) struct WindowAggregate {
    slide: Micros,
    width: Micros,
    keys: usize,
    key_schema: SchemaRef,
    state_schema: SchemaRef,
    window_index: usize,
    aggregates: Aggregates,
    schema: SchemaRef,
    /// By start.
    panes: BTreeMap<Micros, Pane>,
}

enum Pane {
    Open(Groups),
    /// Keys, then states.
    Closed(Vec<ArrayRef>),
}

/// Groups with their accumulators.
pub(crate) struct Groups {
    values: Option<Box<dyn GroupValues>>,
    accumulators: Accumulators,
    indices: Vec<usize>,
    total: usize,
}

impl Groups {
    pub fn new(key_schema: &SchemaRef, aggregates: &Aggregates) -> Result<Groups> {
        let values = if key_schema.fields().is_empty() { None } else { Some(new_group_values(key_schema.clone(), &GroupOrdering::None)?) };
        Ok(Groups { values, accumulators: aggregates.accumulators()?, indices: Vec::new(), total: 0 })
    }

    /// Finds the groups of some rows; new keys make new ones.
    fn intern(&mut self, keys: &[ArrayRef], rows: usize) -> Result<()> {
        match &mut self.values {
            Some(values) => {
                values.intern(keys, &mut self.indices)?;
                self.total = values.len();
            }
            None => {
                self.indices.clear();
                self.indices.resize(rows, 0);
                self.total = self.total.max(usize::from(rows > 0));
            }
        }
        Ok(())
    }

    pub fn update(&mut self, aggregates: &Aggregates, keys: &[ArrayRef], rows: &RecordBatch) -> Result<()> {
        self.intern(keys, rows.num_rows())?;
        aggregates.update(&mut self.accumulators, rows, &self.indices, self.total)
    }

    pub fn merge(&mut self, aggregates: &Aggregates, keys: &[ArrayRef], states: &[ArrayRef], rows: usize) -> Result<()> {
        self.intern(keys, rows)?;
        aggregates.merge(&mut self.accumulators, states, &self.indices, self.total)
    }

    fn emit_keys(&mut self) -> Result<Vec<ArrayRef>> {
        match &mut self.values {
            Some(values) => values.emit(datafusion::logical_expr::EmitTo::All),
            None => Ok(Vec::new()),
        }
    }

    /// Keys, then states.
    pub fn into_states(mut self, aggregates: &Aggregates) -> Result<Vec<ArrayRef>> {
        let mut columns = self.emit_keys()?;
        columns.extend(aggregates.state(&mut self.accumulators)?);
        Ok(columns)
    }

    /// How many groups, their keys, their values.
    pub fn into_values(mut self, aggregates: &Aggregates) -> Result<(usize, Vec<ArrayRef>, Vec<ArrayRef>)> {
        Ok((self.total, self.emit_keys()?, aggregates.evaluate(&mut self.accumulators)?))
    }
}

/// The schema of the first columns behind [`META`].
pub(crate) fn key_schema(input: &SchemaRef, keys: usize) -> SchemaRef {
    Arc::new(Schema::new(input.fields()[META..META + keys].to_vec()))
}

/// A column of windows.
pub(crate) fn window_column(starts: Vec<Micros>, ends: Vec<Micros>) -> ArrayRef {
    let DataType::Struct(fields) = window_type() else { unreachable!("a window is a struct") };
    let columns: Vec<ArrayRef> = vec![Arc::new(TimestampMicrosecondArray::from(starts)), Arc::new(TimestampMicrosecondArray::from(ends))];
    Arc::new(StructArray::new(fields, columns, None))
}

impl WindowAggregate {
    pub fn new(
        [slide, width]: [Micros; 2],
        input: &SchemaRef,
        keys: usize,
        window_index: usize,
        aggregates: Aggregates,
        schema: SchemaRef,
    ) -> Self {
        let key_schema = key_schema(input, keys);
        let state_fields = [Field::new("key", DataType::Utf8, false), Field::new("pane", DataType::Int64, false)];
        let fields = state_fields.into_iter().map(Arc::new).chain(key_schema.fields().iter().cloned());
        let fields = fields.chain(aggregates.state_fields().iter().map(|f| Arc::new(f.as_ref().clone().with_nullable(true))));
        let state_schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        WindowAggregate { slide, width, keys, key_schema, state_schema, window_index, aggregates, schema, panes: BTreeMap::new() }
    }

    fn pane_of(&self, time: Micros) -> Micros {
        time.saturating_sub(time.rem_euclid(self.slide))
    }

    fn add(&mut self, pane: Micros, rows: &RecordBatch) -> Result<()> {
        let keys = &rows.columns()[META..META + self.keys];
        let entry = match self.panes.entry(pane) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => entry.insert(Pane::Open(Groups::new(&self.key_schema, &self.aggregates)?)),
        };
        let Pane::Open(groups) = entry else { unreachable!("a row of a pane that is closed is late") };
        groups.update(&self.aggregates, keys, rows)?;
        if !self.aggregates.is_exact() {
            self.fold(pane)?;
        }
        Ok(())
    }

    /// Makes the accumulators of a pane anew, of their states.
    fn fold(&mut self, pane: Micros) -> Result<Option<Vec<ArrayRef>>> {
        if !matches!(self.panes.get(&pane), Some(Pane::Open(_))) {
            return Ok(None);
        }
        let Some(Pane::Open(groups)) = self.panes.remove(&pane) else { return Ok(None) };
        let columns = groups.into_states(&self.aggregates)?;
        self.put_states(pane, &columns)?;
        Ok(Some(columns))
    }

    fn put_states(&mut self, pane: Micros, columns: &[ArrayRef]) -> Result<()> {
        let mut groups = match self.panes.remove(&pane) {
            Some(Pane::Open(groups)) => groups,
            _ => Groups::new(&self.key_schema, &self.aggregates)?,
        };
        let rows = columns.first().map_or(0, |c| c.len());
        groups.merge(&self.aggregates, &columns[..self.keys], &columns[self.keys..], rows)?;
        self.panes.insert(pane, Pane::Open(groups));
        Ok(())
    }

    fn emit(&self, start: Micros, end: Micros, groups: Groups, output: &mut Output) -> Result<()> {
        let (count, mut columns, values) = groups.into_values(&self.aggregates)?;
        columns.insert(self.window_index, window_column(vec![start; count], vec![end; count]));
        let meta = meta_after_rows(vec![end - 1; count], false);
        output.rows.push(rows::batch(&self.schema, meta.into_iter().chain(columns).chain(values).collect()));
        Ok(())
    }

    fn close(&mut self, info: &EpochInfo, output: &mut Output) -> Result<()> {
        let watermark = info.watermark;
        if self.slide == self.width {
            while let Some(first) = self.panes.first_entry().filter(|e| e.key().saturating_add(self.width) <= watermark) {
                let (start, pane) = first.remove_entry();
                let groups = match pane {
                    Pane::Open(groups) => groups,
                    Pane::Closed(columns) => {
                        let mut groups = Groups::new(&self.key_schema, &self.aggregates)?;
                        let rows = columns.first().map_or(0, |c| c.len());
                        groups.merge(&self.aggregates, &columns[..self.keys], &columns[self.keys..], rows)?;
                        groups
                    }
                };
                self.emit(start, start.saturating_add(self.width), groups, output)?;
            }
            return Ok(());
        }
        let mut ends = BTreeSet::new();
        let (slide, width) = (self.slide, self.width);
        for (&start, pane) in &mut self.panes {
            if start.saturating_add(slide) > watermark {
                break;
            }
            if let Pane::Open(groups) = pane {
                let open = std::mem::replace(groups, Groups::new(&self.key_schema, &self.aggregates)?);
                *pane = Pane::Closed(open.into_states(&self.aggregates)?);
            }
            let all = (1..=width / slide).map(|n| start.saturating_add(n * slide));
            ends.extend(all.filter(|end| *end > info.watermark_before && *end <= watermark));
        }
        for end in ends {
            let mut groups = Groups::new(&self.key_schema, &self.aggregates)?;
            for pane in self.panes.range(end.saturating_sub(width)..end).map(|(_, pane)| pane) {
                let Pane::Closed(columns) = pane else { unreachable!("panes of a window that is over are over") };
                let rows = columns.first().map_or(0, |c| c.len());
                groups.merge(&self.aggregates, &columns[..self.keys], &columns[self.keys..], rows)?;
            }
            self.emit(end.saturating_sub(width), end, groups, output)?;
        }
        while self.panes.first_entry().is_some_and(|e| e.key().saturating_add(width) <= watermark) {
            self.panes.pop_first();
        }
        Ok(())
    }
}

impl Operator for WindowAggregate {
    fn on_epoch(&mut self, info: &EpochInfo, inputs: &mut [Option<RecordBatch>], output: &mut Output) -> Result<()> {
        if let Some(rows) = inputs[0].take() {
            let rows = canonical(rows);
            // Rows mostly come in the order of their times: the pane of the row before is tried first.
            let mut by_pane: Vec<(Micros, Vec<u32>)> = Vec::new();
            let mut place_of: HashMap<Micros, usize> = HashMap::new();
            let mut at = 0;
            let mut late = Vec::new();
            for (row, &time) in rows::times(&rows).iter().enumerate() {
                let is_in = |pane: Micros| time >= pane && time < pane.saturating_add(self.slide);
                if !by_pane.get(at).is_some_and(|(pane, _)| is_in(*pane)) {
                    let pane = self.pane_of(time);
                    if pane.saturating_add(self.slide) <= info.watermark_before {
                        late.push(row as u32);
                        continue;
                    }
                    at = *place_of.entry(pane).or_insert_with(|| {
                        by_pane.push((pane, Vec::new()));
                        by_pane.len() - 1
                    });
                }
                by_pane[at].1.push(row as u32);
            }
            by_pane.sort_unstable_by_key(|(pane, _)| *pane);
            let part = |indices: Vec<u32>| take_record_batch(&rows, &UInt32Array::from(indices));
            for (pane, indices) in by_pane {
                if indices.len() == rows.num_rows() {
                    self.add(pane, &rows)?;
                } else {
                    self.add(pane, &part(indices)?)?;
                }
            }
            if !late.is_empty() {
                output.rejects.add(Reject::Late, "its window was over", &part(late)?);
            }
        }
        self.close(info, output)
    }

    fn state(&mut self) -> Option<&mut dyn GroupedState> {
        Some(self)
    }
}

impl GroupedState for WindowAggregate {
    fn dump(&mut self) -> Result<Vec<(KeyGroup, RecordBatch)>> {
        let mut parts = Vec::new();
        let starts: Vec<Micros> = self.panes.keys().copied().collect();
        for start in starts {
            let folded = self.fold(start)?;
            let columns = match (folded, self.panes.get(&start)) {
                (Some(columns), _) => columns,
                (None, Some(Pane::Closed(columns))) => columns.clone(),
                _ => continue,
            };
            let rows = columns.first().map_or(0, |c| c.len());
            let hashes = hashes(&columns[..self.keys], rows);
            let pane: ArrayRef = Arc::new(Int64Array::from(vec![start; rows]));
            parts.extend(by_group(&self.state_schema, std::iter::once(pane).chain(columns).collect(), &hashes));
        }
        Ok(concat_groups(parts))
    }

    fn restore(&mut self, watermark: Micros, rows: &RecordBatch) -> Result<()> {
        let mut by_pane: BTreeMap<Micros, Vec<u32>> = BTreeMap::new();
        for (row, &pane) in rows.column(1).as_primitive::<Int64Type>().values().iter().enumerate() {
            by_pane.entry(pane).or_default().push(row as u32);
        }
        for (pane, indices) in by_pane {
            let part = take_record_batch(rows, &UInt32Array::from(indices))?;
            let columns = part.columns()[2..].to_vec();
            if pane.saturating_add(self.slide) > watermark {
                self.put_states(pane, &columns)?;
                continue;
            }
            let columns = match self.panes.remove(&pane) {
                Some(Pane::Closed(before)) => {
                    let pairs = before.iter().zip(&columns);
                    pairs.map(|(a, b)| Ok(arrow::compute::concat(&[a, b])?)).collect::<Result<Vec<_>>>()?
                }
                _ => columns,
            };
            self.panes.insert(pane, Pane::Closed(columns));
        }
        Ok(())
    }
}
