//! `GROUP BY session(…)`.
//!
//! # Design
//!
//! A session is a key's rows with no more than the gap between one and the next. What is known of an open one is its first and last event time and the
//! states of its aggregates, as values. An epoch's rows are sorted by key and time and cut into runs, which go through accumulators at once, a
//! group for each run; a run that is near enough to open sessions is merged with them, by their states. A session is over when the watermark
//! has passed its last row's time and the gap, and no row that could still come is near enough.
//!
//! A row is late when a session of this row alone is over at the start of its epoch.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use arrow::row::OwnedRow;
use datafusion::common::ScalarValue;
use datafusion::error::Result;
use hashbrown::HashMap;
use orderflow_operators::epoch::{EpochInfo, Micros};
use orderflow_operators::keys::KeyGroup;

use super::aggregates::{Aggregates, columns_of, values_at};
use super::state::by_group;
use super::window_aggregate::{key_schema, window_column};
use super::{GroupedState, Operator, Output, Reject};
use crate::rows::{self, META, RowCodec, canonical, hashes, meta_after_rows};

/// Aggregates of sessions. Input and output as those of a [`WindowAggregate`](super::WindowAggregate).
pub(crate) struct SessionAggregate {
    gap: Micros,
    keys: usize,
    codec: RowCodec,
    state_schema: SchemaRef,
    window_index: usize,
    aggregates: Aggregates,
    schema: SchemaRef,
    /// By key, by start.
    sessions: HashMap<OwnedRow, Vec<Session>>,
    /// Keys by the times at which a session of theirs may be over.
    timers: BTreeMap<Micros, Vec<OwnedRow>>,
}

#[derive(Clone)]
struct Session {
    first: Micros,
    last: Micros,
    states: Vec<ScalarValue>,
}

/// Rows of one key in this epoch that belong together.
struct Run {
    first: Micros,
    last: Micros,
    key: OwnedRow,
}

/// What a session is made of.
enum Part {
    Open(Session),
    Run(usize),
}

impl SessionAggregate {
    pub fn new(gap: Micros, input: &SchemaRef, keys: usize, window_index: usize, aggregates: Aggregates, schema: SchemaRef) -> Self {
        let key_schema = key_schema(input, keys);
        let codec = RowCodec::new(key_schema.fields());
        let int = |name| Arc::new(Field::new(name, DataType::Int64, false));
        let fields = [Arc::new(Field::new("key", DataType::Utf8, false)), int("first"), int("last")];
        let fields = fields.into_iter().chain(key_schema.fields().iter().cloned());
        let fields = fields.chain(aggregates.state_fields().iter().map(|f| Arc::new(f.as_ref().clone().with_nullable(true))));
        let state_schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        SessionAggregate {
            gap,
            keys,
            codec,
            state_schema,
            window_index,
            aggregates,
            schema,
            sessions: HashMap::new(),
            timers: BTreeMap::new(),
        }
    }

    /// Cuts rows into runs; returns them with the states of their aggregates.
    fn runs(&self, rows: &RecordBatch) -> Result<(Vec<Run>, Vec<ArrayRef>)> {
        let times = rows::times(rows);
        let keys = self.codec.encode(&rows.columns()[META..META + self.keys], rows.num_rows())?;
        let mut order: Vec<u32> = (0..rows.num_rows() as u32).collect();
        // Stable: rows of one time stay in canonical order.
        order.sort_by(|a, b| {
            let (a, b) = (*a as usize, *b as usize);
            keys.row(a).cmp(&keys.row(b)).then(times[a].cmp(&times[b]))
        });
        let mut runs: Vec<Run> = Vec::new();
        let mut groups = vec![0; rows.num_rows()];
        let mut before: Option<usize> = None;
        for &row in &order {
            let row = row as usize;
            let follows = before.is_some_and(|b| keys.row(b) == keys.row(row) && times[row].saturating_sub(times[b]) <= self.gap);
            match runs.last_mut().filter(|_| follows) {
                Some(run) => run.last = times[row],
                None => runs.push(Run { first: times[row], last: times[row], key: keys.row(row).owned() }),
            }
            groups[row] = runs.len() - 1;
            before = Some(row);
        }
        let mut accumulators = self.aggregates.accumulators()?;
        self.aggregates.update(&mut accumulators, rows, &groups, runs.len())?;
        Ok((runs, self.aggregates.state(&mut accumulators)?))
    }

    /// Puts runs to the sessions that they belong to.
    fn add(&mut self, runs: &[Run], states: &[ArrayRef]) -> Result<()> {
        let mut merged: Vec<(usize, Vec<Part>)> = Vec::new();
        let mut index = 0;
        while index < runs.len() {
            // Runs of one key stand together.
            let end = index + runs[index..].iter().take_while(|run| run.key == runs[index].key).count();
            let open = self.sessions.remove(&runs[index].key).unwrap_or_default();
            let mut parts: Vec<(Micros, Micros, Part)> = open.into_iter().map(|s| (s.first, s.last, Part::Open(s))).collect();
            parts.extend((index..end).map(|r| (runs[r].first, runs[r].last, Part::Run(r))));
            parts.sort_by_key(|(first, ..)| *first);
            let mut last = None;
            for (first, until, part) in parts {
                match (last, merged.last_mut()) {
                    (Some(end), Some((_, session))) if first.saturating_sub(end) <= self.gap => session.push(part),
                    _ => merged.push((index, vec![part])),
                }
                last = if last.is_some_and(|end| first.saturating_sub(end) <= self.gap) { last.max(Some(until)) } else { Some(until) };
            }
            index = end;
        }
        self.put(runs, states, merged)
    }

    fn put(&mut self, runs: &[Run], states: &[ArrayRef], merged: Vec<(usize, Vec<Part>)>) -> Result<()> {
        let mut accumulators = self.aggregates.accumulators()?;
        let many = merged.iter().filter(|(_, parts)| parts.len() > 1).count();
        let (mut old, mut old_groups, mut new, mut new_groups, mut group) = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), 0);
        for (_, parts) in merged.iter().filter(|(_, parts)| parts.len() > 1) {
            for part in parts {
                match part {
                    Part::Open(session) => {
                        old.push(session.states.as_slice());
                        old_groups.push(group);
                    }
                    Part::Run(run) => {
                        new.push(*run as u32);
                        new_groups.push(group);
                    }
                }
            }
            group += 1;
        }
        if many > 0 {
            // What was there before goes first.
            if !old.is_empty() {
                let columns = columns_of(old.into_iter(), self.aggregates.state_fields())?;
                self.aggregates.merge(&mut accumulators, &columns, &old_groups, many)?;
            }
            let new = UInt32Array::from(new);
            let columns = states.iter().map(|s| Ok(arrow::compute::take(s, &new, None)?)).collect::<Result<Vec<_>>>()?;
            self.aggregates.merge(&mut accumulators, &columns, &new_groups, many)?;
        }
        let merged_states = if many > 0 { self.aggregates.state(&mut accumulators)? } else { Vec::new() };
        let mut group = 0;
        for (run, parts) in merged {
            let ends = parts.iter().map(|part| match part {
                Part::Open(session) => (session.first, session.last),
                Part::Run(run) => (runs[*run].first, runs[*run].last),
            });
            let (first, last) = ends.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))).expect("a session has a part");
            let mut parts = parts.into_iter();
            let session = match (parts.next(), parts.next()) {
                (Some(Part::Open(session)), None) => session,
                (Some(Part::Run(run)), None) => Session { first, last, states: values_at(states, run)? },
                _ => {
                    group += 1;
                    Session { first, last, states: values_at(&merged_states, group - 1)? }
                }
            };
            self.insert(runs[run].key.clone(), session);
        }
        Ok(())
    }

    fn insert(&mut self, key: OwnedRow, session: Session) {
        self.timers.entry(session.last.saturating_add(self.gap)).or_default().push(key.clone());
        self.sessions.entry(key).or_default().push(session);
    }

    fn close(&mut self, watermark: Micros, output: &mut Output) -> Result<()> {
        let mut over: Vec<(OwnedRow, Session)> = Vec::new();
        while let Some(first) = self.timers.first_entry().filter(|e| *e.key() <= watermark) {
            for key in first.remove() {
                let Some(sessions) = self.sessions.get_mut(&key) else { continue };
                let gap = self.gap;
                over.extend(sessions.extract_if(.., |s| s.last.saturating_add(gap) <= watermark).map(|s| (key.clone(), s)));
                if sessions.is_empty() {
                    self.sessions.remove(&key);
                }
            }
        }
        if over.is_empty() {
            return Ok(());
        }
        let states = columns_of(over.iter().map(|(_, s)| s.states.as_slice()), self.aggregates.state_fields())?;
        let mut accumulators = self.aggregates.accumulators()?;
        let groups: Vec<usize> = (0..over.len()).collect();
        self.aggregates.merge(&mut accumulators, &states, &groups, over.len())?;
        let values = self.aggregates.evaluate(&mut accumulators)?;
        let mut columns = self.codec.decode(over.iter().map(|(key, _)| key.row()))?;
        let ends: Vec<Micros> = over.iter().map(|(_, s)| s.last.saturating_add(self.gap)).collect();
        let meta = meta_after_rows(ends.iter().map(|end| end - 1).collect(), false);
        columns.insert(self.window_index, window_column(over.iter().map(|(_, s)| s.first).collect(), ends));
        output.rows.push(rows::batch(&self.schema, meta.into_iter().chain(columns).chain(values).collect()));
        Ok(())
    }
}

impl Operator for SessionAggregate {
    fn on_epoch(&mut self, info: &EpochInfo, inputs: &mut [Option<RecordBatch>], output: &mut Output) -> Result<()> {
        if let Some(rows) = inputs[0].take() {
            let mut rows = canonical(rows);
            let is_late = |time: &Micros| time.saturating_add(self.gap) <= info.watermark_before;
            if rows::times(&rows).iter().any(is_late) {
                let late: arrow::array::BooleanArray = rows::times(&rows).iter().map(|t| Some(is_late(t))).collect();
                let rejected = arrow::compute::filter_record_batch(&rows, &late)?;
                output.rejects.add(Reject::Late, "its session was over", &rejected);
                rows = arrow::compute::filter_record_batch(&rows, &arrow::compute::not(&late)?)?;
            }
            if rows.num_rows() > 0 {
                let (runs, states) = self.runs(&rows)?;
                self.add(&runs, &states)?;
            }
        }
        self.close(info.watermark, output)
    }

    fn state(&mut self) -> Option<&mut dyn GroupedState> {
        Some(self)
    }
}

impl GroupedState for SessionAggregate {
    fn dump(&mut self) -> Result<Vec<(KeyGroup, RecordBatch)>> {
        let mut all: Vec<(&OwnedRow, &Session)> = self.sessions.iter().flat_map(|(k, s)| s.iter().map(move |s| (k, s))).collect();
        all.sort_by(|a, b| a.0.cmp(b.0).then(a.1.first.cmp(&b.1.first)));
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(all.iter().map(|(_, s)| s.first))),
            Arc::new(Int64Array::from_iter_values(all.iter().map(|(_, s)| s.last))),
        ];
        let keys = self.codec.decode(all.iter().map(|(key, _)| key.row()))?;
        let hashes = hashes(&keys, all.len());
        columns.extend(keys);
        columns.extend(columns_of(all.iter().map(|(_, s)| s.states.as_slice()), self.aggregates.state_fields())?);
        Ok(by_group(&self.state_schema, columns, &hashes))
    }

    fn restore(&mut self, _watermark: Micros, rows: &RecordBatch) -> Result<()> {
        let int = |column: usize| rows.column(column).as_primitive::<Int64Type>().clone();
        let (first, last) = (int(1), int(2));
        let keys = self.codec.encode(&rows.columns()[3..3 + self.keys], rows.num_rows())?;
        for row in 0..rows.num_rows() {
            let states = values_at(&rows.columns()[3 + self.keys..], row)?;
            self.insert(keys.row(row).owned(), Session { first: first.value(row), last: last.value(row), states });
        }
        Ok(())
    }
}
