//! Which SQL stages a job has, and from which epoch on: those that its log was begun with, those that came since, and those that come now.
//!
//! A stage that comes to a job reads the epochs from the next new one on, and the log says so in that epoch: played back, it reads nothing before it.
//! One that is taken away is told in the same way. A stage has one life: its name stays taken, as tables and state may be of it.
//!
//! The settings of a log's header have the stages that the job was begun with, those of a checkpoint's header the stages at its epoch.

use std::collections::BTreeMap;

use orderflow_operators::epoch::Epoch;

use crate::checkpoint::Manifest;
use crate::epoch_log::{EpochRecord, LogHeader};
use crate::stages::MEANING;

/// In a header's settings, of a stage that was taken away.
const GONE: &str = "taken away";

/// The stages of a job before it runs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// By name, the first epoch that a stage reads, where that is behind the state that the job goes on from.
    pub begins: BTreeMap<String, Epoch>,
    /// What the next new epoch has to say of them in the log.
    pub changes: BTreeMap<String, Option<String>>,
    /// Those that were taken away.
    gone: Vec<String>,
}

/// A stage as the log tells it.
struct Told {
    /// None if it was there at the epoch that the job goes on from.
    begins: Option<Epoch>,
    /// What its results depend on; none if it was taken away.
    meaning: Option<String>,
}

impl Known {
    /// `begun` is the log's header, `tape` has the log's records behind the checkpoint `resumed`, or more of them, `now` has what the results of each stage of
    /// today depend on. Without `may_change` they must be those of the log. Of those that are `abandoned` nobody wants the results that may be missing.
    ///
    /// # Errors
    /// With what differs, and what to do.
    pub fn new(
        begun: &LogHeader,
        resumed: Option<&Manifest>,
        tape: &[EpochRecord],
        now: &BTreeMap<String, String>,
        may_change: bool,
        abandoned: &[String],
    ) -> Result<Known, String> {
        let behind = resumed.map_or(Epoch(0), |manifest| manifest.epoch);
        let mut told: BTreeMap<&str, Told> = of_header(resumed.map_or(begun, |manifest| &manifest.header))
            .map(|(name, meaning)| (name, Told { begins: None, meaning: Some(meaning.to_owned()).filter(|meaning| meaning != GONE) }))
            .collect();
        let last = tape.last().map_or(behind, |record| record.epoch.max(behind));
        for record in tape.iter().filter(|record| record.epoch > behind) {
            for (name, meaning) in &record.stages {
                let begins = meaning.as_ref().map(|_| record.epoch);
                told.insert(name, Told { begins, meaning: meaning.clone() });
            }
        }
        let mut known = Known::default();
        for (name, meaning) in now {
            match told.get(name.as_str()) {
                Some(Told { begins, meaning: Some(then) }) if then == meaning => {
                    known.begins.extend(begins.map(|begins| (name.clone(), begins)))
                }
                Some(Told { meaning: Some(then), .. }) => {
                    return Err(format!(
                        "stage {name} is not what it was ({then} then, {meaning} now), and its results would mix: set it back, or give the file \
                         another name and keep or remove the old one; a stage of a new name begins with the next epoch. What a stage of the job writes \
                         is part of what those are that read it{}",
                        anew(may_change)
                    ));
                }
                Some(Told { meaning: None, .. }) => {
                    return Err(format!(
                        "stage {name} was taken away from this job before, and cannot come again: give the file another name"
                    ));
                }
                None if may_change => {
                    known.begins.insert(name.clone(), last.next());
                    known.changes.insert(name.clone(), Some(meaning.clone()));
                }
                None => return Err(format!("it was begun without stage {name}: leave it out{}", anew(may_change))),
            }
        }
        for (name, Told { meaning, .. }) in told {
            match meaning {
                None => known.gone.push(name.to_owned()),
                Some(_) if now.contains_key(name) => {}
                Some(_) if !may_change => {
                    return Err(format!("it was begun with stage {name}, which is not there now: put it back{}", anew(may_change)));
                }
                Some(_) if last > behind && !abandoned.iter().any(|abandoned| abandoned == name) => {
                    return Err(format!(
                        "stage {name} is not there now, and epochs {} to {last}, of which its results may be missing, are to be played back: put it back, \
                         start the job, and take the stage away when the job was stopped by SIGTERM and has made its last checkpoint; or, if it fails, \
                         do without them: stages.abandoned = [\"{name}\"]",
                        behind.next()
                    ));
                }
                Some(_) => {
                    known.changes.insert(name.to_owned(), None);
                    known.gone.push(name.to_owned());
                }
            }
        }
        Ok(known)
    }

    /// Whether all were there at the epoch that the job goes on from, and none is taken away.
    pub fn are_as_before(&self) -> bool {
        self.begins.is_empty() && self.changes.is_empty()
    }

    /// The settings of a checkpoint's header: those of today's, and the stages that were taken away.
    pub fn in_header(&self, header: &LogHeader) -> LogHeader {
        let mut header = header.clone();
        header.settings.extend(self.gone.iter().map(|name| (format!("{MEANING}{name}"), GONE.to_owned())));
        header
    }

    /// Tells what comes and goes.
    pub fn tell(&self) {
        for (name, meaning) in &self.changes {
            match (meaning, self.begins.get(name)) {
                (Some(_), Some(epoch)) => tracing::info!(stage = name, epoch = epoch.0, "a new stage begins"),
                _ => tracing::info!(stage = name, "a stage is taken away"),
            }
        }
    }
}

/// For a job that has its stages from its beginning.
fn anew(may_change: bool) -> &'static str {
    if may_change { "" } else { "; a replay or backfill has the stages that the log has: begin anew with another epoch log for other ones" }
}

/// The stages of a header, with what their results depend on.
fn of_header(header: &LogHeader) -> impl Iterator<Item = (&str, &str)> {
    header.settings.iter().filter_map(|(key, meaning)| Some((key.strip_prefix(MEANING)?, meaning.as_str())))
}

/// Whether a checkpoint has a stage of this name.
pub(super) fn is_in(name: &str, manifest: &Manifest) -> bool {
    of_header(&manifest.header).any(|(known, meaning)| known == name && meaning != GONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(stages: &[(&str, &str)]) -> LogHeader {
        let settings = stages.iter().map(|(name, meaning)| (format!("{MEANING}{name}"), (*meaning).to_owned()));
        let settings = settings.chain([("dedup.horizon".to_owned(), "24 h".to_owned())]).collect();
        LogHeader { format: 1, job: "job".into(), splits: Vec::new(), starts: Vec::new(), topics: BTreeMap::new(), settings }
    }

    fn manifest(epoch: u64, stages: &[(&str, &str)]) -> Manifest {
        Manifest { epoch: Epoch(epoch), ..Manifest::nothing(header(stages)) }
    }

    fn record(epoch: u64, stages: &[(&str, Option<&str>)]) -> EpochRecord {
        let stages = stages.iter().map(|(name, meaning)| ((*name).to_owned(), meaning.map(str::to_owned))).collect();
        EpochRecord { epoch: Epoch(epoch), sealed_at: 0, ranges: BTreeMap::new(), splits: BTreeMap::new(), stages }
    }

    fn now(stages: &[(&str, &str)]) -> BTreeMap<String, String> {
        stages.iter().map(|(name, meaning)| ((*name).to_owned(), (*meaning).to_owned())).collect()
    }

    /// Where stages begin behind the state, then what the log is to be told.
    fn known(begun: &[(&str, &str)], resumed: Option<&Manifest>, tape: &[EpochRecord], stages: &[(&str, &str)]) -> Result<String, String> {
        let known = Known::new(&header(begun), resumed, tape, &now(stages), true, &["failing".to_owned()])?;
        let begins = known.begins.iter().map(|(name, epoch)| format!("{name}@{epoch}"));
        let changes = known.changes.iter().map(|(name, meaning)| format!("{}{name}", if meaning.is_some() { '+' } else { '-' }));
        Ok(begins.chain(changes).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn stages_that_the_log_has_go_on() {
        assert_eq!(known(&[("a", "1")], None, &[], &[("a", "1")]).unwrap(), "");
        assert_eq!(known(&[("a", "1")], None, &[record(1, &[])], &[("a", "1")]).unwrap(), "");
        let added = [record(1, &[]), record(2, &[("b", Some("2"))]), record(3, &[])];
        assert_eq!(known(&[("a", "1")], None, &added, &[("a", "1"), ("b", "2")]).unwrap(), "b@2");
        // The checkpoint has it already.
        let resumed = manifest(2, &[("a", "1"), ("b", "2")]);
        assert_eq!(known(&[("a", "1")], Some(&resumed), &added, &[("a", "1"), ("b", "2")]).unwrap(), "");
    }

    #[test]
    fn a_new_stage_begins_behind_all_that_the_log_has() {
        assert_eq!(known(&[], None, &[record(1, &[]), record(2, &[])], &[("a", "1")]).unwrap(), "a@3 +a");
        assert_eq!(known(&[], Some(&manifest(7, &[])), &[record(7, &[])], &[("a", "1")]).unwrap(), "a@8 +a");
    }

    #[test]
    fn a_stage_is_taken_away_once_nothing_is_to_be_played_back() {
        let resumed = manifest(2, &[("a", "1")]);
        assert_eq!(known(&[("a", "1")], Some(&resumed), &[], &[]).unwrap(), "-a");
        let refused = known(&[("a", "1")], Some(&resumed), &[record(3, &[])], &[]).unwrap_err();
        assert!(refused.contains("stage a is not there now, and epochs 3 to 3"), "{refused}");
        // What was taken away stays so.
        let gone = [record(3, &[("a", None)])];
        assert_eq!(known(&[("a", "1")], Some(&resumed), &gone, &[]).unwrap(), "");
        let refused = known(&[("a", "1")], Some(&resumed), &gone, &[("a", "1")]).unwrap_err();
        assert!(refused.contains("cannot come again"), "{refused}");
        let header = Known::new(&header(&[("a", "1")]), Some(&resumed), &gone, &now(&[]), true, &[]).unwrap().in_header(&header(&[]));
        let later = Manifest { epoch: Epoch(5), ..Manifest::nothing(header) };
        assert!(!is_in("a", &later) && is_in("a", &resumed));
        assert!(known(&[("a", "1")], Some(&later), &[], &[("a", "1")]).unwrap_err().contains("cannot come again"));
    }

    #[test]
    fn a_stage_that_fails_is_abandoned() {
        let resumed = manifest(2, &[("failing", "1")]);
        assert_eq!(known(&[("failing", "1")], Some(&resumed), &[record(3, &[])], &[]).unwrap(), "-failing");
        // One that the log names only behind the checkpoint.
        let came = [record(3, &[("failing", Some("1"))]), record(4, &[])];
        assert_eq!(known(&[], Some(&manifest(2, &[])), &came, &[]).unwrap(), "-failing");
        // The log says that it is gone: it stays so.
        let gone = [record(3, &[]), record(4, &[("failing", None)]), record(5, &[])];
        assert_eq!(known(&[("failing", "1")], Some(&resumed), &gone, &[("mended", "2")]).unwrap(), "mended@6 +mended");
    }

    #[test]
    fn a_stage_that_changed_is_refused() {
        let refused = known(&[("a", "1")], None, &[], &[("a", "2")]).unwrap_err();
        assert!(refused.contains("stage a is not what it was (1 then, 2 now)"), "{refused}");
    }

    #[test]
    fn where_nothing_may_change_the_log_has_its_stages() {
        let fixed =
            |begun: &[(&str, &str)], stages| Known::new(&header(begun), None, &[], &now(stages), false, &["a".to_owned()]).unwrap_err();
        assert!(fixed(&[], &[("a", "1")]).contains("begun without stage a: leave it out; a replay or backfill"));
        assert!(fixed(&[("a", "1")], &[]).contains("begun with stage a, which is not there now: put it back"));
    }
}
