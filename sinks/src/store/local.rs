//! Local disk, such that what was put stays after a power failure.

use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryFutureExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use uuid::Uuid;

use super::upload::PartsOfFile;

/// [`LocalFileSystem`] that writes through to the disk: a file is whole and durable before its name is, and its name is before
/// `put` returns.
///
/// object_store's own leaves that to the kernel, and a power failure may leave a log entry of no bytes, which no
/// reader gets past. What a kill leaves of a file under way is named `<file>#<number>`, which listings do not show;
/// [`remove_stale`](crate::store::remove_stale) removes it.
#[derive(Debug, Default)]
pub struct DurableLocal {
    files: Arc<LocalFileSystem>,
}

impl DurableLocal {
    /// The whole disk: "/" is its root.
    pub fn new() -> DurableLocal {
        DurableLocal::default()
    }
}

impl fmt::Display for DurableLocal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DurableLocal({})", self.files)
    }
}

pub(super) fn failed(path: &FilePath, error: io::Error) -> Error {
    let path = path.display().to_string();
    match error.kind() {
        io::ErrorKind::AlreadyExists => Error::AlreadyExists { path, source: error.into() },
        io::ErrorKind::NotFound => Error::NotFound { path, source: error.into() },
        _ => local_disk(error),
    }
}

/// An error of local disk as one of its store.
pub fn local_disk(error: io::Error) -> Error {
    Error::Generic { store: "local disk", source: error.into() }
}

pub(super) async fn blocking<T: Send + 'static>(
    path: PathBuf,
    work: impl FnOnce(&FilePath) -> io::Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(move || work(&path).map_err(|e| failed(&path, e))).await?
}

/// Writes `payload` beside `path`, and gives it that name.
fn put(path: &FilePath, payload: &PutPayload, create: bool) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    make_folder(folder)?;
    let staged = staged(path);
    let written = write(&staged, payload).and_then(|()| match create {
        // Unlike a rename, a link fails if the name is taken.
        true => std::fs::hard_link(&staged, path),
        false => std::fs::rename(&staged, path),
    });
    if create || written.is_err() {
        // What matters is told by `written`.
        let _ = std::fs::remove_file(&staged);
    }
    written?;
    sync(folder)
}

/// Where a file is until it is whole.
pub(super) fn staged(path: &FilePath) -> PathBuf {
    let mut staged = path.as_os_str().to_owned();
    staged.push(format!("#{}", Uuid::new_v4().as_u128()));
    PathBuf::from(staged)
}

fn write(path: &FilePath, payload: &PutPayload) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    payload.iter().try_for_each(|bytes| file.write_all(bytes))?;
    file.sync_data()
}

/// Makes the folder and those above it, durably.
pub(super) fn make_folder(folder: &FilePath) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let Some(parent) = folder.parent() else { return Ok(()) };
    make_folder(parent)?;
    match std::fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => sync(parent),
    }
}

/// Files in and below `folder` behind `offset`.
///
/// A commit asks so for the log's newest entries. object_store's own looks at each file before it compares names: with the
/// entries of a day that is ten times a commit's other work.
fn list_after(folder: &FilePath, offset: &Path) -> io::Result<Vec<ObjectMeta>> {
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error),
    };
    let here = Path::from_absolute_path(folder).map_err(io::Error::other)?;
    let offset_here = match offset.prefix_matches(&here) {
        true => offset.parts().nth(here.parts_count()).map(|part| part.as_ref().to_owned()),
        false => None,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if offset_here.as_deref().is_some_and(|offset| name < offset) || is_staged(name) {
            continue;
        }
        // Follows links, as listings do; what is removed meanwhile is not there.
        let Ok(metadata) = std::fs::metadata(entry.path()) else { continue };
        if metadata.is_dir() {
            found.extend(list_after(&entry.path(), offset)?);
            continue;
        }
        let location = Path::from_absolute_path(entry.path()).map_err(io::Error::other)?;
        if location > *offset {
            let last_modified = metadata.modified()?.into();
            found.push(ObjectMeta { location, last_modified, size: metadata.len(), e_tag: None, version: None });
        }
    }
    Ok(found)
}

/// Half a file, see [`put`]: by the rule of object_store, which has no objects of such names.
fn is_staged(name: &str) -> bool {
    name.split_once('#').is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// Removes files in and below `folder` that were left half written, and that nobody has written to for `older_than`. Says how many.
/// Whole files are not touched, links not followed; what fails stays, with a warning.
pub(super) fn remove_stale(folder: &FilePath, older_than: Duration) -> usize {
    let mut removed = 0;
    let mut folders = vec![folder.to_owned()];
    let warn = |path: &FilePath, error: io::Error| {
        if error.kind() != io::ErrorKind::NotFound {
            tracing::warn!(path = %path.display(), %error, "a half-written file of a killed life may have stayed");
        }
    };
    while let Some(folder) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) => {
                warn(&folder, error);
                continue;
            }
        };
        // One that cannot be read is behind all that can.
        for entry in entries.map_while(io::Result::ok) {
            let path = entry.path();
            let done = entry.file_type().and_then(|kind| {
                if kind.is_dir() {
                    folders.push(path.clone());
                } else if kind.is_file() && entry.file_name().to_str().is_some_and(is_staged) && is_older(&entry.metadata()?, older_than) {
                    std::fs::remove_file(&path)?;
                    removed += 1;
                }
                Ok(())
            });
            if let Err(error) = done {
                warn(&path, error);
            }
        }
    }
    removed
}

/// Of a time to come nothing is known.
fn is_older(file: &Metadata, than: Duration) -> bool {
    file.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age >= than))
}

pub(super) fn sync(path: &FilePath) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[async_trait]
impl ObjectStore for DurableLocal {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let create = match opts.mode {
            PutMode::Create => true,
            PutMode::Overwrite => false,
            // It says that it cannot.
            PutMode::Update(_) => return self.files.put_opts(location, payload, opts).await,
        };
        blocking(self.files.path_to_filesystem(location)?, move |path| put(path, &payload, create)).await?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        if !opts.attributes.is_empty() {
            // It says that it cannot.
            return self.files.put_multipart_opts(location, opts).await;
        }
        let begun = blocking(self.files.path_to_filesystem(location)?, PartsOfFile::begin).await?;
        Ok(Box::new(begun))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.files.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.files.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.files.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.files.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        let (files, prefix, offset) = (self.files.clone(), prefix.cloned().unwrap_or_default(), offset.clone());
        let listed = async move {
            let folder = files.path_to_filesystem(&prefix)?;
            blocking(folder, move |folder| list_after(folder, &offset)).await
        };
        listed.map_ok(|found| stream::iter(found.into_iter().map(Ok))).try_flatten_stream().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.files.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.files.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.files.rename_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use futures::TryStreamExt;
    use object_store::ObjectStoreExt;

    fn names(folder: &FilePath) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_name_is_given_once_or_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let store = DurableLocal::new();
        let at = Path::from_absolute_path(folder.path().join("_log/1.json")).unwrap();
        store.put_opts(&at, "one".into(), PutMode::Create.into()).await.unwrap();
        let error = store.put_opts(&at, "two".into(), PutMode::Create.into()).await.unwrap_err();
        assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
        assert_eq!(store.get(&at).await.unwrap().bytes().await.unwrap(), "one");
        store.put(&at, "three".into()).await.unwrap();
        assert_eq!(store.get(&at).await.unwrap().bytes().await.unwrap(), "three");
        assert_eq!(names(&folder.path().join("_log")), ["1.json"]);
    }

    #[tokio::test]
    async fn what_a_kill_left_is_not_listed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("1.json#123"), "on").unwrap();
        let prefix = Path::from_absolute_path(folder.path()).unwrap();
        assert_eq!(DurableLocal::new().list(Some(&prefix)).count().await, 0);
    }

    #[test]
    fn what_kills_left_long_ago_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let kept = ["1.json", "1.json#", "1.json#12a", "a#b#12", "below/x.parquet", "12"];
        let left = ["1.json#12", "below/deep/x.parquet#340282366920938463463374607431768211455"];
        let old = SystemTime::now() - Duration::from_secs(3600);
        for path in kept.iter().chain(&left).map(|file| folder.path().join(file)).chain([elsewhere.path().join("2.json#12")]) {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            File::create(path).unwrap().set_modified(old).unwrap();
        }
        std::fs::create_dir(folder.path().join("folder#12")).unwrap();
        std::fs::write(folder.path().join("young.json#12"), "on").unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), folder.path().join("link")).unwrap();
        std::os::unix::fs::symlink(elsewhere.path().join("2.json#12"), folder.path().join("link#12")).unwrap();
        assert_eq!(remove_stale(folder.path(), Duration::from_secs(7200)), 0);
        assert_eq!(remove_stale(folder.path(), Duration::from_secs(600)), 2);
        for path in left.map(|file| folder.path().join(file)) {
            assert!(!path.exists(), "{}", path.display());
        }
        for file in kept.into_iter().chain(["young.json#12", "folder#12", "link/2.json#12", "link#12"]) {
            assert!(folder.path().join(file).exists(), "{file}");
        }
        assert_eq!(remove_stale(&folder.path().join("none"), Duration::ZERO), 0);
    }

    #[tokio::test]
    async fn an_offset_leaves_out_what_is_before_it() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["log/1.json", "log/2.json", "log/3.json", "log/3.json#7", "log/3/x", "log/1/x", "z"] {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let base = Path::from_absolute_path(folder.path()).unwrap();
        let (ours, theirs) = (DurableLocal::new(), LocalFileSystem::new());
        for prefix in ["", "/log", "/none"] {
            let prefix = Path::from(format!("{base}{prefix}"));
            for offset in ["", "/log", "/log/1", "/log/1/x", "/log/2", "/log/2.json", "/log/3/", "/log/9", "/a", "/z"] {
                let offset = Path::from(format!("{base}{offset}"));
                let listed = async |store: &dyn ObjectStore| {
                    let found: Vec<ObjectMeta> = store.list_with_offset(Some(&prefix), &offset).try_collect().await.unwrap();
                    let mut found: Vec<_> = found.into_iter().map(|m| (m.location, m.last_modified, m.size)).collect();
                    found.sort();
                    found
                };
                assert_eq!(listed(&ours).await, listed(&theirs).await, "{prefix} behind {offset}");
            }
        }
    }

    #[tokio::test]
    async fn a_file_in_the_way_is_an_error_with_its_cause() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        let at = Path::from_absolute_path(folder.path().join("file/1.json")).unwrap();
        let error = DurableLocal::new().put(&at, "one".into()).await.unwrap_err();
        assert!(matches!(error, Error::Generic { .. }), "{error:?}");
    }
}
