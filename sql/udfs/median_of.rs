//! An aggregate: the middle one of a group's values; of two the lower.

use arroyo_udf_plugin::udf;

#[udf]
fn median_of(mut values: Vec<i64>) -> Option<i64> {
    values.sort_unstable();
    values.get(values.len().saturating_sub(1) / 2).copied()
}
