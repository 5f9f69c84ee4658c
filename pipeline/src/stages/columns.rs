//! Columns of stages' streams: as the query has them, as readers see them, as other stages see them.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use orderflow_operators::columns::timestamp_type;
use orderflow_operators::epoch::Epoch;
use orderflow_operators::streams::EPOCH;
use orderflow_sql::rows::{META, RETRACT, canonical};

/// The second column of a stream whose rows can be taken back: boolean, true in a row that no longer holds.
pub const IS_RETRACT: &str = "is_retract";

/// The columns that readers see: `epoch`, for `changes` [`IS_RETRACT`], then those of the query.
///
/// # Errors
/// If a column has a name that is taken, or a type that not every sink has.
pub(super) fn stream_schema(columns: &[FieldRef], changes: bool) -> Result<SchemaRef, String> {
    let mut fields = vec![Field::new(EPOCH, DataType::Int64, false)];
    if changes {
        fields.push(Field::new(IS_RETRACT, DataType::Boolean, false));
    }
    for column in columns {
        let name = column.name();
        if name == EPOCH || name == IS_RETRACT {
            return Err(format!("every stream has `{name}` already: leave it out, or give it another name with AS"));
        }
        if fields.iter().any(|field| field.name() == name) {
            return Err(format!("it has two columns `{name}`: give one of them another name with AS"));
        }
        let data_type = sink_type(column.data_type()).ok_or_else(|| {
            format!(
                "column `{name}` has type {}, which not every sink has: CAST it to BIGINT, INT, DOUBLE, FLOAT, BOOLEAN, TEXT, TIMESTAMP, DATE or BYTEA, or \
                 take a part of it, as `window.start`",
                column.data_type()
            )
        })?;
        fields.push(Field::new(name, data_type, true));
    }
    Ok(Arc::new(Schema::new(fields)))
}

/// As sinks have it.
fn sink_type(data_type: &DataType) -> Option<DataType> {
    Some(match data_type {
        DataType::Timestamp(TimeUnit::Microsecond, _) => timestamp_type(),
        DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::Boolean | DataType::Int32 | DataType::Int64 | DataType::Float32 | DataType::Float64 | DataType::Date32 => {
            data_type.clone()
        }
        DataType::Int8 | DataType::Int16 | DataType::UInt8 | DataType::UInt16 => DataType::Int32,
        DataType::UInt32 => DataType::Int64,
        DataType::Binary => DataType::Binary,
        DataType::List(item) if *item.data_type() == DataType::Utf8 => data_type.clone(),
        _ => return None,
    })
}

/// A column as other stages read it.
pub(super) fn read_type(column: &Field) -> Field {
    Field::new(column.name(), column.data_type().clone(), true)
}

/// An epoch's rows, as [`orderflow_sql::rows`] says, in canonical order and in the columns of `schema`.
pub(crate) fn stage_rows(schema: &SchemaRef, changes: bool, epoch: Epoch, rows: RecordBatch) -> RecordBatch {
    let rows = canonical(rows);
    let mut columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(vec![epoch.0 as i64; rows.num_rows()]))];
    if changes {
        columns.push(rows.column(RETRACT).clone());
    }
    let first = columns.len();
    for (column, field) in rows.columns()[META..].iter().zip(&schema.fields()[first..]) {
        let fits = column.data_type() == field.data_type();
        columns.push(if fits {
            column.clone()
        } else {
            cast(column, field.data_type()).expect("only types that can be cast were planned")
        });
    }
    RecordBatch::try_new(schema.clone(), columns).expect("the columns fit the schema that was made for them")
}
