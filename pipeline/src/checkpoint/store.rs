//! Checkpoints in an object store.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use memmap2::MmapOptions;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResultPayload, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use orderflow_faults::{Point, check, pass};
use orderflow_operators::epoch::Epoch;
use orderflow_sinks::store;
use url::Url;

use super::CheckpointError;
use super::manifest::{DataFile, Manifest, ManifestError, Part};
use crate::epoch_log::LogHeader;

/// Folders of a store. In no other one is there anything of a job.
const FOLDERS: [&str; 4] = ["data", "manifests", "parts", "savepoints"];

/// How long a store that does not answer is waited for.
#[derive(Clone, Copy)]
struct Patience {
    /// Longest time for one request; of an object that is read, for its first bytes and from some bytes to the next.
    answer: Duration,
    /// How often reading goes on after an error, unless something has come since.
    tries: u32,
    /// First wait before that; it doubles up to `BACKOFF_MAX`.
    backoff: Duration,
}

const PATIENCE: Patience = Patience { answer: Duration::from_secs(60), tries: 6, backoff: Duration::from_millis(100) };
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// A job's folder of checkpoints.
#[derive(Clone)]
pub struct CheckpointStore {
    store: Arc<dyn ObjectStore>,
    root: Path,
    url: String,
    patience: Patience,
}

/// A checkpoint that there is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Its epoch.
    pub epoch: Epoch,
    /// For a savepoint, the name that a user gave it.
    pub name: Option<String>,
    /// Its object.
    object: String,
}

impl CheckpointStore {
    /// The folder at `address`: a path or a URL.
    ///
    /// # Errors
    /// If it makes no sense, or a folder of local disk cannot be made.
    pub fn open(address: &str, options: &BTreeMap<String, String>) -> Result<CheckpointStore, CheckpointError> {
        let wrong = |e: orderflow_sinks::SinkError| CheckpointError::Address(e.to_string());
        let url = store::folder_url(address).map_err(wrong)?;
        if url.scheme() == "file" {
            store::make_folder(&url).map_err(wrong)?;
        }
        let root = Path::from_url_path(url.path()).map_err(|e| CheckpointError::Address(e.to_string()))?;
        Ok(CheckpointStore { store: store::open(&url, options).map_err(wrong)?, root, url: url.to_string(), patience: PATIENCE })
    }

    /// Its address.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn raw(&self) -> Arc<dyn ObjectStore> {
        self.store.clone()
    }

    pub(super) fn error(&self, what: impl Into<String>, source: object_store::Error) -> CheckpointError {
        CheckpointError::Store { url: self.url.clone(), what: what.into(), source }
    }

    /// A manifest of this store, if it is of the job of `header`.
    ///
    /// # Errors
    /// If not.
    pub(crate) fn of_job(&self, manifest: Manifest, header: &LogHeader) -> Result<Manifest, CheckpointError> {
        match manifest.header.difference(header) {
            None => Ok(manifest),
            Some(what) => Err(CheckpointError::Different { url: self.url.clone(), epoch: manifest.epoch.0, what }),
        }
    }

    pub(super) fn damaged(&self, object: &str, what: impl ToString) -> CheckpointError {
        CheckpointError::Damaged { url: self.url.clone(), object: object.to_owned(), what: what.to_string() }
    }

    /// Where a data file lies.
    pub(super) fn data_path(&self, name: &str) -> Path {
        self.at("data", name)
    }

    fn at(&self, folder: &str, name: &str) -> Path {
        self.root.clone().join(folder).join(name)
    }

    async fn within<T>(&self, what: &str, request: impl Future<Output = Result<T, object_store::Error>>) -> Result<T, CheckpointError> {
        self.answered(request).await.map_err(|e| self.error(what, e))
    }

    async fn answered<T>(&self, request: impl Future<Output = object_store::Result<T>>) -> object_store::Result<T> {
        let longest = self.patience.answer;
        tokio::time::timeout(longest, request).await.unwrap_or_else(|_| {
            let source = format!("no answer within {} s", longest.as_secs_f64()).into();
            Err(object_store::Error::Generic { store: "object store", source })
        })
    }

    async fn names(&self, folder: &str) -> Result<Vec<String>, CheckpointError> {
        let prefix = self.root.clone().join(folder);
        let listing = self.store.list(Some(&prefix)).try_filter_map(async |object| Ok(object.location.filename().map(str::to_owned)));
        self.within(&format!("list {folder}"), listing.try_collect()).await
    }

    /// An object's bytes, if it is there. How long it takes does not matter while something comes, nor do errors that may pass.
    async fn get(&self, folder: &str, name: &str) -> Result<Option<Bytes>, CheckpointError> {
        let path = self.at(folder, name);
        let Patience { mut tries, mut backoff, .. } = self.patience;
        let mut bytes = Vec::new();
        loop {
            let known = bytes.len();
            let error = match self.read_on(&path, &mut bytes).await {
                Ok(read) => return Ok(read),
                Err(error) => error,
            };
            if bytes.len() > known {
                Patience { tries, backoff, .. } = self.patience;
            }
            if tries == 0 || store::lasting(&error).is_some() {
                return Err(self.error(format!("read {folder}/{name}"), error));
            }
            tries -= 1;
            tracing::warn!(url = self.url, folder, name, %error, bytes = bytes.len(), "reading a checkpoint is tried again");
            tokio::time::sleep(backoff).await;
            backoff = (2 * backoff).min(BACKOFF_MAX);
        }
    }

    /// Reads an object from behind the `bytes` that are known to its end; none if it is not there. After an error `bytes` are as many as came.
    async fn read_on(&self, path: &Path, bytes: &mut Vec<u8>) -> object_store::Result<Option<Bytes>> {
        let range = (!bytes.is_empty()).then_some(GetRange::Offset(bytes.len() as u64));
        let options = GetOptions { range, ..GetOptions::default() };
        let found = match self.answered(self.store.get_opts(path, options)).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut pieces = match found.payload {
            // A disk gives it or an error, in as long as its size takes.
            GetResultPayload::File(file, _) => return map(file).await.map(Some),
            GetResultPayload::Stream(pieces) => pieces,
        };
        let end = found.range.end as usize;
        bytes.truncate(found.range.start as usize);
        bytes.reserve_exact(end.saturating_sub(bytes.len()));
        while bytes.len() < end {
            let Some(piece) = self.answered(pieces.try_next()).await? else {
                let source = format!("it ended after {} of {end} bytes", bytes.len()).into();
                return Err(object_store::Error::Generic { store: "object store", source });
            };
            bytes.extend_from_slice(&piece);
        }
        Ok(Some(std::mem::take(bytes).into()))
    }

    async fn create(&self, folder: &str, name: &str, bytes: Vec<u8>, [before, after]: [Point; 2]) -> Result<bool, CheckpointError> {
        let (path, options) = (self.at(folder, name), PutOptions::from(PutMode::Create));
        let request = async {
            check(before).map_err(store::local_disk)?;
            match self.store.put_opts(&path, bytes.into(), options).await {
                Ok(_) => check(after).map_err(store::local_disk).map(|()| true),
                Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
                Err(error) => Err(error),
            }
        };
        self.within(&format!("write {folder}/{name}"), request).await
    }

    async fn remove(&self, folder: &str, name: &str) -> Result<(), CheckpointError> {
        let path = self.at(folder, name);
        let request = async {
            match self.store.delete(&path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        };
        self.within(&format!("remove {folder}/{name}"), request).await
    }

    /// The checkpoints that there are, savepoints among them, the newest first.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn list(&self) -> Result<Vec<Listed>, CheckpointError> {
        let mut listed = Vec::new();
        for object in self.names("manifests").await? {
            if let Some(epoch) = object.strip_suffix(".json").and_then(|epoch| epoch.parse().ok()) {
                listed.push(Listed { epoch: Epoch(epoch), name: None, object });
            }
        }
        for object in self.names("savepoints").await? {
            if let Some((epoch, name)) = object.strip_suffix(".json").and_then(|name| name.split_once('-'))
                && let Ok(epoch) = epoch.parse()
            {
                listed.push(Listed { epoch: Epoch(epoch), name: Some(name.to_owned()), object });
            }
        }
        listed.sort();
        listed.reverse();
        Ok(listed)
    }

    /// The checkpoint of an epoch, or the savepoint of a name.
    ///
    /// # Errors
    /// If there is none, or the store cannot be read.
    pub async fn find(&self, wanted: &str) -> Result<Listed, CheckpointError> {
        let is_wanted = |listed: &Listed| match &listed.name {
            Some(name) => name == wanted,
            None => listed.epoch.0.to_string() == wanted,
        };
        let found = self.list().await?.into_iter().find(is_wanted);
        found.ok_or_else(|| CheckpointError::Missing { url: self.url.clone(), wanted: wanted.to_owned() })
    }

    /// What a checkpoint says of itself.
    ///
    /// # Errors
    /// If it cannot be read, is damaged, or of another release.
    pub async fn manifest(&self, listed: &Listed) -> Result<Manifest, CheckpointError> {
        let folder = if listed.name.is_some() { "savepoints" } else { "manifests" };
        let object = format!("{folder}/{}", listed.object);
        let Some(bytes) = self.get(folder, &listed.object).await? else {
            return Err(self.damaged(&object, "it is gone"));
        };
        let manifest = Manifest::from_json(&bytes).map_err(|error| match error {
            ManifestError::Damaged(_) => self.damaged(&object, error),
            ManifestError::Format(_) => {
                CheckpointError::Different { url: self.url.clone(), epoch: listed.epoch.0, what: error.to_string() }
            }
        })?;
        if manifest.epoch != listed.epoch {
            return Err(self.damaged(&object, format!("it is of epoch {}", manifest.epoch)));
        }
        Ok(manifest)
    }

    /// Makes a checkpoint valid. False if there is one of that epoch.
    pub(super) async fn commit(&self, manifest: &Manifest) -> Result<bool, CheckpointError> {
        let json = serde_json::to_vec_pretty(manifest).expect("a manifest is plain data");
        let points = [Point::CheckpointManifest, Point::CheckpointManifestDone];
        self.create("manifests", &format!("{:020}.json", manifest.epoch.0), json, points).await
    }

    /// Keeps a checkpoint under a name.
    ///
    /// # Errors
    /// If there is one of that name, the checkpoint was just removed, or the store cannot be written to.
    pub async fn save(&self, listed: &Listed, name: &str) -> Result<(), CheckpointError> {
        let manifest = self.manifest(listed).await?;
        let taken = || CheckpointError::Exists { url: self.url.clone(), name: name.to_owned() };
        if self.list().await?.iter().any(|listed| listed.name.as_deref() == Some(name)) {
            return Err(taken());
        }
        let json = serde_json::to_vec_pretty(&manifest).expect("a manifest is plain data");
        let object = format!("{:020}-{name}.json", manifest.epoch.0);
        if !self.create("savepoints", &object, json, [Point::Savepoint, Point::SavepointDone]).await? {
            return Err(taken());
        }
        // The job may have removed its files in between: then the name would keep nothing.
        let there: BTreeSet<String> = self.names("data").await?.into_iter().collect();
        if let Some(gone) = manifest.files.keys().find(|file| !there.contains(*file)) {
            self.remove("savepoints", &object).await?;
            return Err(self.damaged(&format!("data/{gone}"), "the job has just removed it; try again"));
        }
        Ok(())
    }

    /// Removes a checkpoint. Its files go when nothing else needs them.
    ///
    /// # Errors
    /// If the store cannot be written to.
    pub async fn remove_checkpoint(&self, listed: &Listed) -> Result<(), CheckpointError> {
        self.remove(if listed.name.is_some() { "savepoints" } else { "manifests" }, &listed.object).await
    }

    /// Writes down what a process has written of a checkpoint.
    pub(super) async fn put_part(&self, epoch: Epoch, process: usize, part: &Part) -> Result<(), CheckpointError> {
        let name = part_name(epoch, process);
        let json = serde_json::to_vec(part).expect("a part is plain data");
        self.create("parts", &name, json, [Point::CheckpointPart, Point::CheckpointPartDone]).await.map(|_| ())
    }

    /// What a process has written of a checkpoint, once it has.
    pub(super) async fn part(&self, epoch: Epoch, process: usize) -> Result<Option<Part>, CheckpointError> {
        let name = part_name(epoch, process);
        let bytes = self.get("parts", &name).await?;
        bytes.map(|bytes| serde_json::from_slice(&bytes).map_err(|e| self.damaged(&format!("parts/{name}"), e))).transpose()
    }

    /// Removes what an earlier life of a process has written of checkpoints that it did not finish, and what any has left half written.
    ///
    /// # Errors
    /// If the store cannot be written to.
    pub(crate) async fn forget_life(&self, process: usize) -> Result<(), CheckpointError> {
        let end = format!("-{process}.json");
        for name in self.names("parts").await?.iter().filter(|name| name.ends_with(&end)) {
            self.remove("parts", name).await?;
        }
        self.remove_stale().await;
        pass(Point::CheckpointLife);
        Ok(())
    }

    /// Removes what killed lives left half written, which no listing shows.
    async fn remove_stale(&self) {
        let Ok(root) = Url::parse(&self.url) else { return };
        for folder in FOLDERS.iter().filter_map(|folder| root.join(&format!("{folder}/")).ok()) {
            store::remove_stale(&folder).await;
        }
    }

    /// Reads a data file, and checks it.
    pub(super) async fn file(&self, name: &str, file: &DataFile) -> Result<Bytes, CheckpointError> {
        let object = format!("data/{name}");
        let Some(bytes) = self.get("data", name).await? else { return Err(self.damaged(&object, "it is gone")) };
        if bytes.len() as u64 != file.bytes {
            return Err(self.damaged(&object, format!("it has {} bytes, and should have {}", bytes.len(), file.bytes)));
        }
        if crc32fast::hash(&bytes) != file.crc32 {
            return Err(self.damaged(&object, "its checksum is another"));
        }
        Ok(bytes)
    }

    /// Removes what no kept checkpoint needs: all manifests up to that of the epoch `newest` but the `keep` newest ones; and data files and parts that no
    /// manifest and no savepoint lists, if they were begun by the oldest manifest that is kept, or by the one before `newest` if that is older.
    ///
    /// What was begun later is being written, by this job or by one that took its place without its having noticed. We maintain the invariant that
    /// **nothing is removed that a successor writes or reads**: it goes on from the newest manifest that there is once it has the epoch log. From then
    /// on no epoch of this job becomes durable, so that this job puts at most the one manifest more that it was at, which was begun behind the one
    /// before. Whichever of the two the successor found, all of its files begin behind the one before, and what that one lists stays this time.
    /// Only one that passes over these, as a sink of its own lacks what they stand for, may lose files; then its checkpoint is found damaged.
    ///
    /// What belongs to nothing goes in the end: the limit moves on with each checkpoint, and it stays behind.
    ///
    /// # Errors
    /// If the store cannot be read, or a kept manifest is damaged: then nothing is removed.
    pub(super) async fn collect_garbage(&self, keep: usize, newest: Epoch) -> Result<usize, CheckpointError> {
        let (kept, mut manifests): (Vec<_>, Vec<_>) =
            self.list().await?.into_iter().partition(|listed| listed.name.is_some() || listed.epoch > newest);
        // The newest comes first.
        let limit = manifests.iter().take(keep.max(2)).skip(1).next_back().map(|listed| listed.epoch);
        let old = manifests.split_off(keep.max(1).min(manifests.len()));
        let mut used = BTreeSet::new();
        for listed in manifests.iter().chain(&kept) {
            used.extend(self.manifest(listed).await?.files.into_keys());
        }
        for listed in old.iter().filter(|listed| Some(listed.epoch) == limit) {
            match self.manifest(listed).await {
                Ok(manifest) => used.extend(manifest.files.into_keys()),
                Err(CheckpointError::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let mut removed = 0;
        check(Point::CheckpointGarbage).map_err(|error| self.error("remove old checkpoints", store::local_disk(error)))?;
        for listed in &old {
            self.remove_checkpoint(listed).await?;
            pass(Point::CheckpointOldManifest);
            removed += 1;
        }
        let begun = |name: &str| name.split_once('-').and_then(|(epoch, _)| epoch.parse().ok()).map(Epoch);
        let is_over = |name: &str| begun(name).is_some_and(|epoch| Some(epoch) <= limit);
        for name in self.names("data").await? {
            if is_over(&name) && !used.contains(&name) {
                self.remove("data", &name).await?;
                pass(Point::CheckpointOldFile);
                removed += 1;
            }
        }
        for name in self.names("parts").await? {
            if is_over(&name) {
                self.remove("parts", &name).await?;
                pass(Point::CheckpointOldPart);
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// The bytes of a file of local disk, as the kernel keeps them: a state of gigabytes is not copied, and takes no memory of the process.
async fn map(file: File) -> object_store::Result<Bytes> {
    let mapped = tokio::task::spawn_blocking(move || {
        // SAFETY: nobody writes to a file of a checkpoint once it has its name, nor cuts it; one that is removed stays as it is for who has it open.
        unsafe { MmapOptions::new().populate().map(&file) }
    });
    match mapped.await {
        Ok(Ok(bytes)) => Ok(Bytes::from_owner(bytes)),
        Ok(Err(error)) => Err(store::local_disk(error)),
        Err(error) => Err(error.into()),
    }
}

fn part_name(epoch: Epoch, process: usize) -> String {
    format!("{:020}-{process}.json", epoch.0)
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::sync::Mutex;
    use std::time::SystemTime;

    use async_trait::async_trait;
    use futures::StreamExt;
    use futures::stream::{self, BoxStream};
    use object_store::memory::InMemory;
    use object_store::{
        CopyOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMultipartOptions, PutPayload, PutResult, Result,
    };
    use orderflow_faults::store::{Call, Fault, Faults, FaultyStore};

    use super::super::manifest::FileKind;
    use super::super::manifest::tests::header;
    use super::*;

    const SHORT: Patience = Patience { answer: Duration::from_millis(200), tries: 2, backoff: Duration::from_millis(1) };

    fn checkpoints(store: Arc<dyn ObjectStore>) -> CheckpointStore {
        CheckpointStore { store, root: Path::from("job"), url: "mem://job/".to_owned(), patience: SHORT }
    }

    /// Gives objects in pieces, each after a while.
    #[derive(Debug)]
    struct Slow {
        store: InMemory,
        wait: Duration,
        /// Behind so many the connection breaks.
        pieces: usize,
        /// Where reading began.
        starts: Mutex<Vec<u64>>,
    }

    const PIECE_BYTES: usize = 10;

    impl fmt::Display for Slow {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Slow")
        }
    }

    #[async_trait]
    impl ObjectStore for Slow {
        async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
            self.store.put_opts(location, payload, options).await
        }

        async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
            self.store.put_multipart_opts(location, options).await
        }

        async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
            let found = self.store.get_opts(location, options).await?;
            let (meta, range, attributes) = (found.meta.clone(), found.range.clone(), found.attributes.clone());
            self.starts.lock().unwrap().push(range.start);
            let bytes = found.bytes().await?;
            let mut pieces: Vec<Result<Bytes>> = bytes.chunks(PIECE_BYTES).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
            if pieces.len() > self.pieces {
                pieces.truncate(self.pieces);
                pieces.push(Err(object_store::Error::Generic { store: "slow", source: "the connection broke".into() }));
            }
            let wait = self.wait;
            let pieces = stream::iter(pieces).then(move |piece| async move {
                tokio::time::sleep(wait).await;
                piece
            });
            Ok(GetResult { payload: GetResultPayload::Stream(pieces.boxed()), meta, range, attributes })
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

    #[tokio::test]
    async fn reading_takes_as_long_as_something_comes() {
        let object: Vec<u8> = (0..=255).collect();
        let breaks: Vec<u64> = (0..9).map(|piece| piece * 30).collect();
        for (pieces, starts) in [(usize::MAX, vec![0]), (3, breaks)] {
            let slow = Arc::new(Slow { store: InMemory::new(), wait: Duration::from_millis(20), pieces, starts: Mutex::default() });
            let store = checkpoints(slow.clone());
            slow.put(&store.data_path("x"), object.clone().into()).await.unwrap();
            assert_eq!(store.get("data", "x").await.unwrap().unwrap(), object);
            assert_eq!(*slow.starts.lock().unwrap(), starts);
        }
    }

    #[tokio::test]
    async fn errors_that_may_pass_are_borne_a_few_times() {
        let faults = Faults::default();
        let store = checkpoints(Arc::new(FaultyStore::new(Arc::new(InMemory::new()), &faults)));
        store.store.put(&store.data_path("x"), "x".into()).await.unwrap();
        faults.add(Call::Get, "x", &[Fault::Lost, Fault::Hangs]);
        assert_eq!(store.get("data", "x").await.unwrap().unwrap(), "x");
        assert_eq!(store.get("data", "y").await.unwrap(), None);
        for (fault, expected) in [(Fault::Lost, "the network is down"), (Fault::Hangs, "no answer within 0.2 s")] {
            faults.add(Call::Get, "x", &[fault; 3]);
            let error = store.get("data", "x").await.unwrap_err().to_string();
            assert!(error.contains("read data/x") && error.contains(expected), "{error}");
            assert_eq!(faults.left(), 0);
        }
    }

    fn manifest(epoch: u64, files: &[String]) -> Manifest {
        let file = DataFile {
            operator: "stock".into(),
            kind: FileKind::Changes,
            worker: 0,
            peers: 1,
            first_epoch: Epoch(1),
            last_epoch: Epoch(1),
            rows: 0,
            bytes: 0,
            crc32: 0,
        };
        let files = files.iter().map(|name| (name.clone(), file.clone())).collect();
        Manifest { epoch: Epoch(epoch), files, ..Manifest::nothing(header()) }
    }

    /// A file that a writer begins with an epoch.
    fn begun(epoch: u64, by: &str) -> String {
        format!("{epoch:020}-stock-0-changes-{by}.arrow")
    }

    #[tokio::test]
    async fn what_a_successor_writes_and_reads_is_no_garbage() {
        for keep in 1..=4 {
            let store = checkpoints(Arc::new(InMemory::new()));
            let write = async |name: &str| drop(store.store.put(&store.data_path(name), "".into()).await.unwrap());
            let checkpoint = async |epoch: u64, files: &[String]| {
                for name in files {
                    write(name).await;
                }
                assert!(store.commit(&manifest(epoch, files)).await.unwrap());
                store.collect_garbage(keep, Epoch(epoch)).await.unwrap();
            };
            let killed = begun(1, "killed");
            write(&killed).await;
            checkpoint(80, &[begun(1, "a")]).await;
            assert!(store.names("data").await.unwrap().contains(&killed), "a successor that found no checkpoint begins so");
            let before = [begun(1, "b"), begun(81, "b")];
            checkpoint(90, &before).await;
            assert!(!store.names("data").await.unwrap().contains(&killed), "{keep} kept");
            // It goes on from there. Before this job notices, it makes another checkpoint, which needs less.
            let successor = begun(91, "successor");
            write(&successor).await;
            store.put_part(Epoch(95), 1, &Part::default()).await.unwrap();
            let last = [begun(91, "c")];
            checkpoint(100, &last).await;
            let left = store.names("data").await.unwrap();
            for name in before.iter().chain(&last).chain([&successor]) {
                assert!(left.contains(name), "{name} with {keep} kept: {left:?}");
            }
            assert!(store.part(Epoch(95), 1).await.unwrap().is_some(), "{keep} kept");
            // If there was no successor, it goes in the end.
            for epoch in [110, 120, 130, 140] {
                checkpoint(epoch, &last).await;
            }
            assert_eq!(store.names("data").await.unwrap(), last, "{keep} kept");
            assert!(store.names("parts").await.unwrap().is_empty(), "{keep} kept");
            assert_eq!(store.list().await.unwrap().len(), keep);
        }
    }

    #[tokio::test]
    async fn a_new_life_removes_what_was_left_half_written() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(&folder.path().display().to_string(), &BTreeMap::new()).unwrap();
        let aged = |name: &str, hours: u64| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            File::create(&path).unwrap().set_modified(SystemTime::now() - Duration::from_secs(3600 * hours)).unwrap();
            path
        };
        let old = [aged("data/x.arrow#1", 25), aged("manifests/1.json#340282366920938463463374607431768211455", 25)];
        let kept = [aged("data/y.arrow#1", 23), aged("data/y.arrow", 25), aged("elsewhere/x.arrow#1", 25)];
        store.forget_life(0).await.unwrap();
        assert!(old.iter().all(|path| !path.exists()) && kept.iter().all(|path| path.exists()));
    }
}
