use std::fs;
use std::io::Write;
use std::sync::mpsc;
use std::time::Duration;

use expect_test::{Expect, expect};
use flate2::write::GzEncoder;
use tempfile::TempDir;

use super::*;
use crate::source::Message;

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, content) in files {
        fs::write(folder.path().join(name), content).expect("can be written");
    }
    folder
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).expect("memory");
    encoder.finish().expect("memory")
}

fn zstd_of(text: &str) -> Vec<u8> {
    zstd::encode_all(text.as_bytes(), 1).expect("memory")
}

/// A split being read, with the wakes that it sent.
struct Opened {
    reader: SplitReader,
    wakes: mpsc::Receiver<()>,
}

fn open(source: &FileSource, split: u32, offset: i64) -> Opened {
    let (sender, wakes) = mpsc::channel();
    // The reader may go before its last wake.
    let reader = source.open(&source.splits()[split as usize], offset, Arc::new(move || _ = sender.send(()))).expect("opens");
    Opened { reader, wakes }
}

impl Opened {
    /// Waits, from wake to wake, until `done`.
    fn wait(&self, done: impl Fn(&SplitReader) -> bool) {
        while !done(&self.reader) {
            self.wakes.recv_timeout(Duration::from_secs(60)).expect("a wake follows every change");
        }
    }

    fn finished(reader: &SplitReader) -> bool {
        reader.available().ended || reader.error().is_some()
    }

    /// Every message from `start` on, as text, and the error if it did not end well.
    fn all(mut self, start: i64) -> String {
        self.wait(Self::finished);
        let end = self.reader.available().end;
        let messages = self.reader.take(start, end).expect("is buffered");
        let mut text: Vec<String> = messages
            .iter()
            .map(|(offset, message)| match message {
                Message::Whole(bytes) => format!("{offset}: {:?}", String::from_utf8_lossy(bytes)),
                Message::Oversized { start, bytes } => format!("{offset}: {:?} of {bytes}", String::from_utf8_lossy(start)),
            })
            .collect();
        text.extend(self.reader.error().map(|error| format!("error: {error}")));
        text.join("\n")
    }
}

fn listed(files: &[(&str, &[u8])]) -> String {
    let folder = folder(files);
    match FileSource::open_folder(folder.path(), SourceLimits::default()) {
        Ok(source) => {
            let split = |split: &Split| format!("{} {:?} {}", split.number, split.topic, split.name);
            source.splits().iter().map(split).collect::<Vec<_>>().join("\n")
        }
        Err(error) => error.to_string().replace(&folder.path().display().to_string(), "DIR"),
    }
}

#[test]
fn splits_are_the_files_in_order() {
    let check = |names: &[&str], expected: Expect| {
        let files: Vec<(&str, &[u8])> = names.iter().map(|&name| (name, &b""[..])).collect();
        expected.assert_eq(&listed(&files));
    };
    check(
        &[
            "orders-1.jsonl",
            "inventory-b.jsonl.gz",
            "orders-0.jsonl.zst",
            "inventory-a.jsonl",
            "orders-10.jsonl",
            "README.md",
            "orders.jsonl",
        ],
        expect![[r#"
            0 Inventory inventory-a.jsonl
            1 Inventory inventory-b.jsonl
            2 Orders orders-0.jsonl
            3 Orders orders-1.jsonl
            4 Orders orders-10.jsonl"#]],
    );
    check(
        &["orders-a.jsonl", "orders-a-b.jsonl"],
        expect![[r#"
        0 Orders orders-a-b.jsonl
        1 Orders orders-a.jsonl"#]],
    );
    check(
        &["notes.txt"],
        expect!["DIR has no input: a fixture has files named inventory-*.jsonl and orders-*.jsonl (or .jsonl.gz, .jsonl.zst)"],
    );
    check(
        &["orders-0.jsonl.zst", "orders-0.jsonl"],
        expect!["DIR has both orders-0.jsonl and orders-0.jsonl.zst, which are one split: remove one of them"],
    );
    let missing = FileSource::open_folder(Path::new("no/such/folder"), SourceLimits::default()).expect_err("is missing");
    expect!["cannot read no/such/folder: No such file or directory (os error 2)"].assert_eq(&missing.to_string());
}

#[test]
fn every_compression_reads_the_same() {
    let text = "one\n\nthree\r\nfour";
    // Files of several members are what appending to a compressed log makes.
    let gzip_members = [gzip("one\n\nth"), gzip("ree\r\n"), gzip("four")].concat();
    let zstd_frames = [zstd_of("one\n\nth"), zstd_of("ree\r\nfour")].concat();
    for (name, content) in [
        ("orders-0.jsonl", text.as_bytes().to_vec()),
        ("orders-0.jsonl.gz", gzip(text)),
        ("orders-0.jsonl.gz", gzip_members),
        ("orders-0.jsonl.zst", zstd_of(text)),
        ("orders-0.jsonl.zst", zstd_frames),
    ] {
        let folder = folder(&[(name, &content)]);
        let source =
            FileSource::open_folder(folder.path(), SourceLimits { message_bytes_max: 4, ..SourceLimits::default() }).expect("one file");
        expect![[r#"
            0: "one"
            1: ""
            2: "thre" of 6
            3: "four""#]]
        .assert_eq(&open(&source, 0, 0).all(0));
        expect![[r#"
            2: "thre" of 6
            3: "four""#]]
        .assert_eq(&open(&source, 0, 2).all(2));
        expect![[""]].assert_eq(&open(&source, 0, 4).all(4));
        let error = open(&source, 0, 5).all(5).replace(&folder.path().join(name).display().to_string(), "FILE");
        expect![[
            "error: FILE is shorter than what the epoch log recorded: 4 lines, of which 5 were read before; put the file back as it was, or start anew with another output folder"
        ]]
        .assert_eq(&error);
    }
}

#[test]
fn damage_is_told_after_what_is_whole() {
    let check = |name: &str, content: &[u8], expected: Expect| {
        let folder = folder(&[(name, content)]);
        let source = FileSource::open_folder(folder.path(), SourceLimits::default()).expect("one file");
        expected.assert_eq(&open(&source, 0, 0).all(0).replace(&folder.path().display().to_string(), "DIR"));
    };
    let text = "first\nsecond\n".repeat(2);
    let cut = |bytes: Vec<u8>| bytes[..bytes.len() - 6].to_vec();
    check(
        "orders-0.jsonl.gz",
        b"certainly no gzip\n",
        expect!["error: cannot read DIR/orders-0.jsonl.gz after its first 0 lines: invalid gzip header"],
    );
    check(
        "orders-0.jsonl.zst",
        b"certainly no zstd\n",
        expect!["error: cannot read DIR/orders-0.jsonl.zst after its first 0 lines: Unknown frame descriptor"],
    );
    check(
        "orders-0.jsonl.gz",
        &cut(gzip(&text)),
        expect![[r#"
        0: "first"
        1: "second"
        2: "first"
        3: "second"
        error: cannot read DIR/orders-0.jsonl.gz after its first 4 lines: unexpected end of file"#]],
    );
    check(
        "orders-0.jsonl.zst",
        &cut(zstd_of(&text)),
        expect!["error: cannot read DIR/orders-0.jsonl.zst after its first 0 lines: incomplete frame"],
    );
    check(
        "orders-0.jsonl.gz",
        &[gzip("whole\npart"), b"trailing".to_vec()].concat(),
        expect![[r#"
        0: "whole"
        error: cannot read DIR/orders-0.jsonl.gz after its first 1 lines: unexpected end of file"#]],
    );
    check("orders-0.jsonl.gz", b"", expect!["error: cannot read DIR/orders-0.jsonl.gz after its first 0 lines: unexpected end of file"]);
}

#[test]
fn a_small_buffer_passes_everything_on() {
    let lines: Vec<String> = (0..5_000).map(|n| format!("line {n}")).collect();
    let folder = folder(&[("orders-0.jsonl", lines.join("\n").as_bytes())]);
    let limits = SourceLimits { buffer_bytes_max: 1_000, chunk_bytes: 100, ..SourceLimits::default() };
    let source = FileSource::open_folder(folder.path(), limits).expect("one file");
    let mut opened = open(&source, 0, 17);
    let mut next = 17;
    let mut read = Vec::new();
    // Ranges of more bytes than the buffer holds settle, too.
    while {
        opened.wait(|reader| reader.settled(next, 200, u64::MAX));
        opened.reader.available().rows > 0
    } {
        let end = opened.reader.cut(next, 200, u64::MAX);
        let messages = opened.reader.take(next, end).expect("what was cut is there");
        read.extend(messages.iter().map(|(_, message)| match message {
            Message::Whole(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Message::Oversized { .. } => "too long".to_owned(),
        }));
        next = end;
    }
    assert_eq!(read, lines[17..]);
}

#[test]
fn cuts_depend_on_the_content_alone() {
    let text: String = (0..3_000).map(|n| format!("{}\n", "x".repeat(n * 7919 % 90))).collect();
    let folder = folder(&[("orders-0.jsonl", text.as_bytes())]);
    let cuts = |chunk_bytes, chunk_rows| {
        let limits = SourceLimits { chunk_bytes, chunk_rows, ..SourceLimits::default() };
        let source = FileSource::open_folder(folder.path(), limits).expect("one file");
        let mut opened = open(&source, 0, 0);
        let mut cuts = vec![0];
        loop {
            let start = cuts[cuts.len() - 1];
            opened.wait(|reader| reader.settled(start, 50, 1_500));
            let end = opened.reader.cut(start, 50, 1_500);
            if end == start {
                return cuts;
            }
            opened.reader.take(start, end).expect("is there");
            cuts.push(end);
        }
    };
    let expected = cuts(1 << 20, 8192);
    assert_eq!(expected.last(), Some(&3_000));
    assert!(expected.len() > 90, "both limits count");
    for (chunk_bytes, chunk_rows) in [(1, 1), (100, 7), (4_096, 10), (1 << 20, 50)] {
        assert_eq!(cuts(chunk_bytes, chunk_rows), expected, "chunks of {chunk_bytes} bytes, {chunk_rows} messages");
    }
}

#[test]
fn a_pace_begins_when_what_comes_before_it_was_taken() {
    let folder = folder(&[("inventory-opening.jsonl", b"a\nb\nc\n"), ("orders-0.jsonl", b"1\n2\n3\n4\n")]);
    let source = FileSource::open_folder(folder.path(), SourceLimits::default()).expect("two files");
    // Two rows a millisecond come together, as many as an earlier life had.
    let source = source.paced(2_000.0, "inventory-opening", &BTreeMap::from([(1, 2)]));
    let (mut opening, mut orders) = (open(&source, 0, 0), open(&source, 1, 0));
    opening.wait(Opened::finished);
    orders.wait(|reader| reader.available().end == 2);
    let no_more_come = |orders: &Opened| {
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(orders.reader.available().end, 2);
    };
    no_more_come(&orders);
    orders.reader.take(0, 2).expect("is there");
    no_more_come(&orders);
    opening.reader.take(0, 3).expect("is there");
    orders.wait(Opened::finished);
    assert_eq!(orders.reader.available().end, 4);
}
