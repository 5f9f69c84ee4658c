//! The job's stages: SQL files that the settings name, planned before the job begins, with the streams that they add.
//!
//! A stage may read the streams of the job, and those that stages before it in the list write. So there are no cycles, and what one reads is there when it is built.

mod changes;
mod columns;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use orderflow_operators::columns::timestamp_type;
use orderflow_operators::features::WindowSet;
use orderflow_operators::streams::{EPOCH, OutputStream, StageStream, Stream};
use orderflow_sql::rows::META;
use orderflow_sql::run::lookup_table;
use orderflow_sql::stage::catalog::{Connector, Format, Role, Table};
use orderflow_sql::stage::{NamedStream, Stage};
use orderflow_sql::udf::{self, Udfs};

use crate::config::{Config, SinkKind};

pub(crate) use changes::{ChangesSink, change_schema};
pub use columns::IS_RETRACT;
pub(crate) use columns::stage_rows;
use columns::{read_type, stream_schema};

/// The stream of rows that a stage leaves out: late ones, and those for which an expression has no value.
pub const REJECTS: &str = "stage_rejects";

/// What is wrong with the stages.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StagesError(String);

/// The streams of a job and the stages that write some of them.
#[derive(Clone, Debug)]
pub struct Stages {
    /// In the order in which they are built.
    pub stages: Vec<JobStage>,
    /// All streams of the job; its own come first.
    pub streams: Vec<JobStream>,
}

/// A stage of the job.
#[derive(Clone, Debug)]
pub struct JobStage {
    /// The name of its file, without `.sql`.
    pub name: String,
    /// Its plan.
    pub stage: Stage,
    /// By sink, as in the plan's graph: the number of the stream in [`Stages::streams`].
    pub outputs: Vec<usize>,
    /// What its lookup tables hold.
    pub lookups: HashMap<String, RecordBatch>,
    /// What its results depend on, beside the job's settings: as short text.
    pub meaning: String,
}

/// A stream and where it goes.
#[derive(Clone, Debug)]
pub struct JobStream {
    /// Its name and columns.
    pub stream: OutputStream,
    /// Which sinks get it.
    pub target: Target,
    /// Whether a column says which rows are taken back.
    pub changes: bool,
    /// Whether messages and lines are Debezium's; the key's columns, by their place behind `epoch` and `is_retract`.
    pub debezium: Option<Vec<usize>>,
}

/// Which sinks get a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// All that are on, but where their own list of streams leaves it out.
    All,
    /// Those of one kind, at an address of its own if there is one: a folder of tables, or brokers.
    Only(SinkKind, Option<String>),
    /// Lines on standard output.
    Stdout,
    /// None: rows are only counted.
    Nothing,
}

impl Default for Stages {
    fn default() -> Self {
        Stages { stages: Vec::new(), streams: Stream::ALL.map(JobStream::own).into() }
    }
}

impl JobStream {
    fn own(stream: Stream) -> JobStream {
        JobStream { stream: stream.into(), target: Target::All, changes: false, debezium: None }
    }
}

impl Stages {
    /// Reads and plans the stages of `files`: paths, relative to the current folder, of which the last part may have stars.
    ///
    /// # Errors
    /// If a file cannot be read, or something in it is wrong: with its place there, and what to do.
    pub fn load(files: &[String], windows: &WindowSet) -> Result<Stages, StagesError> {
        let mut stages = Stages::default();
        let own = |stream: Stream| NamedStream { name: stream.name().to_owned(), schema: stream.schema(windows), updating: false };
        let mut named: Vec<NamedStream> = Stream::ALL.map(own).into();
        let paths = paths(files)?;
        for (number, path) in paths.iter().enumerate() {
            let behind = &paths[number + 1..];
            stages.add(path, &mut named).map_err(|error| StagesError(format!("{}: {}", path.display(), error.0 + &hint(behind))))?;
        }
        if !stages.stages.is_empty() {
            stages.streams.push(JobStream {
                stream: OutputStream::Stage(Arc::new(StageStream { name: REJECTS.to_owned(), schema: rejects(), key: Vec::new() })),
                target: Target::All,
                changes: false,
                debezium: None,
            });
        }
        Ok(stages)
    }

    fn add(&mut self, path: &Path, named: &mut Vec<NamedStream>) -> Result<(), StagesError> {
        let wrong = |message: String| StagesError(message);
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        if !is_name(&name) {
            return Err(wrong(format!("a stage's file is named with 1 to {NAME_MAX} of the characters A-Z a-z 0-9 _-")));
        }
        if self.stages.iter().any(|stage| stage.name == name) {
            return Err(wrong(format!("there is another stage `{name}`: rename the file, as state is kept by that name")));
        }
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        let folder = path.parent().and_then(udf::folder_of);
        let udfs = Udfs::for_stage(&text, folder.as_deref()).map_err(|e| wrong(e.to_string()))?;
        let stage = Stage::plan_with(&text, named, &udfs).map_err(|e| wrong(e.to_string()))?;
        let mut meaning = format!("text {:08x}, plan {:08x}", checksum(&text), checksum(&stage.graph.to_text()));
        udfs.texts().for_each(|(function, text)| meaning += &format!(", {function} {:08x}", checksum(text)));
        for stream in stage.named_streams() {
            for writer in self.stages.iter().filter(|writer| writer.outputs.iter().any(|&at| self.streams[at].stream.name() == stream)) {
                meaning += &format!(", {stream} of {} {:08x}", writer.name, checksum(&writer.meaning));
            }
        }
        let mut lookups = HashMap::new();
        for input in &stage.inputs {
            let (table, connector) = (&input.table.name, input.table.connector.name());
            if input.table.role != Some(Role::Lookup) {
                return Err(wrong(format!(
                    "table `{table}` reads connector '{connector}', and a stage in a job reads the job's streams: name one of them ({}), or run the stage \
                     by itself with `orderflow sql run`",
                    named.iter().map(|stream| stream.name.as_str()).collect::<Vec<_>>().join(", ")
                )));
            }
            let rows = lookup_table(input, Path::new("")).map_err(|e| wrong(e.to_string()))?;
            let lines = orderflow_sql::run::to_json(&rows).map_err(|e| wrong(format!("table `{table}`: {e}")))?;
            meaning += &format!(", {table} {:08x}", crc32fast::hash(&lines));
            lookups.insert(table.clone(), rows);
        }
        let mut outputs = Vec::new();
        let mut added: Vec<NamedStream> = Vec::new();
        for edge in &stage.graph.sinks {
            let Some(table) = stage.table(&edge.table) else {
                return Err(wrong("a query in a job's stage writes to a table: INSERT INTO one of connector 'stream'".to_owned()));
            };
            let (target, to) = target(table)?;
            let stream_name = to.unwrap_or_else(|| table.option("stream").unwrap_or(&table.name).to_owned());
            let changes = edge.updating || table.format == Format::DebeziumJson;
            let columns = &stage.graph.schema(edge.node).fields()[META..];
            let schema = stream_schema(columns, changes).map_err(|e| StagesError(format!("table `{}`: {}", table.name, e)))?;
            let of_the_table = table.columns.as_deref().unwrap_or_default();
            let key: Vec<usize> = of_the_table.iter().enumerate().filter(|(_, column)| column.primary_key).map(|(at, _)| at).collect();
            let debezium = (table.format == Format::DebeziumJson).then(|| key.clone());
            // A query that writes to a table that another one writes to, too, is the same stream.
            let known = outputs.iter().find(|&&number: &&usize| self.streams[number].stream.name() == stream_name).copied();
            if let Some(number) = known {
                let stream = &self.streams[number];
                if stream.target != target || stream.changes != changes || stream.stream.schema(&WindowSet::default()) != schema {
                    return Err(wrong(format!("two queries write to `{stream_name}`, and their rows do not have the same columns")));
                }
                added.iter_mut().filter(|stream| stream.name == stream_name).for_each(|stream| stream.updating |= edge.updating);
                outputs.push(number);
                continue;
            }
            if stream_name == REJECTS || self.streams.iter().any(|stream| stream.stream.name() == stream_name) {
                return Err(wrong(format!(
                    "table `{}` writes to `{stream_name}`, which is written already: take another name",
                    table.name
                )));
            }
            if !is_name(&stream_name.replace('.', "_")) {
                return Err(wrong(format!(
                    "`{stream_name}` cannot be a stream's name: take 1 to {NAME_MAX} of the characters A-Z a-z 0-9 _-."
                )));
            }
            if target == Target::All {
                let columns = [Field::new(EPOCH, DataType::Int64, false)].into_iter().chain(columns.iter().map(|field| read_type(field)));
                added.push(NamedStream {
                    name: stream_name.clone(),
                    schema: Arc::new(Schema::new(columns.collect::<Vec<_>>())),
                    updating: edge.updating,
                });
            }
            let key = key.into_iter().map(|at| of_the_table[at].name.clone()).collect();
            outputs.push(self.streams.len());
            self.streams.push(JobStream {
                stream: OutputStream::Stage(Arc::new(StageStream { name: stream_name, schema, key })),
                target,
                changes,
                debezium,
            });
        }
        named.extend(added);
        self.stages.push(JobStage { name, stage, outputs, lookups, meaning });
        Ok(())
    }

    /// Whether the settings fit the streams.
    ///
    /// # Errors
    /// If a sink's list names a stream that there is not, or a stream's topic is one that the job reads.
    pub fn check(&self, config: &Config) -> Result<(), StagesError> {
        let sinks = &config.sinks;
        for (key, streams) in [("sinks.kafka.streams", &sinks.kafka.streams), ("sinks.jsonl.streams", &sinks.jsonl.streams)] {
            if let Some(unknown) = streams.iter().find(|name| self.number(name).is_none()) {
                let known: Vec<&str> = self.streams.iter().map(|stream| stream.stream.name()).collect();
                return Err(StagesError(format!("{key} has `{unknown}`; streams are {}", known.join(", "))));
            }
        }
        for JobStream { stream, target, .. } in &self.streams {
            let topic = match target {
                Target::All => format!("{}{stream}", sinks.kafka.topic_prefix),
                Target::Only(SinkKind::Kafka, _) => stream.name().to_owned(),
                _ => continue,
            };
            if [&config.source.orders_topic, &config.source.inventory_topic].contains(&&topic) {
                return Err(StagesError(format!("a stage writes `{stream}`, whose topic `{topic}` the job reads: take another name")));
            }
        }
        Ok(())
    }

    /// Whether the sinks that tables name are turned on. A backfill has one sink only, and takes what is for that one.
    ///
    /// # Errors
    /// If one is not.
    pub fn check_targets(&self, config: &Config) -> Result<(), StagesError> {
        let sinks = &config.sinks;
        for JobStream { stream, target, .. } in &self.streams {
            let (is_on, kind, section) = match target {
                Target::Only(SinkKind::Kafka, _) => (sinks.kafka.enabled, "kafka", "sinks.kafka"),
                Target::Only(SinkKind::ClickHouse, _) => (sinks.clickhouse.enabled, "clickhouse", "sinks.clickhouse"),
                Target::Only(SinkKind::Delta, _) => (sinks.delta.enabled, "delta", "sinks.delta"),
                _ => continue,
            };
            if !is_on {
                return Err(StagesError(format!(
                    "a stage writes `{stream}` by connector '{kind}', and that sink is off: set {section}.enabled = true, or take connector 'stream' for all \
                     sinks that are on"
                )));
            }
        }
        Ok(())
    }

    /// Tables of standard output get nothing: a backfill is for one sink.
    pub fn print_nothing(&mut self) {
        self.streams.iter_mut().filter(|stream| stream.target == Target::Stdout).for_each(|stream| stream.target = Target::Nothing);
    }

    /// The number of a stream of this name.
    pub fn number(&self, name: &str) -> Option<usize> {
        self.streams.iter().position(|stream| stream.stream.name() == name)
    }

    /// What the results of each stage depend on, by its name.
    pub fn meaning(&self) -> BTreeMap<String, String> {
        self.stages.iter().map(|stage| (stage.name.clone(), stage.meaning.clone())).collect()
    }

    /// The names of the stages that write a stream: none for one of the job's own.
    pub fn writers<'a>(&'a self, stream: &str) -> Vec<&'a str> {
        let Some(number) = self.number(stream) else { return Vec::new() };
        let writes = |stage: &&JobStage| stage.outputs.contains(&number) || stream == REJECTS;
        self.stages.iter().filter(writes).map(|stage| stage.name.as_str()).collect()
    }
}

/// How keys of stages begin in the settings of a log's header; their names follow.
pub(crate) const MEANING: &str = "stages.";

/// How the names begin by which the state of a stage's operators is kept; the stage's name, which has no dot, follows, and a dot.
pub(crate) const STAGE: &str = "stage.";

/// Longest name of a stage or a stream; characters.
const NAME_MAX: usize = 100;

fn is_name(text: &str) -> bool {
    (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

fn checksum(text: &str) -> u32 {
    crc32fast::hash(text.as_bytes())
}

/// For an error of a stage that may name a stream of a later one.
fn hint(behind: &[PathBuf]) -> String {
    match behind {
        [] => String::new(),
        [first, ..] => {
            format!("\nnote: a stage reads streams of stages before it; {} and what follows it are behind this one", first.display())
        }
    }
}

/// The files that are meant, in order; each once.
fn paths(files: &[String]) -> Result<Vec<PathBuf>, StagesError> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for file in files {
        let path = Path::new(file);
        let pattern = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if !pattern.contains('*') {
            paths.push(path.to_owned());
            continue;
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let wrong = |e: std::io::Error| StagesError(format!("stages.files has `{file}`: {}: {e}", folder.display()));
        let mut found = Vec::new();
        for entry in folder.read_dir().map_err(wrong)? {
            let name = entry.map_err(wrong)?.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') && matches(&pattern, &name) {
                found.push(path.with_file_name(name));
            }
        }
        if found.is_empty() {
            return Err(StagesError(format!("stages.files has `{file}`, and no file is named so")));
        }
        found.sort();
        paths.extend(found.into_iter().filter(|path| path.is_file()));
    }
    let mut known = std::collections::HashSet::new();
    paths.retain(|path| known.insert(path.clone()));
    Ok(paths)
}

/// Whether a name is as the pattern says, in which a star stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|name| {
            let mut ends = (0..=name.len()).filter(|&at| name.is_char_boundary(at));
            ends.any(|at| matches(rest, &name[at..]))
        }),
    }
}

/// Where a table's rows go, and under which name if the declaration gives one.
fn target(table: &Table) -> Result<(Target, Option<String>), StagesError> {
    let own = |option: &str| table.option(option).map(str::to_owned);
    Ok(match table.connector {
        Connector::Stream => (Target::All, None),
        Connector::Kafka => (Target::Only(SinkKind::Kafka, own("bootstrap_servers")), own("topic")),
        Connector::Clickhouse => (Target::Only(SinkKind::ClickHouse, None), own("table")),
        Connector::Delta => match table.option("path").map(|path| path.trim_end_matches('/')) {
            None => (Target::Only(SinkKind::Delta, None), None),
            Some(path) => match path.rsplit_once('/') {
                Some((folder, name)) => (Target::Only(SinkKind::Delta, Some(folder.to_owned())), Some(name.to_owned())),
                None => (Target::Only(SinkKind::Delta, Some(".".to_owned())), Some(path.to_owned())),
            },
        },
        Connector::Stdout => (Target::Stdout, None),
        Connector::Blackhole => (Target::Nothing, None),
        Connector::SingleFile | Connector::Filesystem | Connector::Memory => {
            return Err(StagesError(format!(
                "table `{}`: a stage in a job does not write connector '{}': take 'stream' and turn on sinks.jsonl for files, or run the stage by itself \
                 with `orderflow sql run`",
                table.name,
                table.connector.name()
            )));
        }
    })
}

/// The columns of [`REJECTS`].
fn rejects() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    Arc::new(Schema::new(vec![
        Field::new(EPOCH, DataType::Int64, false),
        text("stage"),
        Field::new("split", DataType::Int32, true),
        Field::new("offset", DataType::Int64, true),
        text("kind"),
        Field::new("event_time", timestamp_type(), false),
        text("detail"),
        text("row"),
    ]))
}

#[cfg(test)]
mod tests;
