//! A fixture folder: `inventory-*.jsonl` and `orders-*.jsonl`, plain or compressed, one split a file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use flate2::bufread::MultiGzDecoder;
use orderflow_operators::decoder::Topic;
use orderflow_operators::epoch::Place;

use super::buffer::{Feed, buffer};
use super::chunk::ChunkBuilder;
use super::lines::Lines;
use super::pace::{Ahead, Pace};
use super::{Source, SourceError, SourceLimits, Split, SplitReader, Wake, numbered};

/// The files of a folder, each read by a thread of its own while it is open.
#[derive(Debug)]
pub struct FileSource {
    splits: Vec<Split>,
    /// By split.
    files: Vec<InputFile>,
    limits: SourceLimits,
    paces: Option<Paces>,
}

/// Where rows arrive at a pace.
#[derive(Debug)]
struct Paces {
    /// By split; none where all come at once.
    splits: Vec<Option<SplitPace>>,
    ahead: Ahead,
}

/// Rows a second, from an offset on.
#[derive(Clone, Copy, Debug)]
struct SplitPace {
    rate: f64,
    from: i64,
}

impl FileSource {
    /// Lists the files of `folder`: `inventory-*.jsonl`, then `orders-*.jsonl`, each sorted by the bytes of their names. A file may be
    /// compressed (`.jsonl.gz`, `.jsonl.zst`), which changes neither its place nor its offsets. Other files are not looked at.
    ///
    /// # Errors
    /// If the folder cannot be read, has no such file, too many, or the same one in two compressions.
    pub fn open_folder(folder: &Path, limits: SourceLimits) -> Result<FileSource, SourceError> {
        let unreadable = |path: &Path, source: io::Error| SourceError::Unreadable { path: path.to_owned(), source: Arc::new(source) };
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(|error| unreadable(folder, error))? {
            let path = entry.map_err(|error| unreadable(folder, error))?.path();
            let Some(file) = InputFile::of(path) else { continue };
            if std::fs::metadata(&file.path).map_err(|error| unreadable(&file.path, error))?.is_file() {
                files.push(file);
            }
        }
        if files.is_empty() {
            return Err(SourceError::NoFiles { folder: folder.to_owned() });
        }
        files.sort_by(|a, b| (a.topic == Topic::Orders, &a.name, &a.path).cmp(&(b.topic == Topic::Orders, &b.name, &b.path)));
        if let Some(pair) = files.windows(2).find(|pair| pair[0].name == pair[1].name) {
            let [first, second] = [&pair[0], &pair[1]].map(|file| file_name(&file.path));
            return Err(SourceError::FileTwice { folder: folder.to_owned(), first, second });
        }
        let names = |topic| files.iter().filter(move |file| file.topic == topic).map(|file| file.name.clone());
        let splits = numbered(names(Topic::Inventory), names(Topic::Orders))?;
        Ok(FileSource { paces: None, splits, files, limits: limits.checked() })
    }

    /// The same, but rows arrive at a pace: together so many a second, from each file in proportion to its rows (estimated by its
    /// beginning). Files whose names begin with `at_once` are read as fast as they can be, and so are the rows before the offsets of `taken`, by split, which
    /// came in an earlier life; the others come when all these were taken, and a little later.
    pub fn paced(mut self, rows_per_s: f64, at_once: &str, taken: &BTreeMap<u32, i64>) -> FileSource {
        let sizes: Vec<u64> = self.files.iter().map(InputFile::rows_estimated).collect();
        let paced = |split: &Split| !split.name.starts_with(at_once);
        let total: u64 = self.splits.iter().zip(&sizes).filter(|(split, _)| paced(split)).map(|(_, bytes)| bytes).sum();
        let rate = |bytes: u64| rows_per_s * bytes.max(1) as f64 / total.max(1) as f64;
        let from = |split: &Split| taken.get(&split.number).copied().unwrap_or(0);
        let pace = |(split, bytes)| paced(split).then(|| SplitPace { rate: rate(bytes), from: from(split) });
        self.paces = Some(Paces { splits: self.splits.iter().zip(sizes).map(pace).collect(), ahead: Ahead::default() });
        self
    }

    /// Of each split, the bytes of its file as it is on disk.
    pub fn sizes(&self) -> Vec<u64> {
        self.files.iter().map(|file| std::fs::metadata(&file.path).map_or(0, |metadata| metadata.len())).collect()
    }
}

impl Source for FileSource {
    fn splits(&self) -> &[Split] {
        &self.splits
    }

    fn open(&self, split: &Split, offset: i64, wake: Wake) -> Result<SplitReader, SourceError> {
        assert!(offset >= 0, "offsets are line numbers from 0");
        let number = split.number as usize;
        let file = self.files[number].clone();
        assert_eq!(file.name, split.name, "files have the numbers that they were given here");
        let limits = self.limits;
        let input = file.open().map_err(|source| SourceError::Unreadable { path: file.path.clone(), source: Arc::new(source) })?;
        let (feed, reader) = buffer(&file.name, offset, limits, wake);
        let (mut pace, mut ahead) = (None, None);
        if let Some(Paces { splits, ahead: all }) = &self.paces {
            match splits[number] {
                Some(SplitPace { rate, from }) => pace = Some(Pace::new(rate, offset, from, all)),
                None => ahead = Some(all.one()),
            }
        }
        thread::Builder::new()
            .name(format!("read-{number}"))
            .spawn(move || match read(input, &file, offset, limits, pace.as_mut(), &feed) {
                Ok(()) => {
                    feed.end();
                    if let Some(ahead) = ahead.or(pace.and_then(Pace::into_ahead)) {
                        ahead.until_taken(&feed);
                    }
                }
                Err(error) => feed.fail(error),
            })
            .map_err(|source| SourceError::Unreadable { path: self.files[number].path.clone(), source: Arc::new(source) })?;
        Ok(reader)
    }

    fn bounded(&self) -> bool {
        true
    }
}

/// Feeds the lines of `input` from line `offset` on, until it ends or nobody wants them.
fn read(
    input: Box<dyn BufRead>,
    file: &InputFile,
    offset: i64,
    mut limits: SourceLimits,
    mut pace: Option<&mut Pace>,
    feed: &Feed,
) -> Result<(), SourceError> {
    if let Some(pace) = &pace {
        limits.chunk_rows = limits.chunk_rows.min(pace.step());
    }
    let broken = |(line, source): (i64, io::Error)| SourceError::Broken { path: file.path.clone(), line, source: Arc::new(source) };
    let mut lines = Lines::new(input);
    let skipped = lines.skip(offset).map_err(|error| broken((0, error)))?;
    if skipped < offset {
        return Err(SourceError::FileShorter { path: file.path.clone(), lines: skipped, offset });
    }
    let mut chunk = ChunkBuilder::new(limits);
    let mut next = offset;
    if let Some(pace) = &mut pace {
        pace.wait(next, feed);
    }
    while feed.wait_for_room() {
        let read = lines.read(&mut chunk, next);
        let end = *read.as_ref().map_or_else(|(end, _)| end, |(end, _)| end);
        if end > Place::OFFSET_MAX {
            return Err(SourceError::OffsetTooLarge { split: file.name.clone(), offset: end });
        }
        chunk.build().into_iter().for_each(|chunk| feed.push(chunk));
        let (end, last) = read.map_err(broken)?;
        if last {
            return Ok(());
        }
        if let Some(pace) = &mut pace {
            pace.wait(end, feed);
        }
        next = end;
    }
    Ok(())
}

#[derive(Clone, Debug)]
struct InputFile {
    path: PathBuf,
    topic: Topic,
    /// The file's name without the ending of its compression: what it is sorted and known by.
    name: String,
    compression: Compression,
}

#[derive(Clone, Copy, Debug)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

impl InputFile {
    /// What the file's name says that it is; none if it is no input.
    fn of(path: PathBuf) -> Option<InputFile> {
        let full = file_name(&path);
        let (name, compression) = [(".gz", Compression::Gzip), (".zst", Compression::Zstd)]
            .into_iter()
            .find_map(|(ending, compression)| Some((full.strip_suffix(ending)?, compression)))
            .unwrap_or((&full, Compression::None));
        let stem = name.strip_suffix(".jsonl")?;
        let topic = match stem {
            _ if stem.starts_with("inventory-") => Topic::Inventory,
            _ if stem.starts_with("orders-") => Topic::Orders,
            _ => return None,
        };
        Some(InputFile { topic, name: name.to_owned(), compression, path })
    }

    /// About how many lines it has, from the length of the first ones; of a compressed file in its own unit.
    fn rows_estimated(&self) -> u64 {
        const SAMPLE_BYTES: u64 = 1 << 20;
        let bytes = std::fs::metadata(&self.path).map_or(0, |metadata| metadata.len());
        let mut sample = Vec::new();
        // What cannot be read is told when it is opened.
        let read = self.open().and_then(|input| input.take(SAMPLE_BYTES).read_to_end(&mut sample)).unwrap_or_default();
        let lines = memchr::memchr_iter(b'\n', &sample).count().max(1) as u64;
        bytes * lines / read.max(1) as u64
    }

    fn open(&self) -> io::Result<Box<dyn BufRead + Send>> {
        /// Fits a core's cache, so that a line's bytes are still there when they are copied into a chunk.
        const READ_BYTES: usize = 128 << 10;
        let file = File::open(&self.path)?;
        Ok(match self.compression {
            Compression::None => Box::new(BufReader::with_capacity(READ_BYTES, file)),
            Compression::Gzip => Box::new(BufReader::with_capacity(READ_BYTES, MultiGzDecoder::new(BufReader::new(file)))),
            Compression::Zstd => {
                Box::new(BufReader::with_capacity(READ_BYTES, zstd::stream::read::Decoder::with_buffer(BufReader::new(file))?))
            }
        })
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
