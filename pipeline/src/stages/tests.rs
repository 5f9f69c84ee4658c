//! Files of stages: what they add to a job, and what is wrong with those that cannot be.

use expect_test::{Expect, expect};

use super::*;

/// Writes stages and loads them; paths in errors are without the folder.
fn load(files: &[(&str, &str)], patterns: &[&str]) -> Result<Stages, String> {
    let folder = tempfile::tempdir().expect("a folder can be made");
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).expect("it can be written to");
    }
    let patterns: Vec<String> = patterns.iter().map(|pattern| folder.path().join(pattern).display().to_string()).collect();
    let prefix = format!("{}/", folder.path().display());
    Stages::load(&patterns, &WindowSet::default()).map_err(|error| error.to_string().replace(&prefix, ""))
}

fn check(files: &[(&str, &str)], expected: Expect) {
    let patterns: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
    expected.assert_eq(&match load(files, &patterns) {
        Ok(stages) => {
            let added = stages.streams[Stream::ALL.len()..].iter();
            let columns = |stream: &JobStream| {
                let schema = stream.stream.schema(&WindowSet::default());
                schema.fields().iter().map(|field| format!("{} {}", field.name(), field.data_type())).collect::<Vec<_>>().join(", ")
            };
            added.map(|stream| format!("{} to {:?}: {}\n", stream.stream, stream.target, columns(stream))).collect()
        }
        Err(error) => error,
    });
}

const BIG: &str = "CREATE TABLE big (order_id TEXT PRIMARY KEY, amount BIGINT) WITH (connector = 'stream', type = 'sink');
INSERT INTO big SELECT order_id, amount FROM order_decisions WHERE amount > 100000;";

#[test]
fn stages_of_a_job() {
    check(&[], expect![""]);
    check(&[("big.sql", BIG)], expect![[r#""#]]);
}

#[test]
fn a_stage_reads_what_one_before_it_writes() {
    let counted = "CREATE TABLE counted (orders BIGINT) WITH (connector = 'stream', type = 'sink', format = 'debezium_json');
INSERT INTO counted SELECT count(*) FROM big;";
    check(&[("big.sql", BIG), ("counted.sql", counted)], expect![[r#""#]]);
    check(&[("counted.sql", counted), ("big.sql", BIG)], expect![[r#""#]]);
}

#[test]
fn tables_of_one_sink() {
    let one = |with: &str| {
        format!("CREATE TABLE t (order_id TEXT) WITH ({with}, type = 'sink');\nINSERT INTO t SELECT order_id FROM order_decisions;")
    };
    for (with, expected) in [
        ("connector = 'kafka', topic = 'out.orders', bootstrap_servers = 'b:9092', format = 'json'", expect![[r#""#]]),
        ("connector = 'delta', path = 's3://bucket/tables/orders/'", expect![[r#""#]]),
        ("connector = 'clickhouse', table = 'orders'", expect![[r#""#]]),
        ("connector = 'stdout'", expect![[r#""#]]),
        ("connector = 'blackhole'", expect![[r#""#]]),
        ("connector = 'single_file', path = 'x.json', format = 'json'", expect![[r#""#]]),
    ] {
        check(&[("one.sql", &one(with))], expected);
    }
}

#[test]
fn what_is_wrong_is_said() {
    let sink = |columns: &str, query: &str| {
        format!("CREATE TABLE t ({columns}) WITH (connector = 'stream', type = 'sink');\nINSERT INTO t\n{query};")
    };
    check(&[("a b.sql", BIG)], expect![[r#""#]]);
    check(&[("typo.sql", &sink("id TEXT", "SELECT order_di FROM order_decisions"))], expect![[r#""#]]);
    check(&[("epoch.sql", &sink("epoch BIGINT", "SELECT epoch FROM order_decisions"))], expect![[r#""#]]);
    check(&[("twice.sql", BIG), ("again.sql", BIG)], expect![[r#""#]]);
    let own = BIG.replace("big", "order_lines");
    check(&[("own.sql", &own)], expect![[r#""#]]);
    let window = "CREATE TABLE t WITH (connector = 'stream', type = 'sink');
INSERT INTO t SELECT tumble(INTERVAL '1 minute') AS w, count(*) AS n FROM order_decisions GROUP BY w;";
    check(&[("window.sql", window)], expect![[r#""#]]);
    let file = "CREATE TABLE f (a TEXT) WITH (connector = 'single_file', path = 'f.json', format = 'json', type = 'source');
CREATE TABLE t (a TEXT) WITH (connector = 'stream', type = 'sink');
INSERT INTO t SELECT a FROM f;";
    check(&[("file.sql", file)], expect![[r#""#]]);
    check(&[("query.sql", "SELECT order_id FROM order_decisions")], expect![[r#""#]]);
}

#[test]
fn stars_take_files_by_name() {
    let big = |name: &str| BIG.replace("big", name);
    let (a, b, c) = (big("a"), big("b"), big("c"));
    let files = [("b.sql", b.as_str()), ("a.sql", &a), ("c.sqlx", &c), (".d.sql", "nonsense")];
    let names = |patterns: &[&str]| {
        let stages = load(&files, patterns).unwrap_or_else(|error| panic!("{error}"));
        stages.stages.iter().map(|stage| stage.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&["*.sql"]), ["a", "b"]);
    assert_eq!(names(&["b.sql", "*.sql"]), ["b", "a"]);
    assert_eq!(names(&["c*x"]), ["c"]);
    assert_eq!(load(&files, &["*.txt"]).map(|_| ()).unwrap_err().split(", ").last(), Some("and no file is named so"));
    assert!(matches("*a*b*", "xaxbx") && matches("*", "é") && !matches("a*b", "ab c") && matches("a*b", "ab"));
}

/// A stage's meaning is its text's and its plan's: neither path nor order of files.
#[test]
fn the_meaning_of_a_stage() {
    let meaning = |text: &str| load(&[("big.sql", text)], &["big.sql"]).unwrap_or_else(|error| panic!("{error}")).meaning();
    assert_eq!(meaning(BIG), meaning(BIG));
    assert_ne!(meaning(BIG), meaning(&BIG.replace("100000", "100001")));
    assert_eq!(meaning(BIG).keys().collect::<Vec<_>>(), ["stages.big"]);
}
