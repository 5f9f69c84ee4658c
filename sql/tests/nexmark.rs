//! Nexmark: queries over an auction house's events, compared with DataFusion's answer to the same question over all of them at once.
//!
//! A query is a file of `tests/nexmark`; what it is compared with is the same text, or stands behind it. Left out is `q10`, which is of files alone.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use orderflow_fixtures::nexmark::{NexmarkSettings, generate};
use orderflow_sql::query::{Table, query};
use orderflow_sql::run::{RunSettings, render, run, to_json};
use orderflow_sql::stage::Stage;

const SETTINGS: NexmarkSettings = NexmarkSettings { events: 6_000, gap_micros: 10_000, seed: 20_260_105 };

fn tables() -> Vec<Table> {
    let events = generate(&SETTINGS);
    let ints = |values: &mut dyn Iterator<Item = i64>| Arc::new(Int64Array::from_iter_values(values)) as ArrayRef;
    let times = |values: &mut dyn Iterator<Item = i64>| Arc::new(TimestampMicrosecondArray::from_iter_values(values)) as ArrayRef;
    fn texts<'a>(values: impl Iterator<Item = &'a str>) -> ArrayRef {
        Arc::new(StringArray::from_iter_values(values))
    }
    let table = |name: &str, columns: Vec<(&str, ArrayRef)>| {
        let rows = RecordBatch::try_from_iter(columns).unwrap();
        Table { name: name.to_owned(), schema: rows.schema(), rows: vec![rows] }
    };
    let (p, a, b) = (&events.persons, &events.auctions, &events.bids);
    vec![
        table(
            "person",
            vec![
                ("id", ints(&mut p.iter().map(|p| p.id))),
                ("name", texts(p.iter().map(|p| p.name.as_str()))),
                ("city", texts(p.iter().map(|p| p.city))),
                ("state", texts(p.iter().map(|p| p.state))),
                ("date_time", times(&mut p.iter().map(|p| p.date_time))),
            ],
        ),
        table(
            "auction",
            vec![
                ("id", ints(&mut a.iter().map(|a| a.id))),
                ("item_name", texts(a.iter().map(|a| a.item_name.as_str()))),
                ("initial_bid", ints(&mut a.iter().map(|a| a.initial_bid))),
                ("reserve", ints(&mut a.iter().map(|a| a.reserve))),
                ("date_time", times(&mut a.iter().map(|a| a.date_time))),
                ("expires", times(&mut a.iter().map(|a| a.expires))),
                ("seller", ints(&mut a.iter().map(|a| a.seller))),
                ("category", ints(&mut a.iter().map(|a| a.category))),
            ],
        ),
        table(
            "bid",
            vec![
                ("auction", ints(&mut b.iter().map(|b| b.auction))),
                ("bidder", ints(&mut b.iter().map(|b| b.bidder))),
                ("price", ints(&mut b.iter().map(|b| b.price))),
                ("channel", texts(b.iter().map(|b| b.channel.as_str()))),
                ("url", texts(b.iter().map(|b| b.url.as_str()))),
                ("date_time", times(&mut b.iter().map(|b| b.date_time))),
            ],
        ),
        table(
            "side",
            vec![
                ("key", ints(&mut (0..90))),
                ("value", Arc::new(StringArray::from_iter_values((0..90).map(|key| format!("value {key}"))))),
            ],
        ),
    ]
}

/// The tables of the queries.
const DECLARED: &str = include_str!("nexmark/tables.sql");
/// What stands between a stage's query and the one that it is compared with.
const BATCH: &str = "-- over all rows at once:";

/// The rows of a stage's query, those that were taken back left out; sorted.
fn streamed(folder: &Path, sql: &str, epoch_rows: u64, workers: usize) -> Vec<String> {
    let stage = Stage::plan(&format!("{DECLARED}{sql}"), &[]).unwrap_or_else(|error| panic!("{sql}\n{error}"));
    let lines: Arc<Mutex<Vec<u8>>> = Arc::default();
    let to = lines.clone();
    let updating = stage.graph.sinks[0].updating;
    let sink = Box::new(move |_: usize, edge: &_, _: &_, rows: RecordBatch| {
        to.lock().unwrap().extend(render(None, edge, &rows)?);
        Ok(())
    });
    let settings = RunSettings { base: folder.to_owned(), workers, epoch_rows, stop_after: None, resume: None };
    let summary = run(&stage, settings, sink).unwrap_or_else(|error| panic!("{sql}\n{error}"));
    assert_eq!(
        (summary.errors, summary.malformed, summary.late),
        (0, 0, 0),
        "{sql} {:?} {:?}",
        summary.first_error,
        summary.first_malformed
    );
    let text = String::from_utf8(std::mem::take(&mut *lines.lock().unwrap())).unwrap();
    let mut counts: BTreeMap<String, i64> = BTreeMap::new();
    for line in text.lines() {
        if updating {
            let change: serde_json::Value = serde_json::from_str(line).unwrap();
            for (side, by) in [("before", -1), ("after", 1)].into_iter().filter(|(side, _)| !change[*side].is_null()) {
                *counts.entry(change[side].to_string()).or_default() += by;
            }
        } else {
            *counts.entry(line.to_owned()).or_default() += 1;
        }
    }
    assert!(counts.values().all(|count| *count >= 0), "{sql}: a row is taken back that is not there");
    counts.into_iter().flat_map(|(row, count)| std::iter::repeat_n(row, count as usize)).collect()
}

fn whole(sql: &str) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (_, batches) = runtime.block_on(query(tables(), sql)).unwrap_or_else(|error| panic!("{sql}\n{error}"));
    let mut lines: Vec<String> = Vec::new();
    for rows in batches.iter().filter(|rows| rows.num_rows() > 0) {
        lines.extend(String::from_utf8(to_json(rows).unwrap()).unwrap().lines().map(str::to_owned));
    }
    lines.sort_unstable();
    lines
}

fn check(number: u32) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/nexmark/q{number}.sql"));
    let text = std::fs::read_to_string(&path).unwrap();
    let (stage, batch) = text.split_once(BATCH).unwrap_or((&text, &text));
    let folder = tempfile::tempdir().unwrap();
    for table in tables() {
        let text: Vec<u8> = table.rows.iter().flat_map(|rows| to_json(rows).unwrap()).collect();
        std::fs::write(folder.path().join(format!("{}.json", table.name)), text).unwrap();
    }
    let expected = whole(batch);
    assert!(!expected.is_empty(), "q{number} has an answer");
    for (epoch_rows, workers) in [(1_000_000, 1), (300, 2)] {
        let found = streamed(folder.path(), stage, epoch_rows, workers);
        let missing = expected.iter().find(|line| !found.contains(line));
        let more = found.iter().find(|line| !expected.contains(line));
        assert!(
            found == expected,
            "q{number}, epochs of {epoch_rows} rows: {} rows, expected {}; missing {missing:?}; too many {more:?}",
            found.len(),
            expected.len()
        );
    }
}

/// A test for each query.
macro_rules! queries {
    ($($name:ident $number:literal)*) => {
        $(#[test]
        fn $name() {
            check($number);
        })*
    };
}

queries! {
    q0_pass_through 0
    q1_currency 1
    q2_selection 2
    q3_local_items 3
    q4_average_price_of_a_category 4
    q5_hot_items 5
    q6_average_price_of_a_seller 6
    q7_highest_bid 7
    q8_new_users 8
    q9_winning_bids 9
    q11_user_sessions 11
    q12_bids_of_a_window 12
    q13_side_input 13
    q14_calculation 14
    q15_statistics_of_a_day 15
    q16_statistics_of_a_channel 16
    q17_statistics_of_an_auction 17
    q18_last_bid 18
    q19_top_bids 19
    q20_bids_with_their_auction 20
    q21_channel_ids 21
    q22_folders 22
}
