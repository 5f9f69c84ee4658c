//! All points, each once.

macro_rules! points {
    ($($(#[$part:meta])* $point:ident = $name:literal: $what:literal;)*) => {
        /// A point that the job passes, before or after a durable step.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Point {
            $($(#[$part])* #[doc = $what] $point,)*
        }

        impl Point {
            /// All of them.
            pub const ALL: [Point; { [$($name),*].len() }] = [$(Point::$point),*];

            /// Its name, as `FAILPOINTS` takes it.
            pub const fn name(self) -> &'static str {
                match self { $(Point::$point => $name,)* }
            }

            /// What has happened there, and what has not.
            pub const fn what(self) -> &'static str {
                match self { $(Point::$point => $what,)* }
            }
        }
    };
}

points! {
    LogOpened = "epoch_log.local.open.after": "the log is locked, and cut back to its whole lines";
    LogWrite = "epoch_log.local.write.before": "epochs are under way, their records are not written";
    LogSync = "epoch_log.local.sync.before": "records are written, and may be in the page cache alone";
    LogSynced = "epoch_log.local.sync.after": "records are durable, and nobody knows yet";
    SegmentBegin = "epoch_log.local.segment.before": "the segment is full";
    SegmentCreated = "epoch_log.local.segment.created": "the next segment has its first line, its name may not be durable";
    SegmentBegun = "epoch_log.local.segment.after": "the next segment is durable, it has no record yet";
    SegmentDrop = "epoch_log.local.drop.before": "a segment is old, and to be removed";
    SegmentDropped = "epoch_log.local.drop.after": "an old segment is removed, others are not";

    TopicInit = "epoch_log.topic.init.after": "older writers are fenced, the log is not read yet";
    TopicBegun = "epoch_log.topic.begin.after": "a transaction is open, nothing was sent";
    TopicSent = "epoch_log.topic.commit.before": "records are with the brokers, the transaction is open";
    TopicCommitted = "epoch_log.topic.commit.after": "records are committed, and nobody knows yet";
    TopicDrop = "epoch_log.topic.drop.before": "old records are to be removed";
    TopicDropped = "epoch_log.topic.drop.after": "old records are removed";

    ObjectPut = "epoch_log.objects.put.before": "the object of a group of records is not put";
    ObjectDone = "epoch_log.objects.put.after": "the object of a group of records is put, and nobody knows yet";
    ObjectsMark = "epoch_log.objects.drop.before": "objects are old, nothing says that they are to be removed";
    ObjectsMarked = "epoch_log.objects.drop.marked": "it is said which objects are to be removed, all are there";
    ObjectsDropped = "epoch_log.objects.drop.after": "old objects are removed, the mark before is not";

    DeltaCreate = "delta.create.before": "there is no table";
    DeltaCreated = "delta.create.after": "the table is made, and has no row";
    DeltaFile = "delta.file.put.before": "a data file is encoded, and not put";
    DeltaFileDone = "delta.file.put.after": "a data file is put, no entry names it";
    DeltaCommit = "delta.commit.before": "all files of a commit are put, its entry is not written";
    DeltaCommitted = "delta.commit.after": "the entry is written, and nobody knows yet";
    DeltaCompact = "delta.compact.before": "small files are to become one";
    DeltaCompactFile = "delta.compact.commit.before": "merged files are put, no entry names them";
    DeltaCompacted = "delta.compact.after": "the entry of a compaction is written";
    DeltaVacuum = "delta.vacuum.before": "files that nobody needs are to be removed";
    DeltaVacuumed = "delta.vacuum.after": "files that nobody needed are removed, old entries of the log are not";
    DeltaLogCleaned = "delta.clean_log.after": "old entries of a table's log are removed";

    ClickHousePrepare = "clickhouse.prepare.before": "database and tables are looked over, and made where they are missing";
    ClickHouseStatement = "clickhouse.migrate.statement.before": "some statements of a migration are done, others are not";
    ClickHouseMigrated = "clickhouse.migrate.record.before": "all statements of a migration are done, its version is not recorded";
    ClickHousePrepared = "clickhouse.prepare.after": "tables and views are there";
    ClickHouseLife = "clickhouse.recovered.before": "what is committed was read, this life is not recorded";
    ClickHouseLifeDone = "clickhouse.recovered.after": "this life is recorded";
    ClickHouseBegin = "clickhouse.begun.before": "a group of epochs is to be committed, nothing says so";
    ClickHouseBegun = "clickhouse.begun.after": "the group is recorded, none of its rows is there";
    ClickHouseInsert = "clickhouse.insert.before": "some inserts of a group are done, another is not";
    ClickHouseInserted = "clickhouse.insert.after": "an insert is done, and nobody knows yet";
    ClickHouseCommit = "clickhouse.committed.before": "all rows of a group are there, it is not recorded as committed";
    ClickHouseCommitted = "clickhouse.committed.after": "the group is committed, and nobody knows yet";

    KafkaTopic = "kafka.topic.before": "the topic of a stream is missing";
    KafkaTopicMade = "kafka.topic.after": "the topic of a stream is made";
    KafkaInit = "kafka.init.after": "older producers are fenced, what is committed is not read yet";
    KafkaBegun = "kafka.begin.after": "a transaction is open, nothing was sent";
    KafkaHalfSent = "kafka.half_sent": "half of the messages were handed over";
    KafkaOffsets = "kafka.offsets.before": "all messages were handed over, the record of the epoch was not";
    KafkaOffsetsSent = "kafka.offsets.after": "the record of the epoch is in the transaction, messages may be on their way";
    KafkaCommit = "kafka.commit.before": "the brokers have messages and record, the transaction is open";
    KafkaCommitted = "kafka.commit.after": "the transaction is committed, and nobody knows yet";

    JsonLines = "jsonl.lines.before": "lines are not written";
    JsonLinesWritten = "jsonl.lines.after": "lines are durable, and not recorded";
    JsonRecord = "jsonl.record.before": "the record is written beside the old one";
    JsonRecorded = "jsonl.record.after": "the record is in its place";

    CheckpointFile = "checkpoint.file.before": "a piece of a state's file is not put";
    CheckpointFileEnd = "checkpoint.file.finish.before": "a state's file has all its pieces, and is not whole yet";
    CheckpointFileDone = "checkpoint.file.finish.after": "a state's file is whole, no manifest names it";
    CheckpointPart = "checkpoint.part.before": "a process has written its files, and not told";
    CheckpointPartDone = "checkpoint.part.after": "a process's part is put";
    CheckpointManifest = "checkpoint.manifest.before": "all files of a checkpoint are there, its manifest is not";
    CheckpointManifestDone = "checkpoint.manifest.after": "the checkpoint is there, and nobody knows yet";
    CheckpointGarbage = "checkpoint.garbage.before": "older checkpoints are to be removed";
    CheckpointOldManifest = "checkpoint.garbage.manifest.after": "an old manifest is removed, its files are not";
    CheckpointOldFile = "checkpoint.garbage.file.after": "some old files are removed, others are not";
    CheckpointOldPart = "checkpoint.garbage.part.after": "some old parts are removed, others are not";
    CheckpointRestore = "checkpoint.restore.before": "a checkpoint was found whole, nothing of it is taken up";
    CheckpointRestored = "checkpoint.restore.operator.after": "one operator's state is taken up";
    CheckpointLife = "checkpoint.life.after": "parts of an earlier life are removed, nothing was written";
    Savepoint = "checkpoint.savepoint.before": "a savepoint is to be put";
    SavepointDone = "checkpoint.savepoint.after": "a savepoint is put, its files were not looked for";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_differ() {
        let names: std::collections::BTreeSet<&str> = Point::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
        assert!(names.iter().all(|name| name.bytes().all(|byte| byte.is_ascii_lowercase() || b"._".contains(&byte))));
    }
}
