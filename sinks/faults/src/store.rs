//! An object store that fails when a test tells it to.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is done.
    None,
    /// It is not done, the network is down.
    Lost,
    /// It is done, but the answer gets lost.
    AnswerLost,
    /// It is not done, the disk is full.
    Full,
    /// It is done after a while.
    Slow(Duration),
    /// It never ends.
    Hangs,
}

/// Which calls a fault is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `put`, and the beginning of one in parts.
    Put,
    /// `get`, whole or in part.
    Get,
    /// `list`, in all its forms.
    List,
}

/// Says what becomes of the next calls. Clones say it to the same store.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<VecDeque<Rule>>>);

#[derive(Debug)]
struct Rule {
    call: Call,
    part_of_name: String,
    fault: Fault,
}

impl Faults {
    /// The next calls of a kind on names with `part_of_name` have these faults, in turn; then all is well again. Adds to what was said before.
    pub fn add(&self, call: Call, part_of_name: &str, faults: &[Fault]) {
        let rules = faults.iter().map(|&fault| Rule { call, part_of_name: part_of_name.to_owned(), fault });
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(rules);
    }

    /// All is well from now on.
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// How many faults are still to come.
    pub fn left(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn take(&self, call: Call, name: &Path) -> Fault {
        let mut rules = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = rules.iter().position(|rule| rule.call == call && name.as_ref().contains(&rule.part_of_name));
        at.and_then(|at| rules.remove(at)).map_or(Fault::None, |rule| rule.fault)
    }

    async fn around<T>(&self, call: Call, name: &Path, work: impl Future<Output = Result<T>>) -> Result<T> {
        match self.take(call, name) {
            Fault::None => work.await,
            Fault::Lost => Err(down()),
            Fault::AnswerLost => work.await.and_then(|_| Err(down())),
            Fault::Full => Err(Error::Generic {
                store: "faulty",
                source: io::Error::new(io::ErrorKind::StorageFull, "No space left on device").into(),
            }),
            Fault::Slow(wait) => {
                tokio::time::sleep(wait).await;
                work.await
            }
            Fault::Hangs => std::future::pending().await,
        }
    }
}

fn down() -> Error {
    Error::Generic { store: "faulty", source: "the network is down".into() }
}

/// A store with [`Faults`].
#[derive(Debug)]
pub struct FaultyStore {
    store: Arc<dyn ObjectStore>,
    faults: Faults,
    creates_only: bool,
}

impl FaultyStore {
    /// Does what `store` does, unless `faults` say otherwise.
    pub fn new(store: Arc<dyn ObjectStore>, faults: &Faults) -> FaultyStore {
        FaultyStore { store, faults: faults.clone(), creates_only: false }
    }

    /// For whoever promises that nothing is ever replaced: a put that could panics.
    pub fn creates_only(self) -> FaultyStore {
        FaultyStore { creates_only: true, ..self }
    }

    /// A listing that comes with the fault of its call.
    fn listing<T: Send + 'static>(&self, prefix: Option<&Path>, listed: BoxStream<'static, Result<T>>) -> BoxStream<'static, Result<T>> {
        let (faults, prefix) = (self.faults.clone(), prefix.cloned().unwrap_or_default());
        let all = async move { faults.around(Call::List, &prefix, listed.try_collect::<Vec<T>>()).await };
        stream::once(all).map_ok(|all| stream::iter(all.into_iter().map(Ok))).try_flatten().boxed()
    }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultyStore({})", self.store)
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        assert!(!self.creates_only || opts.mode == PutMode::Create, "{location} could be replaced");
        self.faults.around(Call::Put, location, self.store.put_opts(location, payload, opts)).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.faults.around(Call::Put, location, self.store.put_multipart_opts(location, opts)).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.faults.around(Call::Get, location, self.store.get_opts(location, options)).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.store.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listing(prefix, self.store.list(prefix))
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listing(prefix, self.store.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let location = prefix.cloned().unwrap_or_default();
        self.faults.around(Call::List, &location, self.store.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}
