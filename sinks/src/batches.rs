//! Batches of a size that suits encoders.

use arrow::array::RecordBatch;
use arrow::compute::BatchCoalescer;
use arrow::error::ArrowError;

/// Rows of a batch that small ones are put into.
pub(crate) const COALESCED_ROWS: usize = 8192;
/// A batch of more rows is taken as it is.
const SMALL_ROWS_MAX: usize = COALESCED_ROWS / 4;
/// Batches of more [`weight`] are left as they are: about 1 GiB, where the offsets of a text column have 32 bits.
const COALESCED_WEIGHT_MAX: usize = 1 << 20;

/// Rows of more bytes than that weigh as much as several.
const ROW_BYTES: usize = 1024;

/// What rows weigh where memory is limited: their number, if they are not larger than usual.
pub fn weight(rows: &RecordBatch) -> usize {
    rows.num_rows().max(rows.get_array_memory_size() / ROW_BYTES)
}

/// The rows of `batches`, in their order, small batches put together. An encoder pays for each batch and each of its columns, and the epochs of
/// a job that waits for its rows have some hundred rows each.
pub(crate) fn coalesced(batches: Vec<RecordBatch>) -> Result<Vec<RecordBatch>, ArrowError> {
    let are_large = batches.len() < 2 || batches.iter().all(|batch| batch.num_rows() > SMALL_ROWS_MAX);
    if are_large || batches.iter().map(weight).sum::<usize>() > COALESCED_WEIGHT_MAX {
        return Ok(batches);
    }
    let mut coalescer = BatchCoalescer::new(batches[0].schema(), COALESCED_ROWS).with_biggest_coalesce_batch_size(Some(SMALL_ROWS_MAX));
    for batch in batches {
        coalescer.push_batch(batch)?;
    }
    coalescer.finish_buffered_batch()?;
    Ok(std::iter::from_fn(|| coalescer.next_completed_batch()).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray};
    use arrow::compute::concat_batches;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The same rows, in batches none of which but the last before a large one is small.
        #[test]
        fn keeps_the_rows_in_their_order(sizes in prop::collection::vec(prop_oneof![1..300_usize, 1..20_000_usize], 0..30)) {
            let mut next = 0;
            let mut batch = |rows: usize| {
                let values: ArrayRef = Arc::new(Int64Array::from_iter_values(next..next + rows as i64));
                next += rows as i64;
                RecordBatch::try_from_iter([("n", values)]).unwrap()
            };
            let batches: Vec<RecordBatch> = sizes.iter().map(|&rows| batch(rows)).collect();
            let together = coalesced(batches.clone()).unwrap();
            if let Some(first) = batches.first() {
                let all = |batches: &[RecordBatch]| concat_batches(&first.schema(), batches).unwrap();
                prop_assert_eq!(all(&together), all(&batches));
            }
            let large = sizes.iter().filter(|&&rows| rows > SMALL_ROWS_MAX).count();
            let rows: usize = sizes.iter().sum();
            prop_assert!(together.len() <= 2 * large + rows / COALESCED_ROWS + 1, "{} batches", together.len());
        }
    }

    #[test]
    fn texts_that_are_too_long_together_stay_apart() {
        // One text of 1 MiB, 1100 times: its memory is counted each time, though it is shared.
        let text: ArrayRef = Arc::new(StringArray::from(vec!["x".repeat(1 << 20)]));
        let batch = RecordBatch::try_from_iter([("text", text)]).unwrap();
        assert!((1024..1100).contains(&weight(&batch)), "{}", weight(&batch));
        let together = |count: usize| coalesced(vec![batch.clone(); count]).unwrap().len();
        assert_eq!((together(10), together(1100)), (1, 1100));
    }
}
