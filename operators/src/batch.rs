//! The one container type that travels on every edge of the dataflow: an Arrow `RecordBatch`.
//!
//! Between threads a batch moves as it is, and a part of one as the numbers of its rows: they are copied once, where they are
//! put in order with the rows of other batches. Between processes it moves as one Arrow IPC record-batch message without its
//! schema, which both sides know: [`register_schema`].

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, PoisonError, RwLock};

use arrow::array::{RecordBatch, UInt32Array};
use arrow::buffer::Buffer;
use arrow::compute::take_record_batch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::RecordBatchDecoder;
use arrow::ipc::writer::{IpcWriteOptions, StreamEncoder};
use timely::Accountable;
use timely::bytes::arc::Bytes;
use timely::dataflow::channels::ContainerBytes;

/// A batch of rows of one schema.
///
/// `None` is the empty container that `std::mem::take` leaves behind; timely takes constantly,
/// so `Default` must not allocate (`RecordBatch::new_empty` would need a schema).
#[derive(Default)]
pub struct Batch {
    rows: Option<RecordBatch>,
    /// Which of the rows these are; `None` for all.
    picked: Option<Vec<u32>>,
    /// The IPC buffers, filled by `length_in_bytes` and used by the `into_bytes` that follows it.
    encoded: OnceCell<Encoded>,
}

struct Encoded {
    schema: u64,
    parts: Vec<Buffer>,
    len: usize,
}

impl Batch {
    /// Some rows of a batch, by their numbers.
    pub fn picked(rows: RecordBatch, numbers: Vec<u32>) -> Batch {
        Batch { rows: Some(rows), picked: Some(numbers), encoded: OnceCell::new() }
    }

    /// The rows, if there are any.
    pub fn into_rows(self) -> Option<RecordBatch> {
        let rows = self.rows?;
        Some(match self.picked {
            None => rows,
            Some(numbers) => pick(&rows, UInt32Array::from(numbers)),
        })
    }

    /// The rows, and which of them these are if not all.
    pub(crate) fn into_parts(self) -> Option<(RecordBatch, Option<Vec<u32>>)> {
        Some((self.rows?, self.picked))
    }

    /// The number of rows.
    pub fn num_rows(&self) -> usize {
        match (&self.rows, &self.picked) {
            (_, Some(picked)) => picked.len(),
            (rows, None) => rows.as_ref().map_or(0, RecordBatch::num_rows),
        }
    }
}

fn pick(rows: &RecordBatch, numbers: UInt32Array) -> RecordBatch {
    take_record_batch(rows, &numbers).expect("the numbers are those of rows of this batch")
}

impl From<RecordBatch> for Batch {
    fn from(rows: RecordBatch) -> Self {
        Batch { rows: Some(rows), picked: None, encoded: OnceCell::new() }
    }
}

impl Clone for Batch {
    fn clone(&self) -> Self {
        Batch { rows: self.rows.clone(), picked: self.picked.clone(), encoded: OnceCell::new() }
    }
}

impl Accountable for Batch {
    /// Rows. Progress tracking compares what was sent with what was received, and a distributor
    /// cuts batches up: so the count has to be additive under splitting, which "1 per batch" is not.
    fn record_count(&self) -> i64 {
        self.num_rows() as i64
    }
}

// --- schemas -------------------------------------------------------------------------------

/// Schemas known to this process, by the stable hash of what they say.
static SCHEMAS: RwLock<Option<HashMap<u64, SchemaRef>>> = RwLock::new(None);

/// Makes `schema` known to the receiving side of this process and returns what names it in a message.
///
/// A message names its schema by a hash of its text, so every process registers, before it builds its
/// dataflow, the schemas that may reach it; in no particular order.
pub fn register_schema(schema: &SchemaRef) -> u64 {
    let id = crate::keys::hash(format!("{schema:?}").as_bytes());
    let mut all = SCHEMAS.write().unwrap_or_else(PoisonError::into_inner);
    all.get_or_insert_default().entry(id).or_insert_with(|| schema.clone());
    id
}

fn schema_by_id(id: u64) -> SchemaRef {
    let all = SCHEMAS.read().unwrap_or_else(PoisonError::into_inner);
    all.as_ref()
        .and_then(|all| all.get(&id).cloned())
        .expect("all processes run the same release with the same config, so they know the same schemas")
}

// --- between processes ---------------------------------------------------------------------

thread_local! {
    static ENCODERS: RefCell<HashMap<u64, StreamEncoder>> = RefCell::default();
    /// Schema pointer to id, so that the deep comparison happens once per schema instance.
    static IDS: RefCell<HashMap<usize, (SchemaRef, u64)>> = RefCell::default();
}

fn schema_id(schema: &SchemaRef) -> u64 {
    IDS.with_borrow_mut(|ids| {
        let at = Arc::as_ptr(schema) as usize;
        ids.entry(at).or_insert_with(|| (schema.clone(), register_schema(schema))).1
    })
}

/// One IPC record-batch message, without the schema, as buffers that share the arrays' memory.
fn encode(rows: &RecordBatch, picked: Option<&[u32]>) -> Encoded {
    let rows = &match picked {
        None => rows.clone(),
        Some(numbers) => pick(rows, UInt32Array::from_iter_values(numbers.iter().copied())),
    };
    let schema = rows.schema();
    let id = schema_id(&schema);
    let parts = ENCODERS.with_borrow_mut(|encoders| {
        let encoder = encoders.entry(id).or_insert_with(|| {
            let options = IpcWriteOptions::try_new(8, false, arrow::ipc::MetadataVersion::V5).expect("8 is a valid alignment");
            let mut encoder = StreamEncoder::try_new_with_options(&schema, options).expect("the schema suits IPC");
            // The first message of a stream is its schema; the receiver has that already.
            encoder.encode(&RecordBatch::new_empty(schema.clone())).expect("an empty batch encodes");
            encoder
        });
        encoder.encode(rows).expect("a batch of a registered schema encodes")
    });
    let len = parts.iter().map(|b| b.len()).sum::<usize>();
    debug_assert_eq!(len % 8, 0);
    Encoded { schema: id, parts, len }
}

/// Lets Arrow hold timely's receive slab: `bytes::Bytes::from_owner` needs `AsRef<[u8]>`.
struct Slab(Bytes);
impl AsRef<[u8]> for Slab {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Names the empty container in a message. No schema hashes to it but by a chance of 2⁻⁶⁴.
const EMPTY: u64 = u64::MAX;

impl ContainerBytes for Batch {
    fn length_in_bytes(&self) -> usize {
        8 + self.rows.as_ref().map_or(0, |rows| self.encoded.get_or_init(|| encode(rows, self.picked.as_deref())).len)
    }

    fn into_bytes<W: Write>(&self, writer: &mut W) {
        const ROOM: &str = "timely provides the room that length_in_bytes asked for";
        let Some(rows) = &self.rows else {
            return writer.write_all(&EMPTY.to_le_bytes()).expect(ROOM);
        };
        let encoded = self.encoded.get_or_init(|| encode(rows, self.picked.as_deref()));
        writer.write_all(&encoded.schema.to_le_bytes()).expect(ROOM);
        for part in &encoded.parts {
            writer.write_all(part).expect(ROOM);
        }
    }

    /// Zero-copy: the arrays point into the slab the socket was read into. (The slab stays alive
    /// as long as any array does: operators copy what they keep.)
    fn from_bytes(bytes: Bytes) -> Self {
        let word = |at: usize| -> [u8; 8] { bytes[at..at + 8].try_into().expect("eight bytes") };
        let id = u64::from_le_bytes(word(0));
        if id == EMPTY {
            return Batch::default();
        }
        // 8: continuation marker and metadata length; then metadata; then body.
        let meta_len = u32::from_le_bytes(word(8)[4..].try_into().expect("four bytes")) as usize;
        let buffer = Buffer::from(bytes::Bytes::from_owner(Slab(bytes)));
        let meta = buffer.slice_with_length(16, meta_len);
        let body = buffer.slice(16 + meta_len);
        let message = arrow::ipc::root_as_message(&meta).expect("the sender encoded an IPC message");
        let header = message.header_as_record_batch().expect("the message is a record batch");
        let none = HashMap::new();
        let rows = RecordBatchDecoder::try_new(&body, header, schema_by_id(id), &none, &message.version())
            .and_then(|d| d.read_record_batch())
            .expect("the batch decodes under the schema that it was encoded with");
        Batch::from(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, ListArray, StringArray, UInt64Array};
    use arrow::datatypes::Int64Type;
    use timely::bytes::arc::BytesMut;

    #[test]
    fn crosses_a_wire() {
        let ids: ArrayRef = Arc::new(UInt64Array::from_iter_values(0..100));
        let names: ArrayRef = Arc::new(StringArray::from_iter((0..100).map(|i| (i % 3 > 0).then(|| format!("name {i}")))));
        let lists: ArrayRef =
            Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>((0..100).map(|i| Some((0..i % 4).map(Some).collect::<Vec<_>>()))));
        let rows = RecordBatch::try_from_iter([("id", ids), ("name", names), ("list", lists)]).unwrap();
        let whole = [rows.clone(), rows.slice(17, 40), rows.slice(3, 0), rows.clone()].map(|rows| (Batch::from(rows.clone()), rows));
        let parts = [vec![5, 2, 2, 99], vec![]].map(|numbers| {
            let batch = Batch::picked(rows.clone(), numbers);
            (batch.clone(), batch.into_rows().unwrap())
        });
        for (batch, rows) in whole.into_iter().chain(parts) {
            let mut out = Vec::new();
            let len = batch.length_in_bytes();
            batch.into_bytes(&mut out);
            assert_eq!(len, out.len());
            let back = Batch::from_bytes(BytesMut::from(out).freeze());
            assert_eq!(back.record_count(), rows.num_rows() as i64);
            assert_eq!(back.into_rows().unwrap(), rows);
        }
        assert_eq!(Batch::default().record_count(), 0);
    }
}
