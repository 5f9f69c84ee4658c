//! An insert's rows on their way: Arrow's stream format, most of it sent from where it lies.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Date32Type, Schema};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamEncoder;
use bytes::{Bytes, BytesMut};
use clickhouse::Client;
use clickhouse::error::Error;
use clickhouse::insert_formatted::InsertFormatted;

use super::schema::quoted;

/// Shorter pieces are copied behind one another, so that not each is a chunk of its own.
const COPIED_BYTES_MAX: usize = 8 << 10;
/// Copied pieces are sent when there are so many bytes of them.
const CHUNK_BYTES: usize = 64 << 10;
/// The first day of a `Date32` there, 1900-01-01, in days since 1970.
const DAY_MIN: i32 = -25_567;
/// The last, 2299-12-31.
const DAY_MAX: i32 = 120_529;

/// The body of an INSERT. It is sent while it is written; dropped before [`end`](Body::end), the insert did not happen.
pub(super) struct Body {
    encoder: StreamEncoder,
    chunks: Chunks,
}

struct Chunks {
    insert: InsertFormatted,
    copied: BytesMut,
}

/// Bytes that a column holds, shared.
struct Piece(Buffer);

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        self.0.as_slice()
    }
}

impl Body {
    /// Of an insert into `table` of rows with the columns of `schema`, which are named in the statement: the server would leave out those that it does not
    /// know.
    pub fn new(client: &Client, table: &str, schema: &Schema) -> Result<Body, Error> {
        let columns: Vec<String> = schema.fields().iter().map(|field| quoted(field.name())).collect();
        let statement = format!("INSERT INTO {} ({}) FORMAT ArrowStream", quoted(table), columns.join(", "));
        let chunks = Chunks { insert: client.insert_formatted_with(statement), copied: BytesMut::new() };
        Ok(Body { encoder: StreamEncoder::try_new(schema).map_err(encode_error)?, chunks })
    }

    /// Sends rows, their dates kept within the server's calendar.
    pub async fn write(&mut self, rows: &RecordBatch) -> Result<(), Error> {
        let rows = within_calendar(rows).map_err(encode_error)?;
        self.chunks.send(self.encoder.encode(&rows).map_err(encode_error)?).await
    }

    /// Ends the body, and waits for the server's answer.
    pub async fn end(self) -> Result<(), Error> {
        let Body { encoder, mut chunks } = self;
        chunks.send(encoder.finish().map_err(encode_error)?).await?;
        chunks.send_copied().await?;
        chunks.insert.end().await
    }
}

impl Chunks {
    async fn send(&mut self, pieces: Vec<Buffer>) -> Result<(), Error> {
        for piece in pieces {
            if piece.len() <= COPIED_BYTES_MAX {
                self.copied.extend_from_slice(&piece);
                if self.copied.len() >= CHUNK_BYTES {
                    self.send_copied().await?;
                }
            } else {
                self.send_copied().await?;
                self.insert.send(Bytes::from_owner(Piece(piece))).await?;
            }
        }
        Ok(())
    }

    async fn send_copied(&mut self) -> Result<(), Error> {
        if !self.copied.is_empty() {
            self.insert.send(self.copied.split().freeze()).await?;
        }
        Ok(())
    }
}

/// Dates out of the server's calendar as its first or last day: it would refuse the insert, however often it is tried. Times it takes as
/// they are.
fn within_calendar(rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let is_date = |column: &ArrayRef| *column.data_type() == DataType::Date32;
    if !rows.columns().iter().any(is_date) {
        return Ok(rows.clone());
    }
    let columns = rows.columns().iter().map(|column| -> ArrayRef {
        if is_date(column) {
            Arc::new(column.as_primitive::<Date32Type>().unary::<_, Date32Type>(|day| day.clamp(DAY_MIN, DAY_MAX)))
        } else {
            column.clone()
        }
    });
    RecordBatch::try_new(rows.schema(), columns.collect())
}

fn encode_error(error: ArrowError) -> Error {
    Error::Other(error.into())
}

#[cfg(test)]
mod tests {
    use arrow::array::{Date32Array, Int32Array};

    use super::*;

    #[test]
    fn dates_stay_within_the_servers_calendar() {
        let days = Date32Array::from(vec![Some(i32::MIN), Some(-25_568), None, Some(0), Some(120_530), Some(i32::MAX)]);
        let numbers: ArrayRef = Arc::new(Int32Array::from_iter_values((0..6).map(|n| n * 1_000_000)));
        let rows = RecordBatch::try_from_iter([("n", numbers.clone()), ("day", Arc::new(days) as ArrayRef)]).unwrap();
        let sent = within_calendar(&rows).unwrap();
        assert_eq!((sent.schema(), sent.column(0)), (rows.schema(), &numbers));
        let expected = [Some(DAY_MIN), Some(DAY_MIN), None, Some(0), Some(DAY_MAX), Some(DAY_MAX)];
        assert_eq!(sent.column(1).as_primitive::<Date32Type>().iter().collect::<Vec<_>>(), expected);
        let day = |days: i32| chrono::DateTime::from_timestamp(i64::from(days) * 86_400, 0).unwrap().date_naive().to_string();
        assert_eq!([day(DAY_MIN), day(DAY_MAX)], ["1900-01-01", "2299-12-31"]);
    }
}
