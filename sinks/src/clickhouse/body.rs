//! An insert's rows on their way: Arrow's stream format, most of it sent from where it lies.

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::Schema;
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

    /// Sends rows.
    pub async fn write(&mut self, rows: &RecordBatch) -> Result<(), Error> {
        self.chunks.send(self.encoder.encode(rows).map_err(encode_error)?).await
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

fn encode_error(error: ArrowError) -> Error {
    Error::Other(error.into())
}
