//! Which splits a job has, by number: those that its log was begun with, those that came since, and those that come now.
//!
//! A split keeps its number for the job's life: it is in every row's place, and decides the order of rows within an epoch. So those that are added to a topic
//! get the numbers behind those that there are, in the order in which they were noticed, and the log says so in the first epoch that has them.

use std::collections::BTreeMap;

use orderflow_operators::epoch::{Epoch, Place};

use crate::checkpoint::Manifest;
use crate::epoch_log::{AddedSplit, EpochRecord, LogHeader, other_inputs};
use crate::sealer::{Cut, Sealer, SplitStart};
use crate::source::Source;

/// The splits of a job before it runs.
#[derive(Debug)]
pub(super) struct Known {
    /// By number, those that the log names.
    names: Vec<String>,
    starts: Vec<SplitStart>,
    /// Those that it does not.
    added: Vec<AddedSplit>,
}

impl Known {
    /// `begun` is the log's header, `offsets` are where a new job would start in the source's splits, `tape` has the log's records behind the checkpoint
    /// `resumed`, or more of them.
    ///
    /// # Errors
    /// With what differs, if the source lacks a split of the log, may not have more, or checkpoint and log do not belong together.
    pub fn new(
        source: &dyn Source,
        begun: &LogHeader,
        offsets: &[SplitStart],
        resumed: Option<&Manifest>,
        tape: &[EpochRecord],
    ) -> Result<Known, String> {
        let now: Vec<String> = source.splits().iter().map(|split| split.name.clone()).collect();
        let of_source = |name: &str| now.iter().position(|now| now == name).map(|at| offsets[at]);
        let mut names = begun.splits.clone();
        let mut starts: BTreeMap<usize, i64> = begun.starts.iter().copied().enumerate().collect();
        if let Some(manifest) = resumed {
            if !manifest.header.splits.starts_with(&names) {
                return Err(format!("the checkpoint of epoch {} is of a job with other inputs", manifest.epoch));
            }
            names.clone_from(&manifest.header.splits);
        }
        let resumed = resumed.map_or(Epoch(0), |manifest| manifest.epoch);
        for record in tape {
            for (&number, AddedSplit { name, start }) in &record.splits {
                let number = number as usize;
                let is_known = names.get(number) == Some(name);
                if !is_known && (number != names.len() || record.epoch <= resumed) {
                    return Err(format!("epoch {} names {name} as its split {number}, which is another one", record.epoch));
                }
                if !is_known {
                    names.push(name.clone());
                }
                starts.insert(number, *start);
            }
        }
        if let Some(what) = other_inputs(&names, &now, !source.bounded()) {
            return Err(what);
        }
        if now.len() > Place::SPLIT_MAX as usize {
            return Err(format!("there are {} splits now, more than places can name", now.len()));
        }
        let start = |(number, name): (usize, &String)| {
            let found = of_source(name).expect("inputs that are gone have been refused");
            // Not where the source begins now: what retention has removed in between is to be missed.
            starts.get(&number).map_or(found, |&offset| SplitStart { offset, ..found })
        };
        let starts = names.iter().enumerate().map(start).collect();
        let is_new = |name: &&String| !names.contains(name);
        let added = now.iter().zip(offsets).filter(|(name, _)| is_new(name));
        let added = added.map(|(name, start)| AddedSplit { name: name.clone(), start: start.offset }).collect();
        Ok(Known { names, starts, added })
    }

    /// Those that the log names, alone: for a job that plays what the log has.
    pub fn of_the_log(self) -> Known {
        Known { added: Vec::new(), ..self }
    }

    /// Whether the log names them all.
    pub fn added_none(&self) -> bool {
        self.added.is_empty()
    }

    /// The sealer for them, and their names.
    pub fn sealer(self, cut: Cut, rows_max: u64, tape: Vec<EpochRecord>, resumed: Option<&Manifest>) -> (Sealer, Vec<String>) {
        let Known { mut names, starts, added } = self;
        let mut sealer = Sealer::new(cut, rows_max, tape, &starts);
        if let Some(manifest) = resumed {
            sealer = sealer.resume(manifest.epoch, manifest.sealed_at, &manifest.offsets);
        }
        for split in added {
            tracing::info!(split = split.name, offset = split.start, number = names.len(), "a new input");
            names.push(split.name.clone());
            sealer.add(split);
        }
        (sealer, names)
    }
}

#[cfg(test)]
mod tests {
    use orderflow_operators::decoder::Topic;

    use super::*;
    use crate::source::{SourceError, Split, SplitReader, Wake};

    struct Inputs(Vec<Split>, bool);

    impl Source for Inputs {
        fn splits(&self) -> &[Split] {
            &self.0
        }
        fn open(&self, split: &Split, _: i64, _: Wake) -> Result<SplitReader, SourceError> {
            Err(SourceError::NoSplit { split: split.name.clone() })
        }
        fn bounded(&self) -> bool {
            self.1
        }
    }

    fn inputs(names: &[&str]) -> (Inputs, Vec<SplitStart>) {
        let split = |(number, name): (usize, &&str)| Split { number: number as u32, topic: Topic::Orders, name: (*name).to_owned() };
        let start = |at| SplitStart { offset: 100 + at as i64, weight: 1, opening: false };
        (Inputs(names.iter().enumerate().map(split).collect(), false), (0..names.len()).map(start).collect())
    }

    fn header(names: &[&str], starts: &[i64]) -> LogHeader {
        let splits = names.iter().map(|name| (*name).to_owned()).collect();
        LogHeader { format: 1, job: "job".into(), splits, starts: starts.into(), topics: BTreeMap::new(), settings: BTreeMap::new() }
    }

    fn record(epoch: u64, splits: &[(u32, &str, i64)]) -> EpochRecord {
        let splits = splits.iter().map(|&(number, name, start)| (number, AddedSplit { name: name.into(), start })).collect();
        EpochRecord { epoch: Epoch(epoch), sealed_at: 0, ranges: BTreeMap::new(), splits, stages: BTreeMap::new() }
    }

    /// Names and starts by number, then what is new.
    fn known(
        (source, offsets): &(Inputs, Vec<SplitStart>),
        begun: &LogHeader,
        resumed: Option<&Manifest>,
        tape: &[EpochRecord],
    ) -> Result<String, String> {
        let known = Known::new(source, begun, offsets, resumed, tape)?;
        let of_log = known.names.iter().zip(&known.starts).map(|(name, start)| format!("{name}@{}", start.offset));
        let new = known.added.iter().map(|split| format!("+{}@{}", split.name, split.start));
        Ok(of_log.chain(new).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn numbers_stay_and_new_splits_come_behind() {
        let now = inputs(&["i/0", "i/1", "o/0", "o/1", "o/2"]);
        let begun = header(&["i/0", "o/0"], &[3, 4]);
        let added = [record(1, &[]), record(2, &[(2, "o/1", 0), (3, "i/1", 5)])];
        assert_eq!(known(&now, &begun, None, &[]).unwrap(), "i/0@3 o/0@4 +i/1@101 +o/1@103 +o/2@104");
        assert_eq!(known(&now, &begun, None, &added).unwrap(), "i/0@3 o/0@4 o/1@0 i/1@5 +o/2@104");
        // A log that was begun before starts were written down.
        assert_eq!(known(&now, &header(&["i/0", "o/0"], &[]), None, &[]).unwrap(), "i/0@100 o/0@102 +i/1@101 +o/1@103 +o/2@104");
    }

    #[test]
    fn a_checkpoint_knows_those_before_it() {
        let now = inputs(&["i/0", "o/0", "o/1", "o/2"]);
        let begun = header(&["i/0", "o/0"], &[3, 4]);
        let manifest = Manifest { epoch: Epoch(2), ..Manifest::nothing(header(&["i/0", "o/0", "o/2"], &[3, 4])) };
        // Of a split that only the checkpoint names, the checkpoint has the offset.
        assert_eq!(known(&now, &begun, Some(&manifest), &[]).unwrap(), "i/0@3 o/0@4 o/2@103 +o/1@102");
        let tape = [record(2, &[(2, "o/2", 0)]), record(3, &[(3, "o/1", 0)])];
        assert_eq!(known(&now, &begun, Some(&manifest), &tape).unwrap(), "i/0@3 o/0@4 o/2@0 o/1@0");
        assert_eq!(known(&now, &begun, Some(&manifest), &tape[1..]).unwrap(), "i/0@3 o/0@4 o/2@103 o/1@0");
        let other = [record(2, &[(2, "o/1", 0)])];
        assert!(known(&now, &begun, Some(&manifest), &other).unwrap_err().contains("epoch 2 names o/1 as its split 2"));
        let other = Manifest::nothing(header(&["o/0"], &[]));
        assert!(known(&now, &begun, Some(&other), &[]).unwrap_err().contains("other inputs"));
    }

    #[test]
    fn what_is_gone_is_missed() {
        let begun = header(&["i/0", "o/0"], &[]);
        assert!(known(&inputs(&["i/0"]), &begun, None, &[]).unwrap_err().contains("no longer there: [o/0]"));
        let added = [record(1, &[(2, "o/1", 0)])];
        assert!(known(&inputs(&["i/0", "o/0"]), &begun, None, &added).unwrap_err().contains("no longer there: [o/1]"));
        // A folder's files are the whole input from the start.
        let mut files = inputs(&["i/0", "o/0", "o/1"]);
        files.0.1 = true;
        assert!(known(&files, &begun, None, &[]).unwrap_err().contains("not there before: [o/1]"));
    }
}
