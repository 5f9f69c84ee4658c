//! Joins of rows that are there at once: of two inputs within a window, and of a stream with a table that does not change.
//!
//! All rows of a window come out in one epoch, on both sides, so that a join of windows needs to remember nothing.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array};
use arrow::compute::{interleave_record_batch, take, take_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::row::{OwnedRow, RowConverter, SortField};
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;
use hashbrown::HashMap;
use orderflow_operators::epoch::EpochInfo;

use super::{Operator, Output, Reject, Rejects};
use crate::rows::{self, META, TIME, canonical, meta_after_rows};

/// Which rows without a partner are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JoinKind {
    Inner,
    Left,
    Right,
    Full,
    /// Left rows that have a partner, once.
    LeftSemi,
    /// Left rows that have none.
    LeftAnti,
}

impl JoinKind {
    pub fn keeps_left(self) -> bool {
        matches!(self, JoinKind::Left | JoinKind::Full)
    }
    pub fn keeps_right(self) -> bool {
        matches!(self, JoinKind::Right | JoinKind::Full)
    }
    /// Whether only the left side's columns come out.
    pub fn is_left_only(self) -> bool {
        matches!(self, JoinKind::LeftSemi | JoinKind::LeftAnti)
    }
}

/// What is joined with what.
///
/// Each side's rows have the query's columns behind [`META`], and the keys behind those.
#[derive(Clone, Debug)]
pub(crate) struct JoinSpec {
    pub kind: JoinKind,
    /// How many keys.
    pub keys: usize,
    /// The query's columns of the left side.
    pub left: SchemaRef,
    /// The query's columns of the right side.
    pub right: SchemaRef,
    /// A condition besides, over a joined row: [`META`], left, right.
    pub filter: Option<Arc<dyn PhysicalExpr>>,
    /// [`META`], left, right.
    pub joined: SchemaRef,
    /// What comes out: the above, or without the right side.
    pub schema: SchemaRef,
}

impl JoinSpec {
    fn left_columns(&self) -> usize {
        self.left.fields().len()
    }

    /// The keys of a side's rows, and for each row whether it has all of them.
    pub fn keys<'a>(&self, rows: &'a RecordBatch, columns: usize) -> &'a [ArrayRef] {
        &rows.columns()[META + columns..META + columns + self.keys]
    }

    /// Joined rows of pairs of rows; a row that is not there is null. `time` gives the event time.
    pub fn joined(&self, left: &RecordBatch, right: &RecordBatch, pairs: &Pairs, meta: Vec<ArrayRef>) -> Result<RecordBatch> {
        let mut columns = meta;
        for column in &left.columns()[META..META + self.left_columns()] {
            columns.push(take(column, &pairs.left, None)?);
        }
        for column in &right.columns()[META..META + self.right.fields().len()] {
            columns.push(take(column, &pairs.right, None)?);
        }
        Ok(rows::batch(&self.joined, columns))
    }

    /// The pairs for which the condition holds.
    pub fn matching(&self, left: &RecordBatch, right: &RecordBatch, pairs: Pairs, rejects: &mut Rejects) -> Result<Pairs> {
        let Some(filter) = &self.filter else { return Ok(pairs) };
        let times = pairs.left.values().iter().map(|l| rows::times(left)[*l as usize]).collect();
        let joined = self.joined(left, right, &pairs, meta_after_rows(times, false).to_vec())?;
        let holds = holds(filter.as_ref(), &joined, rejects);
        let keep = |side: &UInt32Array| {
            side.values().iter().zip(&holds).filter(|(_, holds)| **holds).map(|(row, _)| Some(*row)).collect::<UInt32Array>()
        };
        Ok(Pairs { left: keep(&pairs.left), right: keep(&pairs.right) })
    }
}

/// For which rows a condition holds; those for which it has no value are rejected.
fn holds(filter: &dyn PhysicalExpr, joined: &RecordBatch, rejects: &mut Rejects) -> Vec<bool> {
    match filter.evaluate(joined).and_then(|value| value.into_array(joined.num_rows())) {
        Ok(values) => values.as_boolean().iter().map(|v| v == Some(true)).collect(),
        Err(error) if joined.num_rows() <= 1 => {
            rejects.add(Reject::Error, &error.strip_backtrace(), joined);
            vec![false; joined.num_rows()]
        }
        Err(_) => {
            let half = joined.num_rows() / 2;
            let mut first = holds(filter, &joined.slice(0, half), rejects);
            first.extend(holds(filter, &joined.slice(half, joined.num_rows() - half), rejects));
            first
        }
    }
}

/// Rows of the left and of the right side that belong together.
pub(crate) struct Pairs {
    pub left: UInt32Array,
    pub right: UInt32Array,
}

/// Rows of one side by their keys. Rows with a null in a key have no partner.
pub(crate) struct Index {
    converter: RowConverter,
    rows: HashMap<OwnedRow, Vec<u32>>,
}

impl Index {
    /// Of rows with these keys.
    pub fn new(keys: &[ArrayRef]) -> Result<Index> {
        let fields = keys.iter().map(|k| SortField::new(k.data_type().clone())).collect();
        let converter = RowConverter::new(fields)?;
        let converted = converter.convert_columns(keys)?;
        let mut rows: HashMap<OwnedRow, Vec<u32>> = HashMap::new();
        for row in 0..converted.num_rows() {
            if keys.iter().all(|k| k.is_valid(row)) {
                rows.entry(converted.row(row).owned()).or_default().push(row as u32);
            }
        }
        Ok(Index { converter, rows })
    }

    /// The pairs of the other side's rows with these.
    pub fn pairs(&self, keys: &[ArrayRef]) -> Result<Pairs> {
        let (mut left, mut right) = (Vec::new(), Vec::new());
        let converted = self.converter.convert_columns(keys)?;
        for row in 0..converted.num_rows() {
            if keys.iter().any(|k| k.is_null(row)) {
                continue;
            }
            for &partner in self.rows.get(&converted.row(row).owned()).into_iter().flatten() {
                left.push(row as u32);
                right.push(partner);
            }
        }
        Ok(Pairs { left: left.into(), right: right.into() })
    }
}

/// The rows that no pair names.
fn without_partner(rows: usize, partners: &UInt32Array) -> UInt32Array {
    let mut has = vec![false; rows];
    partners.values().iter().for_each(|row| has[*row as usize] = true);
    has.iter().enumerate().filter(|(_, has)| !**has).map(|(row, _)| Some(row as u32)).collect()
}

fn nulls(count: usize) -> UInt32Array {
    std::iter::repeat_n(None, count).collect()
}

/// A join of two inputs, window by window.
pub(crate) struct WindowedJoin {
    spec: JoinSpec,
    /// The input's schemas, for a side without rows.
    inputs: [SchemaRef; 2],
}

impl WindowedJoin {
    pub fn new(spec: JoinSpec, inputs: [SchemaRef; 2]) -> Self {
        WindowedJoin { spec, inputs }
    }
}

impl Operator for WindowedJoin {
    fn on_epoch(&mut self, _info: &EpochInfo, inputs: &mut [Option<RecordBatch>], output: &mut Output) -> Result<()> {
        if inputs.iter().all(Option::is_none) {
            return Ok(());
        }
        let mut side = |i: usize| inputs[i].take().map_or_else(|| RecordBatch::new_empty(self.inputs[i].clone()), canonical);
        let (left, right) = (side(0), side(1));
        let spec = &self.spec;
        // Rows of different windows do not belong together.
        let keys = |rows: &RecordBatch, columns: usize| {
            std::iter::once(rows.column(TIME).clone()).chain(spec.keys(rows, columns).iter().cloned()).collect::<Vec<_>>()
        };
        let index = Index::new(&keys(&right, spec.right.fields().len()))?;
        let pairs = index.pairs(&keys(&left, spec.left.fields().len()))?;
        let pairs = spec.matching(&left, &right, pairs, &mut output.rejects)?;
        let mut emit = |pairs: &Pairs, times: Vec<i64>| -> Result<()> {
            if !times.is_empty() {
                output.rows.push(spec.joined(&left, &right, pairs, meta_after_rows(times, false).to_vec())?);
            }
            Ok(())
        };
        let times_of = |rows: &RecordBatch, which: &UInt32Array| which.values().iter().map(|r| rows::times(rows)[*r as usize]).collect();
        match spec.kind {
            JoinKind::LeftSemi | JoinKind::LeftAnti => {
                let alone = without_partner(left.num_rows(), &pairs.left);
                let which = if spec.kind == JoinKind::LeftAnti { alone } else { without_partner(left.num_rows(), &alone) };
                if !which.is_empty() {
                    let kept = take_record_batch(&left, &which)?;
                    let meta = meta_after_rows(rows::times(&kept).to_vec(), false).into_iter();
                    let own = kept.columns()[META..META + spec.left_columns()].iter().cloned();
                    output.rows.push(rows::batch(&spec.schema, meta.chain(own).collect()));
                }
            }
            kind => {
                emit(&pairs, times_of(&left, &pairs.left))?;
                if kind.keeps_left() {
                    let alone = without_partner(left.num_rows(), &pairs.left);
                    let times = times_of(&left, &alone);
                    emit(&Pairs { right: nulls(alone.len()), left: alone }, times)?;
                }
                if kind.keeps_right() {
                    let alone = without_partner(right.num_rows(), &pairs.right);
                    let times = times_of(&right, &alone);
                    emit(&Pairs { left: nulls(alone.len()), right: alone }, times)?;
                }
            }
        }
        Ok(())
    }
}

/// A join of a stream with a table that does not change: inner or left.
pub(crate) struct Lookup {
    spec: JoinSpec,
    table: RecordBatch,
    index: Index,
}

impl Lookup {
    /// `table` has the right side's columns and keys, as the stream has the left side's.
    pub fn new(spec: JoinSpec, table: RecordBatch) -> Result<Self> {
        let index = Index::new(spec.keys(&table, spec.right.fields().len()))?;
        Ok(Lookup { spec, table, index })
    }
}

impl Operator for Lookup {
    fn on_epoch(&mut self, _info: &EpochInfo, inputs: &mut [Option<RecordBatch>], output: &mut Output) -> Result<()> {
        let Some(left) = inputs[0].take() else { return Ok(()) };
        let spec = &self.spec;
        let pairs = self.index.pairs(spec.keys(&left, spec.left.fields().len()))?;
        let pairs = spec.matching(&left, &self.table, pairs, &mut output.rejects)?;
        let meta = |which: &UInt32Array| -> Result<Vec<ArrayRef>> {
            left.columns()[..META].iter().map(|column| Ok(take(column, which, None)?)).collect()
        };
        let mut parts = vec![spec.joined(&left, &self.table, &pairs, meta(&pairs.left)?)?];
        let mut order: Vec<(u32, usize, usize)> = pairs.left.values().iter().enumerate().map(|(at, row)| (*row, 0, at)).collect();
        if spec.kind.keeps_left() {
            let alone = without_partner(left.num_rows(), &pairs.left);
            order.extend(alone.values().iter().enumerate().map(|(at, row)| (*row, 1, at)));
            let meta = meta(&alone)?;
            parts.push(spec.joined(&left, &self.table, &Pairs { right: nulls(alone.len()), left: alone }, meta)?);
            // Rows stay in the order of the stream.
            order.sort_unstable();
        }
        let order: Vec<(usize, usize)> = order.into_iter().map(|(_, part, at)| (part, at)).collect();
        let parts: Vec<&RecordBatch> = parts.iter().collect();
        if !order.is_empty() {
            output.rows.push(interleave_record_batch(&parts, &order)?);
        }
        Ok(())
    }
}
