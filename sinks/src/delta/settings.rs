//! How the tables of a job are written.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use parquet::basic::{Compression, ZstdLevel};

/// How a table's files are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableCompression(pub(super) Compression);

impl TableCompression {
    /// Stands in a file's name, as other writers do it.
    pub(super) fn label(self) -> &'static str {
        match self.0 {
            Compression::SNAPPY => "snappy.",
            Compression::ZSTD(_) => "zstd.",
            _ => "",
        }
    }
}

impl FromStr for TableCompression {
    type Err = String;

    /// `none`, `snappy`, `zstd` (level 1), or `zstd(1)` to `zstd(22)`.
    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || format!("\"{text}\" is none of none, snappy, zstd, zstd(1) … zstd(22)");
        Ok(TableCompression(match text {
            "none" => Compression::UNCOMPRESSED,
            "snappy" => Compression::SNAPPY,
            "zstd" => Compression::ZSTD(ZstdLevel::default()),
            _ => {
                let level =
                    text.strip_prefix("zstd(").and_then(|t| t.strip_suffix(')')).and_then(|l| l.parse().ok()).ok_or_else(unknown)?;
                Compression::ZSTD(ZstdLevel::try_new(level).map_err(|_| unknown())?)
            }
        }))
    }
}

/// Settings of the tables of a job.
#[derive(Clone, Debug)]
pub struct DeltaSettings {
    /// Folder of the tables: a path, or a URL of `file`, `s3`, `gs`, `az` or `abfss`. A stream's table is `<url>/<stream>`.
    pub url: String,
    /// The object store's own options (region, endpoint, keys …), over those of the environment (`AWS_…`, `GOOGLE_…`,
    /// `AZURE_…`).
    pub storage: BTreeMap<String, String>,
    /// Compression of the files. Kept files are not rewritten when it changes.
    pub compression: TableCompression,
    /// Of files that small ones are compacted into: those that stay.
    pub optimize_compression: TableCompression,
    /// Rows after which a file is closed and the next one begun; an epoch is never divided. More makes fewer and larger files;
    /// fewer lets one commit be encoded on more cores. A file is in memory, encoded, until it is committed.
    pub file_rows_target: usize,
    /// Commits between two checkpoints of a new table's log; at least 1. An existing table keeps its own
    /// (`delta.checkpointInterval`).
    pub checkpoint_interval: u64,
    /// Commits between two rounds of housekeeping: compaction of small files, then removal of old files and log entries; 0:
    /// never. They are counted by the table's version, over all lives of the job; a table that has as many small files when the
    /// job starts has a round behind its first commit.
    pub optimize_commits: u64,
    /// Bytes up to which small files are compacted into one. Up to twice as many are in memory meanwhile.
    pub optimize_bytes_target: u64,
    /// How long a file that the newest version does not need is kept, for readers of older versions; 0: for ever. It must be
    /// longer than a query, and than the longest time between a file's writing and its commit.
    pub vacuum_retention: Duration,
}

impl Default for DeltaSettings {
    fn default() -> Self {
        DeltaSettings {
            url: "delta".into(),
            storage: BTreeMap::new(),
            compression: TableCompression(Compression::SNAPPY),
            optimize_compression: TableCompression(Compression::ZSTD(ZstdLevel::default())),
            file_rows_target: 250_000,
            checkpoint_interval: 50,
            optimize_commits: 100,
            optimize_bytes_target: 64 << 20,
            vacuum_retention: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressions() {
        for good in ["none", "snappy", "zstd", "zstd(1)", "zstd(22)"] {
            assert!(good.parse::<TableCompression>().is_ok(), "{good}");
        }
        for bad in ["", "gzip", "zstd(", "zstd()", "zstd(23)", "zstd(0)"] {
            assert!(bad.parse::<TableCompression>().is_err(), "{bad}");
        }
    }
}
