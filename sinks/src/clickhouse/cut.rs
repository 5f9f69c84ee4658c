//! Cuts a commit's rows into inserts, always in the same places.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::DataType;

/// How large an insert may be. It is recorded with each commit that is begun, since the server takes a token's word for the rows: a
/// replay that cut elsewhere would lose rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Most rows.
    pub rows_max: u64,
    /// Most bytes, as [`weight`] counts them. An insert has one row at least.
    pub bytes_max: u64,
}

/// Cuts the rows of `batches`, in their order, into inserts as full as `cut` allows.
///
/// Where it cuts depends on the rows and on `cut` only, not on how the rows are spread over batches: weights are sums over rows.
pub(super) fn cut_into_inserts(batches: &[RecordBatch], cut: Cut) -> Vec<Vec<RecordBatch>> {
    let mut inserts = Vec::new();
    let mut current = Vec::new();
    let (mut rows, mut bytes) = (0, 0);
    for batch in batches {
        let mut start = 0;
        while start < batch.num_rows() {
            let left = batch.num_rows() - start;
            let rows_room = left.min(usize::try_from(cut.rows_max.max(1) - rows).unwrap_or(usize::MAX));
            // The most rows that fit; weights grow with the range.
            let (mut fit, mut over) = (0, rows_room + 1);
            while fit + 1 < over {
                let middle = fit + (over - fit) / 2;
                if bytes + weight(batch, start, start + middle) <= cut.bytes_max { fit = middle } else { over = middle }
            }
            if fit == 0 && rows == 0 {
                fit = 1;
            }
            if fit > 0 {
                bytes += weight(batch, start, start + fit);
                rows += fit as u64;
                current.push(batch.slice(start, fit));
                start += fit;
            }
            if start < batch.num_rows() {
                inserts.push(std::mem::take(&mut current));
                (rows, bytes) = (0, 0);
            }
        }
    }
    if !current.is_empty() {
        inserts.push(current);
    }
    inserts
}

/// The bytes of rows `[start, end)`: eight for each column of each row, and the contents of texts.
fn weight(batch: &RecordBatch, start: usize, end: usize) -> u64 {
    let fixed = 8 * batch.num_columns() as u64 * (end - start) as u64;
    batch.columns().iter().map(|column| content_bytes(column, start, end)).sum::<u64>() + fixed
}

fn content_bytes(column: &dyn Array, start: usize, end: usize) -> u64 {
    match column.data_type() {
        DataType::Utf8 => {
            let offsets = column.as_string::<i32>().value_offsets();
            (offsets[end] - offsets[start]) as u64
        }
        DataType::Binary => {
            let offsets = column.as_binary::<i32>().value_offsets();
            (offsets[end] - offsets[start]) as u64
        }
        DataType::List(_) => {
            let list = column.as_list::<i32>();
            let offsets = list.value_offsets();
            let (first, last) = (offsets[start] as usize, offsets[end] as usize);
            content_bytes(list.values(), first, last) + 8 * (last - first) as u64
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{BinaryArray, Int64Array, ListBuilder, StringBuilder};
    use proptest::prelude::*;

    use super::*;

    /// A row for each length: its number, a text and a list of that length.
    fn rows(first: i64, lengths: &[usize]) -> RecordBatch {
        let mut list = ListBuilder::new(StringBuilder::new());
        for length in lengths {
            list.append_value((0..length % 3).map(|_| Some("ab")));
        }
        RecordBatch::try_from_iter([
            ("id", Arc::new(Int64Array::from_iter_values(first..first + lengths.len() as i64)) as Arc<dyn Array>),
            ("raw", Arc::new(BinaryArray::from_iter_values(lengths.iter().map(|length| vec![7u8; *length])))),
            ("list", Arc::new(list.finish())),
        ])
        .unwrap()
    }

    fn ids(insert: &[RecordBatch]) -> Vec<i64> {
        insert.iter().flat_map(|batch| batch.column(0).as_primitive::<arrow::datatypes::Int64Type>().values().to_vec()).collect()
    }

    #[test]
    fn inserts_are_full_and_a_giant_row_has_its_own() {
        // 24 bytes a row and its texts.
        let batch = rows(0, &[0, 0, 1000, 0, 0, 0]);
        let cut = cut_into_inserts(&[batch], Cut { rows_max: 3, bytes_max: 100 });
        assert_eq!(cut.iter().map(|insert| ids(insert)).collect::<Vec<_>>(), [vec![0, 1], vec![2], vec![3, 4, 5]]);
        assert!(cut_into_inserts(&[rows(0, &[])], Cut { rows_max: 3, bytes_max: 100 }).is_empty());
    }

    proptest! {
        #[test]
        fn cuts_do_not_depend_on_batches(
            lengths in proptest::collection::vec(0usize..60, 0..80),
            at in 0usize..80,
            rows_max in 1u64..20,
            bytes_max in 1u64..500,
        ) {
            let at = at.min(lengths.len());
            let cut = Cut { rows_max, bytes_max };
            let whole = cut_into_inserts(&[rows(0, &lengths)], cut);
            let spread = cut_into_inserts(&[rows(0, &lengths[..at]), rows(at as i64, &lengths[at..])], cut);
            let whole: Vec<_> = whole.iter().map(|insert| ids(insert)).collect();
            let spread: Vec<_> = spread.iter().map(|insert| ids(insert)).collect();
            prop_assert_eq!(&whole, &spread);
            prop_assert_eq!(whole.concat(), (0..lengths.len() as i64).collect::<Vec<_>>());
            prop_assert!(whole.iter().all(|insert| insert.len() as u64 <= rows_max));
        }
    }
}
