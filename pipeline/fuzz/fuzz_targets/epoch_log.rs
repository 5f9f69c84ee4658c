//! Any lines are either an epoch log, whose records follow each other, or an error that says something. A line that begins with `#` gets the
//! checksum that it needs, or none would be read further than that.

#![no_main]

use libfuzzer_sys::fuzz_target;
use orderflow::epoch_log::{LogHome, read_with_header};
use orderflow_operators::epoch::Epoch;

fuzz_target!(|input: &[u8]| {
    let mut log = Vec::new();
    for line in input.split_inclusive(|&byte| byte == b'\n') {
        match line.strip_prefix(b"#") {
            Some(json) => {
                let end = json.len() - usize::from(json.ends_with(b"\n"));
                log.extend_from_slice(format!("{:08x} ", crc32fast::hash(&json[..end])).as_bytes());
                log.extend_from_slice(json);
            }
            None => log.extend_from_slice(line),
        }
    }
    let folder = tempfile::tempdir().expect("a folder can be made");
    std::fs::write(folder.path().join("epochs.log"), log).expect("a file can be written");
    for after in [0, 3] {
        match read_with_header(&LogHome::Folder(folder.path().to_owned()), Epoch(after)) {
            Ok((_, records)) => {
                for pair in records.windows(2) {
                    assert_eq!(pair[0].epoch.0 + 1, pair[1].epoch.0);
                }
                assert!(records.first().is_none_or(|first| first.epoch.0 == after + 1), "{records:?}");
                records.iter().for_each(|record| {
                    let _ = (record.offsets(), record.sealed_at_micros());
                });
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
});
