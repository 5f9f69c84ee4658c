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
    check(
        &[("big.sql", BIG)],
        expect![[r#"
        big to All: epoch Int64, order_id Utf8, amount Int64
        stage_rejects to All: epoch Int64, stage Utf8, split Int32, offset Int64, kind Utf8, event_time Timestamp(µs, "UTC"), detail Utf8, row Utf8
    "#]],
    );
}

#[test]
fn a_stage_reads_what_one_before_it_writes() {
    let counted = "CREATE TABLE counted (orders BIGINT) WITH (connector = 'stream', type = 'sink', format = 'debezium_json');
INSERT INTO counted SELECT count(*) FROM big;";
    check(
        &[("big.sql", BIG), ("counted.sql", counted)],
        expect![[r#"
        big to All: epoch Int64, order_id Utf8, amount Int64
        counted to All: epoch Int64, is_retract Boolean, orders Int64
        stage_rejects to All: epoch Int64, stage Utf8, split Int32, offset Int64, kind Utf8, event_time Timestamp(µs, "UTC"), detail Utf8, row Utf8
    "#]],
    );
    check(
        &[("counted.sql", counted), ("big.sql", BIG)],
        expect![[r#"
        counted.sql: line 2, column 42: there is no table `big`
        2 | INSERT INTO counted SELECT count(*) FROM big;
          |                                          ^
        help: there are: dead_letters, order_decisions, order_lines, reservation_events, stock_movements
        note: a stage reads streams of stages before it; big.sql and what follows it are behind this one"#]],
    );
}

#[test]
fn tables_of_one_sink() {
    let one = |with: &str| {
        format!("CREATE TABLE t (order_id TEXT) WITH ({with}, type = 'sink');\nINSERT INTO t SELECT order_id FROM order_decisions;")
    };
    for (with, expected) in [
        (
            "connector = 'kafka', topic = 'out.orders', bootstrap_servers = 'b:9092', format = 'json'",
            expect![[r#"
            out.orders to Only(Kafka, Some("b:9092")): epoch Int64, order_id Utf8
            stage_rejects to All: epoch Int64, stage Utf8, split Int32, offset Int64, kind Utf8, event_time Timestamp(µs, "UTC"), detail Utf8, row Utf8
        "#]],
        ),
        (
            "connector = 'delta', path = 's3://bucket/tables/orders/'",
            expect![[r#"
            orders to Only(Delta, Some("s3://bucket/tables")): epoch Int64, order_id Utf8
            stage_rejects to All: epoch Int64, stage Utf8, split Int32, offset Int64, kind Utf8, event_time Timestamp(µs, "UTC"), detail Utf8, row Utf8
        "#]],
        ),
        (
            "connector = 'clickhouse', table = 'orders'",
            expect![[r#"
            orders to Only(ClickHouse, None): epoch Int64, order_id Utf8
            stage_rejects to All: epoch Int64, stage Utf8, split Int32, offset Int64, kind Utf8, event_time Timestamp(µs, "UTC"), detail Utf8, row Utf8
        "#]],
        ),
        (
            "connector = 'stdout'",
            expect![[r#"
            t to Stdout: epoch Int64, order_id Utf8
            stage_rejects to All: epoch Int64, stage Utf8, split Int32, offset Int64, kind Utf8, event_time Timestamp(µs, "UTC"), detail Utf8, row Utf8
        "#]],
        ),
        (
            "connector = 'blackhole'",
            expect![[r#"
            t to Nothing: epoch Int64, order_id Utf8
            stage_rejects to All: epoch Int64, stage Utf8, split Int32, offset Int64, kind Utf8, event_time Timestamp(µs, "UTC"), detail Utf8, row Utf8
        "#]],
        ),
        (
            "connector = 'single_file', path = 'x.json', format = 'json'",
            expect![
                "one.sql: table `t`: a stage in a job does not write connector 'single_file': take 'stream' and turn on sinks.jsonl for files, or run the stage by itself with `orderflow sql run`"
            ],
        ),
    ] {
        check(&[("one.sql", &one(with))], expected);
    }
}

#[test]
fn what_is_wrong_is_said() {
    let sink = |columns: &str, query: &str| {
        format!("CREATE TABLE t ({columns}) WITH (connector = 'stream', type = 'sink');\nINSERT INTO t\n{query};")
    };
    check(&[("a b.sql", BIG)], expect!["a b.sql: a stage's file is named with 1 to 100 of the characters A-Z a-z 0-9 _-"]);
    check(
        &[("typo.sql", &sink("id TEXT", "SELECT order_di FROM order_decisions"))],
        expect![[r#"
        typo.sql: line 3, column 8: there is no column order_di. Did you mean 'order_decisions.order_id'?
        Valid fields are order_decisions.epoch, order_decisions.split, order_decisions.offset, order_decisions.order_id, order_decisions.customer_id, order_decisions.event_time, order_decisions.currency, order_decisions.total, order_decisions.amount, order_decisions.line_count, order_decisions.unit_count, order_decisions.decision, order_decisions.reason, order_decisions.detail, order_decisions.fraud_score, order_decisions.model, order_decisions.customer_orders_5m, order_decisions.customer_orders_1h, order_decisions.customer_orders_24h, order_decisions.customer_amount_5m, order_decisions.customer_amount_1h, order_decisions.customer_amount_24h, order_decisions.card_orders_5m, order_decisions.card_orders_1h, order_decisions.card_orders_24h, order_decisions.card_amount_5m, order_decisions.card_amount_1h, order_decisions.card_amount_24h, order_decisions.device_orders_5m, order_decisions.device_orders_1h, order_decisions.device_orders_24h, order_decisions.device_amount_5m, order_decisions.device_amount_1h, order_decisions.device_amount_24h, order_decisions.ip_orders_5m, order_decisions.ip_orders_1h, order_decisions.ip_orders_24h, order_decisions.ip_amount_5m, order_decisions.ip_amount_1h, order_decisions.ip_amount_24h, order_decisions.device_cards_24h, order_decisions.card_customers_24h, order_decisions.ip_customers_24h, order_decisions.customer_devices_24h, order_decisions.country_mismatch, order_decisions.billing_country, order_decisions.shipping_country, order_decisions.sealed_at
        3 | SELECT order_di FROM order_decisions;
          |        ^"#]],
    );
    check(
        &[("epoch.sql", &sink("epoch BIGINT", "SELECT epoch FROM order_decisions"))],
        expect!["epoch.sql: table `t`: every stream has `epoch` already: leave it out, or give it another name with AS"],
    );
    check(
        &[("twice.sql", BIG), ("again.sql", BIG)],
        expect!["again.sql: table `big` writes to `big`, which is written already: take another name"],
    );
    let own = BIG.replace("big", "order_lines");
    check(
        &[("own.sql", &own)],
        expect!["own.sql: table `order_lines` writes to `order_lines`, which is written already: take another name"],
    );
    let window = "CREATE TABLE t WITH (connector = 'stream', type = 'sink');
INSERT INTO t SELECT tumble(INTERVAL '1 minute') AS w, count(*) AS n FROM order_decisions GROUP BY w;";
    check(
        &[("window.sql", window)],
        expect![[
            r#"window.sql: table `t`: column `w` has type Struct("start": non-null Timestamp(µs), "end": non-null Timestamp(µs)), which not every sink has: CAST it to BIGINT, INT, DOUBLE, FLOAT, BOOLEAN, TEXT, TIMESTAMP, DATE or BYTEA, or take a part of it, as `window.start`"#
        ]],
    );
    let file = "CREATE TABLE f (a TEXT) WITH (connector = 'single_file', path = 'f.json', format = 'json', type = 'source');
CREATE TABLE t (a TEXT) WITH (connector = 'stream', type = 'sink');
INSERT INTO t SELECT a FROM f;";
    check(
        &[("file.sql", file)],
        expect![
            "file.sql: table `f` reads connector 'single_file', and a stage in a job reads the job's streams: name one of them (order_decisions, order_lines, reservation_events, stock_movements, dead_letters), or run the stage by itself with `orderflow sql run`"
        ],
    );
    check(
        &[("query.sql", "SELECT order_id FROM order_decisions")],
        expect!["query.sql: a query in a job's stage writes to a table: INSERT INTO one of connector 'stream'"],
    );
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
    assert_eq!(meaning(BIG).keys().collect::<Vec<_>>(), ["big"]);
}
