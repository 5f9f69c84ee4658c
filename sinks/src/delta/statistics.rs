//! A file's statistics for its log entry, by which readers skip files.

use chrono::{DateTime, Datelike, SecondsFormat};
use parquet::basic::{LogicalType, TimeUnit};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::statistics::Statistics;
use parquet::schema::types::ColumnDescriptor;
use serde_json::{Map, Value, json};

/// Columns that have statistics: the first ones, which are the place, the ids and the time.
pub(super) const INDEXED_COLUMNS: usize = 8;

/// The `stats` of an `add` action: rows, and for the first columns least and greatest value and number of nulls.
///
/// Bounds are left out where Delta's JSON has no faithful form for them: for binary columns, and for times that are not in the
/// years 0 to 9999 (an order may claim any).
pub(super) fn statistics(file: &ParquetMetaData) -> String {
    let (mut min_values, mut max_values, mut null_count) = (Map::new(), Map::new(), Map::new());
    let columns = file.file_metadata().schema_descr().columns();
    let flat = columns.iter().enumerate().filter(|(_, c)| c.path().parts().len() == 1);
    for (number, column) in flat.take_while(|(number, _)| *number < INDEXED_COLUMNS) {
        let name = column.name().to_owned();
        let chunks = || file.row_groups().iter().map(move |group| group.column(number));
        if let Some(nulls) = chunks().map(|chunk| chunk.statistics()?.null_count_opt()).sum::<Option<u64>>() {
            null_count.insert(name.clone(), json!(nulls));
        }
        if let Some((min, max)) = bounds(column, chunks()) {
            min_values.insert(name.clone(), min);
            max_values.insert(name, max);
        }
    }
    let rows = file.file_metadata().num_rows();
    json!({ "numRecords": rows, "minValues": min_values, "maxValues": max_values, "nullCount": null_count }).to_string()
}

fn bounds<'a>(column: &ColumnDescriptor, chunks: impl Iterator<Item = &'a ColumnChunkMetaData>) -> Option<(Value, Value)> {
    let logical = column.logical_type_ref();
    let mut integers: Option<(i64, i64)> = None;
    let mut texts: Option<(&[u8], &[u8])> = None;
    for chunk in chunks {
        match (chunk.statistics()?, logical) {
            // A chunk of nulls only bounds nothing.
            (s, _) if s.null_count_opt() == Some(chunk.num_values() as u64) => {}
            (Statistics::Int32(s), None) => include(&mut integers, i64::from(*s.min_opt()?), i64::from(*s.max_opt()?)),
            (Statistics::Int64(s), None | Some(LogicalType::Timestamp(_))) => include(&mut integers, *s.min_opt()?, *s.max_opt()?),
            (Statistics::ByteArray(s), Some(LogicalType::String)) => include(&mut texts, s.min_opt()?.data(), s.max_opt()?.data()),
            _ => return None,
        }
    }
    let show = |value: i64| match logical {
        Some(LogicalType::Timestamp(t)) if t.unit == TimeUnit::MICROS => {
            let time = DateTime::from_timestamp_micros(value).filter(|t| (0..=9999).contains(&t.year()))?;
            Some(json!(time.to_rfc3339_opts(SecondsFormat::Micros, true)))
        }
        Some(_) => None,
        None => Some(json!(value)),
    };
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(|text| json!(text));
    match (integers, texts) {
        (Some((min, max)), _) => Some((show(min)?, show(max)?)),
        (_, Some((min, max))) => Some((text(min)?, text(max)?)),
        _ => None,
    }
}

fn include<T: Ord + Copy>(range: &mut Option<(T, T)>, min: T, max: T) {
    *range = Some(range.map_or((min, max), |(a, b)| (a.min(min), b.max(max))));
}
