//! What a checkpoint says of itself.

use std::collections::BTreeMap;

use orderflow_operators::epoch::Epoch;
use orderflow_operators::features::KeyKind;
use orderflow_operators::keys::KEY_GROUPS;
use orderflow_operators::watermark::WatermarkState;
use serde::{Deserialize, Deserializer, Serialize};

use crate::epoch_log::LogHeader;
use crate::stages::STAGE;

/// The state of `deduplicate`, whose changes are those of the windows of the fraud features, too.
pub(crate) const ORDERS: &str = "orders";

/// A checkpoint: the state at the end of an epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the files' and this object's form.
    pub format: u32,
    /// The epoch.
    pub epoch: Epoch,
    /// When it was sealed: milliseconds since 1970.
    pub sealed_at: i64,
    /// When this was written: milliseconds since 1970.
    pub created_at: i64,
    /// The job, its splits, and the settings on which results depend.
    pub header: LogHeader,
    /// Where the next epoch begins in each split, by number.
    pub offsets: Vec<i64>,
    /// How far event time had come.
    pub watermark: WatermarkState,
    /// The sinks, all of which have committed through the epoch, by kind and stream.
    #[serde(deserialize_with = "sinks_of_any_format")]
    pub sinks: BTreeMap<String, SinkThen>,
    /// By operator and key group, the newest base. A group that is not here began with nothing at epoch 0.
    pub bases: BTreeMap<String, BTreeMap<u16, Base>>,
    /// All files that belong to the state, by name.
    pub files: BTreeMap<String, DataFile>,
}

/// A sink when a checkpoint was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkThen {
    /// Which sink, which stream, and where.
    pub label: String,
    /// How far it had come by its own store, which is not told of epochs without rows. If the store says less now, it was emptied or restored.
    pub recorded: Epoch,
}

/// Before format 3 there were labels alone.
fn sinks_of_any_format<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, SinkThen>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Sinks {
        Labels(Vec<String>),
        Known(BTreeMap<String, SinkThen>),
    }
    Ok(match Sinks::deserialize(deserializer)? {
        Sinks::Known(known) => known,
        Sinks::Labels(labels) => {
            let id = |label: &str| label.split_once(" in ").map_or(label, |(id, _)| id).to_owned();
            labels.into_iter().map(|label| (id(&label), SinkThen { label, recorded: Epoch(0) })).collect()
        }
    })
}

/// A key group's base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// At the end of which epoch.
    pub epoch: Epoch,
    /// In which file; none if there was nothing.
    pub file: Option<String>,
}

/// What is in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// Whole key groups.
    Bases,
    /// What epochs changed.
    Changes,
}

/// A file of an operator's state: an Arrow IPC stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFile {
    /// The operator.
    pub operator: String,
    /// What is in it.
    pub kind: FileKind,
    /// The worker that wrote it, and how many there were: it has nothing of other workers' key groups.
    pub worker: usize,
    /// See `worker`.
    pub peers: usize,
    /// It has nothing of an earlier epoch.
    pub first_epoch: Epoch,
    /// It has nothing of a later epoch.
    pub last_epoch: Epoch,
    /// Rows.
    pub rows: u64,
    /// Bytes.
    pub bytes: u64,
    /// CRC-32 of the bytes.
    pub crc32: u32,
}

/// What one process has written of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// New files.
    pub files: BTreeMap<String, DataFile>,
    /// New bases.
    pub bases: BTreeMap<String, BTreeMap<u16, Base>>,
    /// Its sinks, which have committed through the epoch.
    pub sinks: BTreeMap<String, SinkThen>,
    /// Why the state is not whole, if it is not.
    pub incomplete: Option<String>,
    /// Some changes of orders up to this epoch are missing.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub orders_lost: Option<Epoch>,
}

/// Why a manifest cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not what was written.
    #[error("{0}")]
    Damaged(String),
    /// It is of another release.
    #[error("it has format {0}, this release knows format {known}: use the release that wrote it", known = Manifest::FORMAT)]
    Format(u32),
}

impl Manifest {
    /// The form that this release writes.
    pub const FORMAT: u32 = 3;

    /// The oldest form that it reads.
    const FORMAT_MIN: u32 = 2;

    /// The state before the first epoch.
    pub fn nothing(header: LogHeader) -> Manifest {
        Manifest {
            format: Manifest::FORMAT,
            epoch: Epoch(0),
            sealed_at: 0,
            created_at: 0,
            header,
            offsets: Vec::new(),
            watermark: WatermarkState::default(),
            sinks: BTreeMap::new(),
            bases: BTreeMap::new(),
            files: BTreeMap::new(),
        }
    }

    /// The epoch of the oldest base of an operator's groups: changes up to it are in the bases.
    pub fn oldest_base(&self, operator: &str) -> Epoch {
        match self.bases.get(operator) {
            Some(bases) if bases.len() == KEY_GROUPS => bases.values().map(|base| base.epoch).min().unwrap_or_default(),
            _ => Epoch(0),
        }
    }

    /// Whether, with what was written since, the windows of the fraud features do without the changes of orders up to `lost`.
    pub fn does_without(&self, lost: Epoch, since: &Part) -> bool {
        let mut with = Manifest { bases: self.bases.clone(), ..Manifest::nothing(self.header.clone()) };
        with.extend(Part { bases: since.bases.clone(), ..Part::default() });
        KeyKind::ALL.iter().all(|kind| with.oldest_base(kind.name()) >= lost)
    }

    /// Leaves out the state of SQL stages for which `keeps` does not hold.
    pub fn retain_stages(&mut self, keeps: impl Fn(&str) -> bool) {
        let stage = |operator: &str| operator.strip_prefix(STAGE).and_then(|rest| rest.split('.').next()).map(str::to_owned);
        let is_kept = |operator: &str| stage(operator).is_none_or(|stage| keeps(&stage));
        self.bases.retain(|operator, _| is_kept(operator));
        self.files.retain(|_, file| is_kept(&file.operator));
    }

    /// Adds what was written since, and leaves out what is no longer needed.
    pub fn extend(&mut self, part: Part) {
        self.files.extend(part.files);
        for (operator, bases) in part.bases {
            let known = self.bases.entry(operator).or_default();
            for (group, base) in bases {
                let newer = known.get(&group).is_none_or(|known| known.epoch <= base.epoch);
                if newer {
                    known.insert(group, base);
                }
            }
        }
        self.sinks.extend(part.sinks);
        self.forget();
    }

    fn forget(&mut self) {
        let used: std::collections::BTreeSet<String> =
            self.bases.values().flat_map(|bases| bases.values().filter_map(|base| base.file.clone())).collect();
        // Changes are needed by whoever has them from there.
        let oldest = |operator: &str| {
            let users = KeyKind::ALL.map(KeyKind::name).into_iter().filter(|_| operator == ORDERS).chain([operator]);
            users.map(|operator| self.oldest_base(operator)).min().unwrap_or_default()
        };
        let needed: BTreeMap<String, Epoch> = self.files.values().map(|file| (file.operator.clone(), oldest(&file.operator))).collect();
        self.files.retain(|name, file| match file.kind {
            FileKind::Bases => used.contains(name),
            FileKind::Changes => needed.get(&file.operator).is_none_or(|base| file.last_epoch > *base),
        });
    }

    /// A manifest as it was written.
    ///
    /// # Errors
    /// If it is none, of another release, or does not agree with itself.
    pub fn from_json(json: &[u8]) -> Result<Manifest, ManifestError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let damaged = |error: serde_json::Error| ManifestError::Damaged(error.to_string());
        let Format { format } = serde_json::from_slice(json).map_err(damaged)?;
        if !(Manifest::FORMAT_MIN..=Manifest::FORMAT).contains(&format) {
            return Err(ManifestError::Format(format));
        }
        let mut manifest: Manifest = serde_json::from_slice(json).map_err(damaged)?;
        // What is made of it is written in the form of today.
        manifest.format = Manifest::FORMAT;
        match manifest.fault() {
            Some(fault) => Err(ManifestError::Damaged(fault)),
            None => Ok(manifest),
        }
    }

    /// What is wrong with it, if anything is: for a manifest that was read.
    pub(super) fn fault(&self) -> Option<String> {
        let missing = self.bases.values().flat_map(|bases| bases.values()).filter_map(|base| base.file.as_ref());
        if let Some(file) = missing.into_iter().find(|file| !self.files.contains_key(*file)) {
            return Some(format!("it needs {file}, which it does not list"));
        }
        if let Some((operator, group)) = self
            .bases
            .iter()
            .find_map(|(operator, bases)| bases.keys().find(|&&group| usize::from(group) >= KEY_GROUPS).map(|group| (operator, group)))
        {
            return Some(format!("{operator} has a key group {group}"));
        }
        if let Some((name, _)) =
            self.files.iter().find(|(name, file)| !is_data_name(name) || file.last_epoch > self.epoch || file.worker >= file.peers)
        {
            return Some(format!("{name} is not a file of it"));
        }
        if self.offsets.len() != self.header.splits.len() || self.offsets.iter().any(|&offset| offset < 0) {
            return Some("its offsets are not those of its splits".to_owned());
        }
        None
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.values().fold(0, |sum, file| sum.saturating_add(file.bytes))
    }
}

/// Whether it is a plain name, so that a manifest cannot lead elsewhere.
fn is_data_name(name: &str) -> bool {
    name.ends_with(".arrow") && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) && !name.contains("..")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn bases(kinds: &[KeyKind], groups: std::ops::Range<u16>, epoch: u64) -> BTreeMap<String, BTreeMap<u16, Base>> {
        let of_kind = || groups.clone().map(|group| (group, Base { epoch: Epoch(epoch), file: None })).collect();
        kinds.iter().map(|kind| (kind.name().to_owned(), of_kind())).collect()
    }

    #[test]
    fn sinks_of_the_form_before_are_read() {
        let mut json = serde_json::to_value(Manifest::nothing(header())).unwrap();
        json["format"] = 2.into();
        json["sinks"] = vec!["delta order_lines in /tables", "kafka order_lines in host:9092 "].into();
        let manifest = Manifest::from_json(json.to_string().as_bytes()).unwrap();
        assert_eq!(manifest.format, Manifest::FORMAT);
        let [delta, kafka] = ["delta order_lines", "kafka order_lines"].map(|id| &manifest.sinks[id]);
        assert_eq!((delta.label.as_str(), delta.recorded), ("delta order_lines in /tables", Epoch(0)));
        assert_eq!(kafka.label, "kafka order_lines in host:9092 ");
        assert_eq!(Manifest::from_json(&serde_json::to_vec(&manifest).unwrap()).unwrap(), manifest);
        json["format"] = 1.into();
        assert!(matches!(Manifest::from_json(json.to_string().as_bytes()), Err(ManifestError::Format(1))));
    }

    pub fn header() -> LogHeader {
        LogHeader {
            format: LogHeader::FORMAT,
            job: "job".into(),
            splits: Vec::new(),
            starts: Vec::new(),
            topics: BTreeMap::new(),
            settings: BTreeMap::new(),
        }
    }

    #[test]
    fn lost_changes_of_orders_are_made_up_for_by_every_group_of_every_window() {
        let nothing = Manifest::nothing(header());
        let all = 0..KEY_GROUPS as u16;
        let since = |bases| Part { bases, ..Part::default() };
        assert!(!nothing.does_without(Epoch(5), &Part::default()), "what has no base rests on all changes");
        assert!(nothing.does_without(Epoch(5), &since(bases(&KeyKind::ALL, all.clone(), 5))));
        assert!(!nothing.does_without(Epoch(5), &since(bases(&KeyKind::ALL, all.clone(), 4))));
        assert!(!nothing.does_without(Epoch(5), &since(bases(&KeyKind::ALL[1..], all.clone(), 5))));
        assert!(!nothing.does_without(Epoch(5), &since(bases(&KeyKind::ALL, 1..KEY_GROUPS as u16, 5))));
        // Some were written before, and those that were not, since.
        let half = Manifest { bases: bases(&KeyKind::ALL, 0..60, 7), ..nothing };
        assert!(half.does_without(Epoch(5), &since(bases(&KeyKind::ALL, 60..KEY_GROUPS as u16, 6))));
    }
}
