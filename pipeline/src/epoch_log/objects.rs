//! The epoch log in an object store: `<home>/epochs/<first epoch>-<n>.log`, an object for each group of records.
//!
//! ## Design
//!
//! The objects are a *chain*: behind each stands exactly one that may come next, and its name follows from those before it. Behind a
//! group that ends with epoch `e` it is `(e + 1)-0`; behind an *opening*, an object without records by which a writer takes the log
//! over, it is the same epoch with the next `n`. An object is put only if there is none of its name (`PutMode::Create`), and none is ever
//! replaced. So the first put of a name decides what stands there.
//!
//! ```text
//! 000000000001-0000  opening of generation 1, by writer A
//! 000000000001-0001  epochs 1 to 3                              (A)
//! 000000000004-0000  epochs 4 and 5                             (A)
//! 000000000006-0000  opening of generation 2, by writer B       A, which wants to put this name next, finds it taken, and stops
//! 000000000006-0001  epoch 6                                    (B)
//! ```
//!
//! **At most one writer's records are ever taken.** A writer knows the chain up to some object and can put only the name
//! behind it. Say B has put its opening. Whoever else is a writer knows the chain up to an object before that opening, so the name
//! that it wants is that of an object which is there: the opening's, or one before it. Its put fails, it reads what is there, sees that it is not its own, and
//! ends; it never looks further along the chain. What it had put before is before the opening, and B, which
//! read the chain up to there before it put its own, has it. That holds without a clock, a lease or a wait, for any number of writers
//! and for puts that a network delivers late: a late one either finds its name taken, or is the next in the chain, and then the opening
//! that wanted the same name is not and B reads on before it tries again. Generations are therefore only told, and checked when the chain is read: a group has
//! the generation of the opening before it.
//!
//! A put whose answer is lost is tried again; if the name is then taken, the object's content tells whether it is this writer's own, as each has
//! the writer's random name in its first line.
//!
//! ## Old objects
//!
//! Groups of old epochs are removed; openings stay for all time, and so does the last object. **That keeps what was said above true**, however long a
//! writer slept while names before the end became free:
//!
//! - The name that a writer wants next, behind its own last object, was given to nobody or to the first object of another writer, which is
//!   an opening, and there. (A put of its own that is tried again may put again what was there, and removed: then its next one fails.)
//! - Who takes the log over may have read the chain long ago, and put its opening under a name that became free since. But then there is something behind it:
//!   it looks, and stops.
//!
//! Before any is removed, a *mark* says through which epoch: `dropped-<epoch>`. Before it a chain may have gaps.
//!
//! ## Format
//!
//! Lines as in all homes. The first is the [`Head`], the others are the records of the group. The first object's head has the
//! [`LogHeader`], and so has every opening's. A group has at most [`GROUP_EPOCHS_MAX`] epochs, so that the
//! one which an epoch is in is found by listing names from so many epochs before it.

mod store;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStore;
use object_store::path::Path;
use orderflow_faults::{Point, check, pass};
use orderflow_operators::epoch::Epoch;
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;
use uuid::Uuid;

use self::store::{Backoff, Put, Store};
use super::lines::{Sequence, follow, parse_line, push_line};
use super::{EpochLog, EpochLogError, EpochRecord, LogHeader, Old};

/// Most epochs of an object. Part of the format: readers rely on it.
const GROUP_EPOCHS_MAX: u64 = 4096;
/// Objects that are read at the same time.
const READS: usize = 16;
/// How long taking over from a writer that goes on appending is tried.
const TAKE_OVER: Duration = Duration::from_secs(60);

/// Where the objects are.
#[derive(Clone)]
pub struct ObjectSettings {
    /// URL of a folder.
    pub url: String,
    /// The store's own options.
    pub storage: BTreeMap<String, String>,
}

impl fmt::Display for ObjectSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl fmt::Debug for ObjectSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values may be keys.
        f.debug_struct("ObjectSettings").field("url", &self.url).field("storage", &self.storage.keys()).finish()
    }
}

/// The first line of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    /// How often the log had been opened.
    generation: u64,
    /// The random name of the process that wrote it.
    writer: String,
    /// In openings.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    opens: Option<LogHeader>,
}

/// What is in an object.
type Object = (Head, Vec<EpochRecord>);

/// An object's place in the chain, and its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Link {
    epoch: u64,
    n: u64,
}

impl Link {
    const FIRST: Link = Link { epoch: 1, n: 0 };

    fn name(self) -> String {
        format!("{:012}-{:04}.log", self.epoch, self.n)
    }

    fn parse(name: &str) -> Option<Link> {
        let (epoch, n) = name.strip_suffix(".log")?.split_once('-')?;
        Some(Link { epoch: epoch.parse().ok()?, n: n.parse().ok()? }).filter(|link| link.name() == name)
    }

    /// What comes behind an object with records through `last`, or with none.
    fn next(self, last: Option<Epoch>) -> Link {
        match last {
            Some(last) => Link { epoch: last.0 + 1, n: 0 },
            None => Link { n: self.n + 1, ..self },
        }
    }
}

/// How the name of a mark begins.
const MARK: &str = "dropped-";

fn mark(through: u64) -> String {
    format!("{MARK}{through:012}")
}

/// What a mark says.
fn dropped_through(name: &str) -> Option<u64> {
    name.strip_prefix(MARK)?.parse().ok()
}

/// The epoch log in an object store, open for appending.
pub struct ObjectLog {
    chain: Chain,
    head: Head,
    header: LogHeader,
    next: Link,
    last: Epoch,
}

impl ObjectLog {
    /// Opens the log, or begins one, and returns what is in it behind `after`. Whoever had it open stops at its next append.
    ///
    /// # Errors
    /// If it belongs to another job, is damaged, ends before `after`, or the store does not answer.
    pub fn open(settings: &ObjectSettings, header: &LogHeader, after: Epoch) -> Result<(ObjectLog, Vec<EpochRecord>), EpochLogError> {
        ObjectLog::open_in(Chain::connect(settings)?, header, after)
    }

    fn open_in(chain: Chain, header: &LogHeader, after: Epoch) -> Result<(ObjectLog, Vec<EpochRecord>), EpochLogError> {
        let writer = Uuid::new_v4().to_string();
        let deadline = Instant::now() + TAKE_OVER;
        let mut backoff = Backoff::default();
        let mut taken = None;
        let mut read = chain.read(after)?;
        loop {
            // The put follows at once: the name is free only until a live writer's next append.
            chain.read_on(&mut read)?;
            if let Some(what) = read.header.as_ref().and_then(|begun| begun.difference(header)) {
                return Err(EpochLogError::Different { log: chain.log.clone(), what });
            }
            let last = read.sequence.last();
            if last < after {
                return Err(EpochLogError::TooShort { log: chain.log.clone(), last: last.0, after: after.0 });
            }
            // What it was begun with: splits that came later stand in the records.
            let begun = read.header.as_ref().unwrap_or(header).clone();
            let mut head = Head { generation: read.generation + 1, writer: writer.clone(), opens: Some(begun.clone()) };
            if chain.put(read.next, object(&head, &[]))? == Put::Done {
                if chain.is_behind_the_end(read.next)? {
                    return Err(EpochLogError::TakenOver { log: chain.log, job: begun.job });
                }
                head.opens = None;
                let next = read.next.next(None);
                let records = read.sequence.finish(&chain.log)?;
                return Ok((ObjectLog { chain, head, header: begun, next, last }, records));
            }
            // Another writer appended, or opens it too.
            if Instant::now() >= deadline {
                return Err(chain.unavailable("others write to it again and again".to_owned()));
            }
            if taken.replace(read.next) == Some(read.next) {
                // What has the name was not found.
                thread::sleep(backoff.next());
            } else {
                backoff = Backoff::default();
            }
        }
    }

    /// Reads the log behind `after`; it may be in use.
    ///
    /// # Errors
    /// If there is none, it is damaged, ends before `after`, or the store does not answer.
    pub fn read(settings: &ObjectSettings, after: Epoch) -> Result<Vec<EpochRecord>, EpochLogError> {
        ObjectLog::read_with_header(settings, after).map(|(_, records)| records)
    }

    /// As [`read`](ObjectLog::read), with what the log was begun with.
    ///
    /// # Errors
    /// As there.
    pub fn read_with_header(settings: &ObjectSettings, after: Epoch) -> Result<(LogHeader, Vec<EpochRecord>), EpochLogError> {
        ObjectLog::read_in(&Chain::connect(settings)?, after)
    }

    /// Drops old groups.
    ///
    /// # Errors
    /// If an object is damaged, or the store does not answer.
    pub fn drop_old(settings: &ObjectSettings, old: &Old) -> Result<Option<Epoch>, EpochLogError> {
        Chain::connect(settings)?.drop_old(old)
    }

    fn read_in(chain: &Chain, after: Epoch) -> Result<(LogHeader, Vec<EpochRecord>), EpochLogError> {
        let read = chain.read(after)?;
        let Some(header) = read.header else { return Err(EpochLogError::Missing { log: chain.log.clone() }) };
        Ok((header, read.sequence.finish(&chain.log)?))
    }
}

impl EpochLog for ObjectLog {
    fn header(&self) -> &LogHeader {
        &self.header
    }

    fn append(&mut self, records: &[EpochRecord]) -> Result<(), EpochLogError> {
        follow(self.last, records);
        for group in records.chunks(GROUP_EPOCHS_MAX as usize) {
            match self.chain.put(self.next, object(&self.head, group))? {
                Put::Done => {}
                Put::Taken => return Err(EpochLogError::TakenOver { log: self.chain.log.clone(), job: self.header.job.clone() }),
            }
            self.last = follow(self.last, group);
            self.next = self.next.next(Some(self.last));
        }
        Ok(())
    }
}

fn object(head: &Head, records: &[EpochRecord]) -> Vec<u8> {
    let mut bytes = Vec::new();
    push_line(&mut bytes, head);
    records.iter().for_each(|record| push_line(&mut bytes, record));
    bytes
}

/// The objects of a log.
struct Chain {
    store: Store,
    /// How the log is called in messages.
    log: String,
    runtime: Runtime,
}

/// What is in a chain behind an epoch.
struct Read {
    /// The header of the first object and of all openings that were read: they are the same; none if there is no object.
    header: Option<LogHeader>,
    generation: u64,
    sequence: Sequence,
    next: Link,
}

/// Why a chain was not read.
enum Gap {
    /// An object was not listed; it may have come meanwhile.
    Missing {
        found: Link,
        expected: Link,
    },
    Failed(EpochLogError),
}

impl From<EpochLogError> for Gap {
    fn from(error: EpochLogError) -> Gap {
        Gap::Failed(error)
    }
}

impl Chain {
    fn connect(settings: &ObjectSettings) -> Result<Chain, EpochLogError> {
        let refused = |error: orderflow_sinks::SinkError| {
            let what = format!("{error}; correct epoch_log.home and epoch_log.storage");
            EpochLogError::Refused { log: settings.url.clone(), what }
        };
        let url = orderflow_sinks::store::folder_url(&settings.url).map_err(refused)?;
        let store = orderflow_sinks::store::open(&url, &settings.storage).map_err(refused)?;
        let folder = Path::from_url_path(url.path())
            .map_err(|error| EpochLogError::Refused { log: settings.url.clone(), what: format!("{error}; correct epoch_log.home") })?;
        Chain::new(store, folder, settings.url.clone())
    }

    fn new(store: Arc<dyn ObjectStore>, folder: Path, log: String) -> Result<Chain, EpochLogError> {
        // A thread of its own, so that connections are kept while nothing is appended.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("epoch-log-io").enable_all().build();
        let runtime = runtime.map_err(|source| EpochLogError::Io { path: log.clone(), source })?;
        Ok(Chain { store: Store::new(store, folder.join("epochs"), log.clone()), log, runtime })
    }

    fn unavailable(&self, reason: String) -> EpochLogError {
        EpochLogError::Unavailable { log: self.log.clone(), reason }
    }

    fn put(&self, link: Link, bytes: Vec<u8>) -> Result<Put, EpochLogError> {
        self.runtime.block_on(self.store.put(&link.name(), bytes))
    }

    fn read(&self, after: Epoch) -> Result<Read, EpochLogError> {
        self.past_gaps(after, || self.runtime.block_on(self.try_read(after)))
    }

    /// Reads what has come since, all of it but for what comes meanwhile.
    fn read_on(&self, read: &mut Read) -> Result<(), EpochLogError> {
        self.past_gaps(read.sequence.last(), || self.runtime.block_on(self.try_read_on(read)))
    }

    /// A listing is no snapshot: it may show an object, and not the one before it that came meanwhile. Gaps that stay are where old objects were.
    fn past_gaps<T>(&self, after: Epoch, mut read: impl FnMut() -> Result<T, Gap>) -> Result<T, EpochLogError> {
        let mut backoff = Backoff::default();
        let mut tries = 1;
        loop {
            match read() {
                Ok(read) => return Ok(read),
                Err(Gap::Failed(error)) => return Err(error),
                Err(Gap::Missing { .. }) if tries < 3 => thread::sleep(backoff.next()),
                Err(Gap::Missing { found, expected }) => {
                    let names = self.runtime.block_on(self.store.list(MARK))?;
                    let marks = names.iter().filter_map(|name| dropped_through(name));
                    if let Some(dropped) = marks.max().filter(|&dropped| dropped >= expected.epoch && dropped > after.0) {
                        return Err(EpochLogError::Dropped { log: self.log.clone(), first: dropped + 1, after: after.0 });
                    }
                    let what = format!("before it, {} is missing", expected.name());
                    return Err(EpochLogError::Damaged { place: self.place(found), what });
                }
            }
            tries += 1;
        }
    }

    fn place(&self, link: Link) -> String {
        format!("{}: {}", self.log, self.store.place(&link.name()))
    }

    async fn try_read(&self, after: Epoch) -> Result<Read, Gap> {
        let links = self.links(after).await?;
        let from = links.iter().rposition(|link| link.n == 0 && link.epoch <= after.0 + 1).unwrap_or(0);
        let links = &links[from..];
        let first = links.first().copied();
        let mut read = Read { header: None, generation: 0, sequence: Sequence::new(after), next: first.unwrap_or(Link::FIRST) };
        if let Some(first) = first {
            let damaged = |what| Gap::Failed(EpochLogError::Damaged { place: self.place(first), what });
            read.sequence.expect(first.epoch).map_err(damaged)?;
            if first.n != 0 {
                return Err(Gap::Missing { found: first, expected: Link { n: 0, ..first } });
            }
            if first != Link::FIRST {
                read.header = self.get(Link::FIRST).await?.0.opens;
            }
        }
        self.take_all(&mut read, links).await?;
        Ok(read)
    }

    async fn try_read_on(&self, read: &mut Read) -> Result<(), Gap> {
        // One by one: that nothing has a name is known soonest by asking for it.
        for _ in 0..READS {
            let link = read.next;
            match self.find(link).await? {
                Some(object) => self.take(read, link, object)?,
                None => return Ok(()),
            }
        }
        // One by one, more might come than is read.
        let next = read.next;
        let links: Vec<Link> = self.links_from(next.epoch).await?.into_iter().filter(|link| *link >= next).collect();
        self.take_all(read, &links).await
    }

    /// Takes objects that are there.
    async fn take_all(&self, read: &mut Read, links: &[Link]) -> Result<(), Gap> {
        let get = |&link: &Link| async move {
            // It was listed.
            let object = self.find(link).await?.ok_or(Gap::Missing { found: link, expected: link })?;
            Ok::<_, Gap>((link, object))
        };
        let mut objects = stream::iter(links).map(get).buffered(READS);
        while let Some((link, object)) = objects.try_next().await? {
            self.take(read, link, object)?;
        }
        Ok(())
    }

    /// Takes an object, which must be the next of the chain.
    fn take(&self, read: &mut Read, link: Link, (head, records): Object) -> Result<(), Gap> {
        if link != read.next {
            return Err(Gap::Missing { found: link, expected: read.next });
        }
        let damaged = |what: String| Gap::Failed(EpochLogError::Damaged { place: self.place(link), what });
        let unopened = head.opens.is_none() && link == Link::FIRST;
        let expected = read.generation + u64::from(head.opens.is_some());
        if unopened || head.generation != expected && read.generation != 0 {
            return Err(damaged(format!("it has generation {} where {expected} was expected", head.generation)));
        }
        if head.opens.is_none() == records.is_empty() {
            return Err(damaged("it has no records, or records in an opening".to_owned()));
        }
        read.generation = head.generation;
        if head.opens.is_some() {
            read.header = head.opens;
        }
        let last = records.last().map(|record| record.epoch);
        records.into_iter().try_for_each(|record| read.sequence.take(record)).map_err(damaged)?;
        read.next = link.next(last);
        Ok(())
    }

    /// Whether there is something behind a name, which has been put just now.
    fn is_behind_the_end(&self, link: Link) -> Result<bool, EpochLogError> {
        let links = self.runtime.block_on(self.links_from(link.epoch))?;
        Ok(links.last().is_some_and(|&last| last > link))
    }

    fn drop_old(&self, old: &Old) -> Result<Option<Epoch>, EpochLogError> {
        self.runtime.block_on(async {
            let is_old = |name: &str, put: i64| match Link::parse(name) {
                Some(link) => link.epoch <= old.through.0 + 1 && put < old.sealed_before,
                None => dropped_through(name).is_some(),
            };
            let names = self.store.names(is_old).await?;
            let mut links: Vec<Link> = names.iter().filter_map(|name| Link::parse(name)).collect();
            links.sort_unstable();
            // What is before one that is old, is old.
            let Some(end) = links.iter().rposition(|link| link.n == 0) else { return Ok(None) };
            let groups = self.groups(&links[..end], links[end]).await?;
            if groups.is_empty() {
                return Ok(None);
            }
            let through = links[end].epoch - 1;
            check(Point::ObjectsMark).map_err(|source| EpochLogError::Io { path: self.log.clone(), source })?;
            // Nothing tells one mark from another, so an earlier try was as good.
            self.store.put(&mark(through), Vec::new()).await?;
            pass(Point::ObjectsMarked);
            self.store.remove(groups.into_iter().map(Link::name)).await?;
            pass(Point::ObjectsDropped);
            let earlier = names.into_iter().filter(|name| dropped_through(name).is_some_and(|epoch| epoch < through));
            self.store.remove(earlier).await?;
            Ok(Some(Epoch(through)))
        })
    }

    /// Which of the objects before `end` are groups. Not all are read: between two of one writer there is no opening.
    async fn groups(&self, links: &[Link], end: Link) -> Result<Vec<Link>, EpochLogError> {
        // Behind an opening comes one of the same epoch.
        let behind = links.iter().skip(1).chain([&end]);
        let may_be: Vec<Link> =
            links.iter().zip(behind).filter(|(link, behind)| link.epoch < behind.epoch).map(|(link, _)| *link).collect();
        let (mut groups, mut left) = (Vec::new(), vec![may_be.as_slice()]);
        while let Some(links) = left.pop() {
            let (Some(&first), Some(&last)) = (links.first(), links.last()) else { continue };
            let (of_first, of_last) = (self.get(first).await?.0, self.get(last).await?.0);
            if of_first.writer == of_last.writer {
                groups.extend(of_first.opens.is_none().then_some(first));
                groups.extend(links.iter().skip(1));
            } else {
                let (before, behind) = links.split_at(links.len() / 2);
                left.extend([before, behind]);
            }
        }
        Ok(groups)
    }

    /// The names that are there, from the one with epoch `after + 1` or an earlier one on.
    async fn links(&self, after: Epoch) -> Result<Vec<Link>, EpochLogError> {
        let from = (after.0 + 1).saturating_sub(GROUP_EPOCHS_MAX).max(1);
        let links = self.links_from(from).await?;
        if links.is_empty() && from > 1 {
            // It ends before, which is to be told.
            return self.links_from(0).await;
        }
        Ok(links)
    }

    /// The names that are there, from an epoch on.
    async fn links_from(&self, epoch: u64) -> Result<Vec<Link>, EpochLogError> {
        let from = if epoch == 0 { String::new() } else { format!("{epoch:012}") };
        let names = self.store.list(&from).await?;
        let mut links: Vec<Link> = names.iter().filter_map(|name| Link::parse(name)).collect();
        links.sort_unstable();
        Ok(links)
    }

    /// An object that was listed.
    async fn get(&self, link: Link) -> Result<Object, EpochLogError> {
        let missing = || EpochLogError::Damaged { place: self.place(link), what: "it is missing".to_owned() };
        self.find(link).await?.ok_or_else(missing)
    }

    /// An object, if it is there.
    async fn find(&self, link: Link) -> Result<Option<Object>, EpochLogError> {
        let damaged = |what: String| EpochLogError::Damaged { place: self.place(link), what };
        let Some(bytes) = self.store.get(&link.name()).await? else { return Ok(None) };
        let Some(text) = bytes.strip_suffix(b"\n") else { return Err(damaged("it ends within a line".to_owned())) };
        let mut lines = (1..).zip(text.split(|b| *b == b'\n'));
        let of_line = |line: usize, what: String| damaged(format!("line {line}: {what}"));
        let head = lines.next().map_or(Err("it is empty".to_owned()), |(_, text)| parse_line(text)).map_err(|what| of_line(1, what))?;
        let records = lines.map(|(line, text)| parse_line(text).map_err(|what| of_line(line, what))).collect::<Result<_, _>>()?;
        Ok(Some((head, records)))
    }
}

#[cfg(test)]
mod tests;
