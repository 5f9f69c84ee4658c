//! Nexmark: queries over an auction house's events, compared with DataFusion's answer to the same question over all of them at once.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use orderflow_sql::query::{Table, query};
use orderflow_sql::run::{RunSettings, render, run, to_json};
use orderflow_sql::stage::Stage;

/// 2026-01-05T10:00:00Z in microseconds.
const START: i64 = 1_767_607_200_000_000;
const EVENTS: u64 = 6_000;

/// Numbers that look random, the same in every run (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// Of 50 events one is a person, three are auctions, the others bids; 10 ms from one to the next. Hot auctions and bidders get most bids.
fn tables() -> Vec<Table> {
    let mut numbers = Numbers(20_260_105);
    let (mut persons, mut auctions, mut bids) = (Vec::new(), Vec::new(), Vec::new());
    for event in 0..EVENTS {
        let time = START + event as i64 * 10_000;
        let (cycle, place) = (event / 50, event % 50);
        let hot = |n: &mut Numbers, last: u64| if n.below(2) == 0 { last - last % 8 } else { n.below(last + 1) };
        match place {
            0 => persons.push((cycle as i64, ["OR", "ID", "CA", "WA"][numbers.below(4) as usize], time)),
            1..=3 => {
                let id = cycle * 3 + place - 1;
                auctions.push((id as i64, hot(&mut numbers, cycle) as i64, 10 + numbers.below(5) as i64, time, time + 20_000_000));
            }
            _ => {
                let auction = hot(&mut numbers, cycle * 3 + 2) as i64;
                bids.push((auction, hot(&mut numbers, cycle) as i64, 100 + numbers.below(1_000_000) as i64, time));
            }
        }
    }
    let ints = |values: Vec<i64>| Arc::new(Int64Array::from(values)) as ArrayRef;
    let times = |values: Vec<i64>| Arc::new(TimestampMicrosecondArray::from(values)) as ArrayRef;
    let table = |name: &str, columns: Vec<(&str, ArrayRef)>| {
        let rows = RecordBatch::try_from_iter(columns).unwrap();
        Table { name: name.to_owned(), schema: rows.schema(), rows: vec![rows] }
    };
    vec![
        table(
            "person",
            vec![
                ("id", ints(persons.iter().map(|p| p.0).collect())),
                ("state", Arc::new(StringArray::from_iter_values(persons.iter().map(|p| p.1)))),
                ("date_time", times(persons.iter().map(|p| p.2).collect())),
            ],
        ),
        table(
            "auction",
            vec![
                ("id", ints(auctions.iter().map(|a| a.0).collect())),
                ("seller", ints(auctions.iter().map(|a| a.1).collect())),
                ("category", ints(auctions.iter().map(|a| a.2).collect())),
                ("date_time", times(auctions.iter().map(|a| a.3).collect())),
                ("expires", times(auctions.iter().map(|a| a.4).collect())),
            ],
        ),
        table(
            "bid",
            vec![
                ("auction", ints(bids.iter().map(|b| b.0).collect())),
                ("bidder", ints(bids.iter().map(|b| b.1).collect())),
                ("price", ints(bids.iter().map(|b| b.2).collect())),
                ("date_time", times(bids.iter().map(|b| b.3).collect())),
            ],
        ),
    ]
}

const DECLARED: &str = "
CREATE TABLE person (id BIGINT, state TEXT, date_time TIMESTAMP) WITH (
  connector = 'single_file', path = 'person.json', format = 'json', type = 'source', event_time_field = 'date_time');
CREATE TABLE auction (id BIGINT, seller BIGINT, category BIGINT, date_time TIMESTAMP, expires TIMESTAMP) WITH (
  connector = 'single_file', path = 'auction.json', format = 'json', type = 'source', event_time_field = 'date_time');
CREATE TABLE bid (auction BIGINT, bidder BIGINT, price BIGINT, date_time TIMESTAMP) WITH (
  connector = 'single_file', path = 'bid.json', format = 'json', type = 'source', event_time_field = 'date_time');
";

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
    assert_eq!((summary.errors, summary.malformed, summary.late), (0, 0, 0), "{sql}");
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

/// A number as `stage`'s dialect has it, and the same question over all events at once.
fn check(name: &str, stage: &str, batch: &str) {
    let folder = tempfile::tempdir().unwrap();
    for table in tables() {
        let text: Vec<u8> = table.rows.iter().flat_map(|rows| to_json(rows).unwrap()).collect();
        std::fs::write(folder.path().join(format!("{}.json", table.name)), text).unwrap();
    }
    let expected = whole(batch);
    assert!(!expected.is_empty(), "{name} has an answer");
    for (epoch_rows, workers) in [(1_000_000, 1), (300, 2)] {
        let found = streamed(folder.path(), stage, epoch_rows, workers);
        let missing = expected.iter().find(|line| !found.contains(line));
        let more = found.iter().find(|line| !expected.contains(line));
        assert!(
            found == expected,
            "{name}, epochs of {epoch_rows} rows: {} rows, expected {}; missing {missing:?}; too many {more:?}",
            found.len(),
            expected.len()
        );
    }
}

/// The same text in both.
fn check_same(name: &str, sql: &str) {
    check(name, sql, sql);
}

#[test]
fn q0_pass_through() {
    check_same("q0", "SELECT auction, bidder, price, date_time FROM bid");
}

#[test]
fn q1_currency() {
    check_same("q1", "SELECT auction, bidder, price * 908 / 1000 AS price, date_time FROM bid");
}

#[test]
fn q2_selection() {
    check_same("q2", "SELECT auction, price FROM bid WHERE auction % 123 = 0");
}

#[test]
fn q3_local_items() {
    check_same(
        "q3",
        "SELECT p.state, a.id, a.seller FROM auction a JOIN person p ON a.seller = p.id WHERE a.category = 10 AND p.state IN ('OR', 'ID', 'CA')",
    );
}

#[test]
fn q4_average_price_of_a_category() {
    check_same(
        "q4",
        "SELECT category, sum(final) AS total, count(*) AS auctions FROM (
           SELECT max(b.price) AS final, a.category FROM auction a JOIN bid b ON a.id = b.auction
           WHERE b.date_time BETWEEN a.date_time AND a.expires GROUP BY a.id, a.category)
         GROUP BY category",
    );
}

#[test]
fn q5_hot_items() {
    check(
        "q5",
        "SELECT window.start AS start, auction, num FROM (
           SELECT *, ROW_NUMBER() OVER (PARTITION BY window ORDER BY num DESC, auction) AS place FROM (
             SELECT hop(INTERVAL '2 seconds', INTERVAL '10 seconds') AS window, auction, count(*) AS num FROM bid GROUP BY window, auction))
         WHERE place = 1",
        "SELECT start, auction, num FROM (
           SELECT *, row_number() OVER (PARTITION BY start ORDER BY num DESC, auction) AS place FROM (
             SELECT start, auction, count(*) AS num FROM (
               SELECT arrow_cast(date_bin(INTERVAL '2 seconds', date_time), 'Timestamp(Microsecond, None)') - to.back * INTERVAL '2 seconds' AS start, auction
               FROM bid CROSS JOIN (SELECT unnest(range(0, 5)) AS back) AS to)
             GROUP BY start, auction))
         WHERE place = 1",
    );
}

#[test]
fn q7_highest_bid() {
    check(
        "q7",
        "SELECT b.window.start AS start, b.auction, b.bidder, b.price FROM (
           SELECT tumble(INTERVAL '10 seconds') AS window, auction, bidder, price FROM bid GROUP BY window, auction, bidder, price) b
         JOIN (SELECT tumble(INTERVAL '10 seconds') AS window, max(price) AS most FROM bid GROUP BY window) m
         ON b.window = m.window AND b.price = m.most",
        "SELECT DISTINCT b.start, b.auction, b.bidder, b.price FROM (
           SELECT date_bin(INTERVAL '10 seconds', date_time) AS start, auction, bidder, price FROM bid) b
         JOIN (SELECT date_bin(INTERVAL '10 seconds', date_time) AS start, max(price) AS most FROM bid GROUP BY 1) m
         ON b.start = m.start AND b.price = m.most",
    );
}

#[test]
fn q8_new_users() {
    check(
        "q8",
        "SELECT p.id, p.window.start AS start, a.auctions FROM (
           SELECT tumble(INTERVAL '10 seconds') AS window, id FROM person GROUP BY window, id) p
         JOIN (SELECT tumble(INTERVAL '10 seconds') AS window, seller, count(*) AS auctions FROM auction GROUP BY window, seller) a
         ON p.window = a.window AND p.id = a.seller",
        "SELECT p.id, p.start, a.auctions FROM (
           SELECT date_bin(INTERVAL '10 seconds', date_time) AS start, id FROM person GROUP BY 1, 2) p
         JOIN (SELECT date_bin(INTERVAL '10 seconds', date_time) AS start, seller, count(*) AS auctions FROM auction GROUP BY 1, 2) a
         ON p.start = a.start AND p.id = a.seller",
    );
}

#[test]
fn q11_user_sessions() {
    check(
        "q11",
        "SELECT bidder, bids, window.start AS start FROM (
           SELECT session(INTERVAL '2 seconds') AS window, bidder, count(*) AS bids FROM bid GROUP BY window, bidder)",
        "SELECT bidder, count(*) AS bids, min(date_time) AS start FROM (
           SELECT *, sum(begins) OVER (PARTITION BY bidder ORDER BY date_time ROWS UNBOUNDED PRECEDING) AS number FROM (
             SELECT bidder, date_time,
                    CASE WHEN date_time > lag(date_time) OVER (PARTITION BY bidder ORDER BY date_time) + INTERVAL '2 seconds' THEN 1 ELSE 0 END AS begins
             FROM bid))
         GROUP BY bidder, number",
    );
}

#[test]
fn q12_bids_of_a_window() {
    check(
        "q12",
        "SELECT bidder, bids, window.start AS start FROM (
           SELECT tumble(INTERVAL '10 seconds') AS window, bidder, count(*) AS bids FROM bid GROUP BY window, bidder)",
        "SELECT bidder, count(*) AS bids, date_bin(INTERVAL '10 seconds', date_time) AS start FROM bid GROUP BY bidder, start",
    );
}

#[test]
fn q18_last_bid() {
    check_same(
        "q18",
        "SELECT auction, bidder, price, date_time FROM (
           SELECT *, ROW_NUMBER() OVER (PARTITION BY bidder, auction ORDER BY date_time DESC) AS place FROM bid) WHERE place <= 1",
    );
}

#[test]
fn q19_top_bids() {
    check_same(
        "q19",
        "SELECT * FROM (
           SELECT *, ROW_NUMBER() OVER (PARTITION BY auction ORDER BY price DESC, date_time) AS place FROM bid) WHERE place <= 10",
    );
}

#[test]
fn q20_bids_with_their_auction() {
    check_same(
        "q20",
        "SELECT b.auction, b.bidder, b.price, b.date_time, a.seller, a.category FROM bid b JOIN auction a ON b.auction = a.id WHERE a.category = 10",
    );
}
