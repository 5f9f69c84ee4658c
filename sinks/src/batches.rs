//! Batches of a size that suits encoders.

use arrow::array::RecordBatch;
use arrow::compute::BatchCoalescer;
use arrow::error::ArrowError;

/// Rows of a batch that small ones are put into.
pub(crate) const COALESCED_ROWS: usize = 8192;
/// A batch of more rows is taken as it is.
const SMALL_ROWS_MAX: usize = COALESCED_ROWS / 4;

/// The rows of `batches`, in their order, small batches put together. An encoder pays for each batch and each of its columns, and the epochs of
/// a job that waits for its rows have some hundred rows each.
pub(crate) fn coalesced(batches: Vec<RecordBatch>) -> Result<Vec<RecordBatch>, ArrowError> {
    if batches.iter().all(|batch| batch.num_rows() > SMALL_ROWS_MAX) || batches.len() < 2 {
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

    use arrow::array::{ArrayRef, Int64Array};
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
}
