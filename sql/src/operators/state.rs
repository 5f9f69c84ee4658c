//! State of a stage's operators as rows, filed under key groups.

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, RecordBatch, StringArray, UInt32Array};
use arrow::compute::take_record_batch;
use datafusion::error::Result;
use orderflow_operators::epoch::Micros;
use orderflow_operators::keys::{KEY_GROUPS, KeyGroup, hash, key_group};

/// What an operator knows of earlier epochs.
pub trait GroupedState {
    /// All of it, by key group, between two epochs. The first column is a text that lies in the group.
    ///
    /// # Errors
    /// If an accumulator does not give its state: a bug of its function.
    fn dump(&mut self) -> Result<Vec<(KeyGroup, RecordBatch)>>;

    /// Takes up rows of groups that this worker has; `watermark` is that after the last epoch that is in them.
    ///
    /// # Errors
    /// If an accumulator does not take its state: a bug of its function.
    fn restore(&mut self, watermark: Micros, rows: &RecordBatch) -> Result<()>;
}

/// For each group a text that lies in it.
static GROUP_TEXTS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let mut texts = vec![String::new(); KEY_GROUPS];
    let mut missing = KEY_GROUPS;
    for number in 0_u32.. {
        let text = number.to_string();
        let slot = &mut texts[key_group(hash(text.as_bytes())).0 as usize];
        if slot.is_empty() {
            *slot = text;
            missing -= 1;
            if missing == 0 {
                break;
            }
        }
    }
    texts
});

/// The text that stands for a group.
pub(crate) fn group_text(group: KeyGroup) -> &'static str {
    &GROUP_TEXTS[group.0 as usize]
}

/// Splits rows by their key groups, given their hashes. The first column of `rows` is made here: the caller gives the others.
pub(crate) fn by_group(schema: &arrow::datatypes::SchemaRef, columns: Vec<ArrayRef>, hashes: &[u64]) -> Vec<(KeyGroup, RecordBatch)> {
    let mut rows_of: Vec<Vec<u32>> = vec![Vec::new(); KEY_GROUPS];
    for (row, hash) in hashes.iter().enumerate() {
        rows_of[key_group(*hash).0 as usize].push(row as u32);
    }
    let texts: StringArray = hashes.iter().map(|hash| Some(group_text(key_group(*hash)))).collect();
    let all = crate::rows::batch(schema, std::iter::once(Arc::new(texts) as ArrayRef).chain(columns).collect());
    let split = rows_of.into_iter().enumerate().filter(|(_, rows)| !rows.is_empty());
    split
        .map(|(group, rows)| {
            let rows = take_record_batch(&all, &UInt32Array::from(rows)).expect("the indices are those of rows of this batch");
            (KeyGroup(group as u16), rows)
        })
        .collect()
}

/// Puts together what [`by_group`] gave for several parts.
pub(crate) fn concat_groups(parts: Vec<(KeyGroup, RecordBatch)>) -> Vec<(KeyGroup, RecordBatch)> {
    let mut groups: std::collections::BTreeMap<KeyGroup, Vec<RecordBatch>> = std::collections::BTreeMap::new();
    for (group, rows) in parts {
        groups.entry(group).or_default().push(rows);
    }
    let whole = |rows: Vec<RecordBatch>| orderflow_operators::dataflow::concat(rows);
    groups.into_iter().filter_map(|(group, rows)| whole(rows).map(|rows| (group, rows))).filter(|(_, rows)| rows.num_rows() > 0).collect()
}
