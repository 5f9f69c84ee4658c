//! A file of local disk that is written in parts.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use futures::FutureExt;
use object_store::{MultipartUpload, PutPayload, PutResult, Result, UploadPart};

use super::local::{blocking, failed, make_folder, staged, sync};

/// Each part is on the disk when it is taken, and then leaves the page cache.
///
/// What is left to a file's end and to the kernel comes all at once: hundreds of megabytes, for which every other `fsync` of the file system has to
/// wait, that of the epoch log among them. And memory that the kernel has to find for it is lacking elsewhere.
#[derive(Debug)]
pub(super) struct PartsOfFile {
    file: Arc<File>,
    /// Where it is until it is whole; none when it is, or was given up.
    staged: Option<PathBuf>,
    path: PathBuf,
    bytes: u64,
}

impl PartsOfFile {
    /// Begins a file that will be at `path`.
    pub fn begin(path: &Path) -> io::Result<PartsOfFile> {
        make_folder(path.parent().ok_or(io::ErrorKind::InvalidInput)?)?;
        let staged = staged(path);
        let file = OpenOptions::new().write(true).create_new(true).open(&staged)?;
        Ok(PartsOfFile { file: Arc::new(file), staged: Some(staged), path: path.to_owned(), bytes: 0 })
    }
}

fn write_at(file: &File, part: &PutPayload, at: u64) -> io::Result<()> {
    let mut end = at;
    for bytes in part {
        file.write_all_at(bytes, end)?;
        end += bytes.len() as u64;
    }
    written_through(file, at, end)
}

/// Writes what lies between two offsets to the disk, without a word about the file's size, and frees its pages.
#[cfg(target_os = "linux")]
fn written_through(file: &File, from: u64, to: u64) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let wait = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    let (at, bytes) = (from as libc::off64_t, (to - from) as libc::off64_t);
    // SAFETY: a call on an open file that takes and gives numbers.
    if unsafe { libc::sync_file_range(file.as_raw_fd(), at, bytes, wait) } != 0 {
        let error = io::Error::last_os_error();
        // Some file systems cannot; then it is left to the file's end.
        return if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL | libc::ESPIPE)) { Ok(()) } else { Err(error) };
    }
    // SAFETY: as above. It is advice: what comes of it does not matter.
    let _ = unsafe { libc::posix_fadvise(file.as_raw_fd(), at, bytes, libc::POSIX_FADV_DONTNEED) };
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn written_through(_file: &File, _from: u64, _to: u64) -> io::Result<()> {
    Ok(())
}

#[async_trait]
impl MultipartUpload for PartsOfFile {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let at = self.bytes;
        self.bytes += data.content_length() as u64;
        let (file, path) = (self.file.clone(), self.path.clone());
        blocking(path, move |_| write_at(&file, &data, at)).boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let staged = self.staged.take().ok_or_else(|| failed(&self.path, io::Error::other("it was ended before")))?;
        let file = self.file.clone();
        let complete = move |path: &Path| {
            let done = file.sync_all().and_then(|()| std::fs::rename(&staged, path)).and_then(|()| path.parent().map_or(Ok(()), sync));
            if done.is_err() {
                // What matters is told by `done`.
                let _ = std::fs::remove_file(&staged);
            }
            done
        };
        blocking(self.path.clone(), complete).await?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn abort(&mut self) -> Result<()> {
        match self.staged.take() {
            Some(staged) => blocking(self.path.clone(), move |_| std::fs::remove_file(staged)).await,
            None => Ok(()),
        }
    }
}

impl Drop for PartsOfFile {
    fn drop(&mut self) {
        if let Some(staged) = self.staged.take() {
            let remove = move || _ = std::fs::remove_file(staged);
            match tokio::runtime::Handle::try_current() {
                Ok(runtime) => drop(runtime.spawn_blocking(remove)),
                Err(_) => remove(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[tokio::test]
    async fn parts_stand_in_their_order_whoever_is_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("below/whole");
        let mut file = PartsOfFile::begin(&path).unwrap();
        let parts: Vec<UploadPart> = [vec![b'a'; 5_000], vec![b'b'; 70_000], vec![b'c'; 3]].map(|part| file.put_part(part.into())).into();
        for part in parts.into_iter().rev() {
            part.await.unwrap();
        }
        assert!(!path.exists(), "it has its name when it is whole");
        file.complete().await.unwrap();
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(whole, [vec![b'a'; 5_000], vec![b'b'; 70_000], vec![b'c'; 3]].concat());
        assert!(file.complete().await.is_err());
        assert_eq!(names(&folder.path().join("below")), ["whole"]);
    }

    #[tokio::test]
    async fn what_is_given_up_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("given_up");
        let mut file = PartsOfFile::begin(&path).unwrap();
        file.put_part("some".into()).await.unwrap();
        assert_eq!(names(folder.path()).len(), 1);
        file.abort().await.unwrap();
        assert!(names(folder.path()).is_empty());
        let mut dropped = PartsOfFile::begin(&path).unwrap();
        dropped.put_part("some".into()).await.unwrap();
        drop(dropped);
        while !names(folder.path()).is_empty() {
            tokio::task::yield_now().await;
        }
    }
}
