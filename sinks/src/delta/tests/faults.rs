//! A store that fails when it is told to.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result,
};

use super::*;

/// What the next put of its kind does; then all is well again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Fault {
    None,
    /// A data file is not put.
    Data,
    /// A log entry is not put.
    Entry,
    /// A log entry is put, but the answer gets lost.
    EntryAnswer,
}

/// Says which fault comes next.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults(Arc<AtomicU8>);

impl Faults {
    pub fn set(&self, fault: Fault) {
        self.0.store(fault as u8, Ordering::SeqCst);
    }

    fn take(&self, fault: Fault) -> bool {
        self.0.compare_exchange(fault as u8, Fault::None as u8, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

/// A sink whose store has faults.
pub(super) fn faulty_sink(settings: DeltaSettings, faults: &Faults) -> DeltaSink {
    let mut sink = sink_with(settings);
    sink.spec.root = Arc::new(FaultyStore { store: sink.spec.root.clone(), faults: faults.clone() });
    sink
}

#[derive(Debug)]
struct FaultyStore {
    store: Arc<dyn ObjectStore>,
    faults: Faults,
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultyStore({})", self.store)
    }
}

fn down() -> Error {
    Error::Generic { store: "faulty", source: "the network is down".into() }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let is_entry = location.as_ref().contains("_delta_log") && location.as_ref().ends_with(".json");
        if is_entry && self.faults.take(Fault::Entry) || location.as_ref().ends_with(".parquet") && self.faults.take(Fault::Data) {
            return Err(down());
        }
        let result = self.store.put_opts(location, payload, opts).await?;
        if is_entry && self.faults.take(Fault::EntryAnswer) {
            return Err(down());
        }
        Ok(result)
    }
    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(location, opts).await
    }
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.store.get_opts(location, options).await
    }
    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.store.delete_stream(locations)
    }
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list(prefix)
    }
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}
