//! Checkpoints in an object store.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use memmap2::MmapOptions;
use object_store::path::Path;
use object_store::{GetResult, GetResultPayload, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use orderflow_faults::{Point, check, pass};
use orderflow_operators::epoch::Epoch;
use orderflow_sinks::store;

use super::CheckpointError;
use super::manifest::{DataFile, Manifest, ManifestError, Part};
use crate::epoch_log::LogHeader;

/// Longest time for one request, a file's piece or a manifest.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// A job's folder of checkpoints.
#[derive(Clone)]
pub struct CheckpointStore {
    store: Arc<dyn ObjectStore>,
    root: Path,
    url: String,
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
        Ok(CheckpointStore { store: store::open(&url, options).map_err(wrong)?, root, url: url.to_string() })
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
        match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
            Ok(result) => result.map_err(|e| self.error(what, e)),
            Err(_) => Err(self.error(what, timed_out())),
        }
    }

    async fn names(&self, folder: &str) -> Result<Vec<String>, CheckpointError> {
        let prefix = self.root.clone().join(folder);
        let listing = self.store.list(Some(&prefix)).try_filter_map(async |object| Ok(object.location.filename().map(str::to_owned)));
        self.within(&format!("list {folder}"), listing.try_collect()).await
    }

    async fn get(&self, folder: &str, name: &str) -> Result<Option<Bytes>, CheckpointError> {
        let path = self.at(folder, name);
        let request = async {
            match self.store.get(&path).await {
                Ok(GetResult { payload: GetResultPayload::File(file, _), .. }) => map(file).await.map(Some),
                Ok(found) => Ok(Some(found.bytes().await?)),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        };
        self.within(&format!("read {folder}/{name}"), request).await
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

    /// Removes what an earlier life of a process has written of checkpoints that it did not finish.
    ///
    /// # Errors
    /// If the store cannot be written to.
    pub(crate) async fn forget_life(&self, process: usize) -> Result<(), CheckpointError> {
        let end = format!("-{process}.json");
        for name in self.names("parts").await?.iter().filter(|name| name.ends_with(&end)) {
            self.remove("parts", name).await?;
        }
        pass(Point::CheckpointLife);
        Ok(())
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

    /// Removes what no kept checkpoint needs: all manifests up to that of the epoch `newest` but the `keep` newest ones; and data files and parts begun by
    /// then that no manifest and no savepoint lists. What was begun later is being written.
    ///
    /// # Errors
    /// If the store cannot be read, or a kept manifest is damaged: then nothing is removed.
    pub(super) async fn collect_garbage(&self, keep: usize, newest: Epoch) -> Result<usize, CheckpointError> {
        let (kept, mut manifests): (Vec<_>, Vec<_>) =
            self.list().await?.into_iter().partition(|listed| listed.name.is_some() || listed.epoch > newest);
        let old = manifests.split_off(keep.max(1).min(manifests.len()));
        let mut used = BTreeSet::new();
        for listed in manifests.iter().chain(&kept) {
            used.extend(self.manifest(listed).await?.files.into_keys());
        }
        let mut removed = 0;
        check(Point::CheckpointGarbage).map_err(|error| self.error("remove old checkpoints", store::local_disk(error)))?;
        for listed in &old {
            self.remove_checkpoint(listed).await?;
            pass(Point::CheckpointOldManifest);
            removed += 1;
        }
        let begun = |name: &str| name.split_once('-').and_then(|(epoch, _)| epoch.parse().ok()).map(Epoch);
        for name in self.names("data").await? {
            if begun(&name).is_some_and(|epoch| epoch <= newest) && !used.contains(&name) {
                self.remove("data", &name).await?;
                pass(Point::CheckpointOldFile);
                removed += 1;
            }
        }
        for name in self.names("parts").await? {
            if begun(&name).is_some_and(|epoch| epoch <= newest) {
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

fn timed_out() -> object_store::Error {
    let source = format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()).into();
    object_store::Error::Generic { store: "object store", source }
}
