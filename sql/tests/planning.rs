//! Planning: our own stages, and bad SQL of every kind, which gives a message and never a panic.

#[path = "../../pipeline/fuzz/fuzz_targets/property.rs"]
mod property;

use std::path::{Path, PathBuf};

use orderflow_operators::features::WindowSet;
use orderflow_operators::streams::Stream;
use orderflow_sql::stage::{NamedStream, Stage};
use proptest::prelude::*;
use proptest::sample::select;

fn streams() -> Vec<NamedStream> {
    let windows = WindowSet::default();
    Stream::ALL.map(|stream| NamedStream { name: stream.name().to_owned(), schema: stream.schema(&windows), updating: false }).to_vec()
}

fn stages_in(folder: &str) -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let files = folder.read_dir().expect("the folder is there").map(|entry| entry.expect("it can be read").path());
    let mut files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "sql")).collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), std::fs::read_to_string(path).expect("it is text"))).collect()
}

#[test]
fn our_stages_can_be_planned() {
    let stages = stages_in("stages");
    assert_eq!(stages.len(), 7);
    for (path, text) in stages {
        let stage = Stage::plan(&text, &streams()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(stage.named_streams().count() > 0, "{}", path.display());
        assert!(stage.graph.to_dot().starts_with("digraph"));
    }
}

/// What the fuzzer tries with any text holds for all that are here, which it begins with.
#[test]
fn the_fuzzers_property_holds_for_what_it_begins_with() {
    for (_, text) in ["stages", "tests/stages", "tests/nexmark"].into_iter().flat_map(stages_in) {
        property::check(&text);
    }
}

#[test]
fn a_message_has_its_place() {
    let error = Stage::plan("SELECT\n  order_id,\n  totl\nFROM order_decisions", &streams()).expect_err("it is refused");
    let position = error.position().expect("it has a place");
    assert_eq!((position.line, position.column), (3, 3));
    let text = error.to_string();
    assert!(text.contains("there is no column totl") && text.contains("3 |   totl\n  |   ^"), "{text}");
}

/// A message is for people: it names no part of the planner.
fn check(text: &str) -> Result<(), TestCaseError> {
    if let Err(error) = Stage::plan(text, &streams()) {
        prop_assert!(!error.message().is_empty());
        prop_assert!(!error.to_string().contains("this is a bug"), "{text}\n{error}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Stages with some of their words dropped, doubled, put elsewhere or in the place of others.
    #[test]
    fn spoiled_stages_never_panic(
        (_, text) in select([stages_in("stages"), stages_in("tests/stages")].concat()),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..5_u8), 1..6),
    ) {
        let mut words: Vec<String> = text.split_inclusive([' ', '(', ')', ',', '\n']).map(str::to_owned).collect();
        for (at, other, kind) in edits {
            if words.is_empty() {
                break;
            }
            let (at, other) = (at.index(words.len()), other.index(words.len()));
            match kind {
                0 => { words.remove(at); }
                1 => { let word = words[at].clone(); words.insert(other, word); }
                2 => words.swap(at, other),
                3 => words[at] = words[other].clone(),
                _ => words[at] = words[at].chars().rev().collect(),
            }
        }
        check(&words.concat())?;
    }

    /// Text of any kind.
    #[test]
    fn any_text_never_panics(text in "(SELECT |INSERT INTO |CREATE TABLE |WITH )?\\PC{0,80}") {
        check(&text)?;
    }
}

#[test]
fn deep_and_long_queries_are_refused_or_planned() {
    let chain = format!("SELECT {} FROM order_decisions", vec!["total"; 500].join(" + "));
    let long = format!("SELECT {} FROM order_decisions", vec!["total"; 5_000].join(" + "));
    let deep = format!("SELECT {}1{} FROM order_decisions", "(".repeat(5_000), ")".repeat(5_000));
    let nested = format!("SELECT * FROM {}order_decisions{}", "(SELECT * FROM ".repeat(300), ")".repeat(300));
    assert!(Stage::plan(&chain, &streams()).is_ok());
    for text in [long, deep, nested] {
        if let Err(error) = Stage::plan(&text, &streams()) {
            assert!(!error.to_string().contains("this is a bug"), "{}", error.message());
        }
    }
}
