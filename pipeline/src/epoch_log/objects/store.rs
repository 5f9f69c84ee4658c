//! Putting, reading and listing objects, with patience: every call has a limit, every failure that may pass is tried again.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use orderflow_faults::{Point, check};
use orderflow_sinks::store::{chain, lasting, local_disk};
use tokio::time::{Instant, sleep, timeout};

use super::super::EpochLogError;

/// How long one call may take.
const CALL: Duration = Duration::from_secs(20);
/// However little patience is left, a call may take so long.
const CALL_MIN: Duration = Duration::from_millis(50);
/// How long all tries of a call may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A doubling wait between two tries.
pub(super) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Backoff(Duration::from_millis(50))
    }
}

impl Backoff {
    const MAX: Duration = Duration::from_secs(5);

    pub fn next(&mut self) -> Duration {
        let wait = self.0;
        self.0 = (wait * 2).min(Self::MAX);
        wait
    }
}

/// What came of a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// The object is there.
    Done,
    /// Another has its name.
    Taken,
}

/// A folder of a store.
pub(super) struct Store {
    store: Arc<dyn ObjectStore>,
    folder: Path,
    log: String,
    pub(super) patience: Duration,
}

impl Store {
    pub fn new(store: Arc<dyn ObjectStore>, folder: Path, log: String) -> Store {
        Store { store, folder, log, patience: PATIENCE }
    }

    /// Where an object is, for messages.
    pub fn place(&self, name: &str) -> String {
        format!("/{}", self.path(name))
    }

    fn path(&self, name: &str) -> Path {
        self.folder.clone().join(name)
    }

    /// Puts an object if there is none of its name. The bytes must be like no other writer's.
    pub async fn put(&self, name: &str, bytes: Vec<u8>) -> Result<Put, EpochLogError> {
        let (path, bytes) = (self.path(name), Bytes::from(bytes));
        let put = async || {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            check(Point::ObjectPut).map_err(local_disk)?;
            match self.store.put_opts(&path, PutPayload::from_bytes(bytes.clone()), options).await {
                Ok(_) => check(Point::ObjectDone).map_err(local_disk).map(|()| Put::Done),
                // An earlier try may have got through, its answer not.
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => match self.store.get(&path).await {
                    Ok(found) => Ok(if found.bytes().await? == bytes { Put::Done } else { Put::Taken }),
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            }
        };
        self.patiently(put).await.map_err(|failure| match failure {
            Failure::Lasts(what) => EpochLogError::Refused { log: self.log.clone(), what },
            Failure::Late(reason) => EpochLogError::Unknown { log: self.log.clone(), reason },
        })
    }

    /// An object's bytes, if it is there.
    pub async fn get(&self, name: &str) -> Result<Option<Bytes>, EpochLogError> {
        let path = self.path(name);
        let get = async || match self.store.get(&path).await {
            Ok(found) => found.bytes().await.map(Some),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        };
        self.patiently(get).await.map_err(|failure| self.unread(failure))
    }

    /// The names of all objects behind `from`, which need not be one.
    pub async fn list(&self, from: &str) -> Result<Vec<String>, EpochLogError> {
        let offset = self.path(from);
        let list = async || -> Result<Vec<String>, Error> {
            let listed = if from.is_empty() {
                self.store.list(Some(&self.folder))
            } else {
                self.store.list_with_offset(Some(&self.folder), &offset)
            };
            listed.map_ok(|meta| meta.location.filename().unwrap_or_default().to_owned()).try_collect().await
        };
        self.patiently(list).await.map_err(|failure| self.unread(failure))
    }

    /// Those names of all objects that are `wanted`; it is told when each was put, in milliseconds since 1970 by the store's clock. Takes as long as
    /// something comes, and is not tried again.
    pub async fn names(&self, wanted: impl Fn(&str, i64) -> bool) -> Result<Vec<String>, EpochLogError> {
        let mut listed = self.store.list(Some(&self.folder));
        let mut names = Vec::new();
        while let Some(meta) = self.next(&mut listed).await? {
            let name = meta.location.filename().unwrap_or_default();
            names.extend(wanted(name, meta.last_modified.timestamp_millis()).then(|| name.to_owned()));
        }
        Ok(names)
    }

    /// Removes objects, in no order; those that are not there do no harm.
    pub async fn remove(&self, names: impl IntoIterator<Item = String>) -> Result<(), EpochLogError> {
        let paths: Vec<_> = names.into_iter().map(|name| Ok(self.path(&name))).collect();
        let removed = self.store.delete_stream(stream::iter(paths).boxed());
        let mut removed = removed.map(|removed| match removed {
            Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        });
        while self.next(&mut removed).await?.is_some() {}
        Ok(())
    }

    /// The next of what the store sends piece by piece, each within the time of a call.
    async fn next<T>(&self, pieces: &mut (impl Stream<Item = Result<T, Error>> + Unpin)) -> Result<Option<T>, EpochLogError> {
        let longest = self.longest_call();
        match timeout(longest, pieces.try_next()).await {
            Ok(piece) => piece.map_err(|error| self.unread(failure(&error))),
            Err(_) => Err(self.unread(no_answer(longest))),
        }
    }

    fn longest_call(&self) -> Duration {
        CALL.min(self.patience.max(CALL_MIN))
    }

    fn unread(&self, failure: Failure) -> EpochLogError {
        let log = self.log.clone();
        match failure {
            Failure::Lasts(what) => EpochLogError::Refused { log, what },
            Failure::Late(reason) => EpochLogError::Unavailable { log, reason },
        }
    }

    /// Tries until it is done, fails for good, or patience is at its end.
    async fn patiently<T, F: Future<Output = Result<T, Error>>>(&self, mut call: impl FnMut() -> F) -> Result<T, Failure> {
        let end = Instant::now() + self.patience;
        let longest = self.longest_call();
        let mut backoff = Backoff::default();
        loop {
            let failed = match timeout(longest, call()).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(error)) => failure(&error),
                Err(_) => no_answer(longest),
            };
            let Failure::Late(reason) = failed else { return Err(failed) };
            let wait = backoff.next();
            if Instant::now() + wait >= end {
                return Err(Failure::Late(reason));
            }
            tracing::warn!(log = self.log, reason, "the epoch log's store is tried again");
            sleep(wait).await;
        }
    }
}

/// What an error of the store is, if it is not tried again.
fn failure(error: &Error) -> Failure {
    match lasting(error) {
        Some(advice) => Failure::Lasts(format!("{}; {advice}", chain(error))),
        None => Failure::Late(chain(error)),
    }
}

fn no_answer(within: Duration) -> Failure {
    Failure::Late(format!("no answer within {} s", within.as_secs_f64()))
}

enum Failure {
    /// It will not pass: what is wrong, and what to do.
    Lasts(String),
    /// It did not pass in time.
    Late(String),
}
