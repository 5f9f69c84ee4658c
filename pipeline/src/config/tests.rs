//! The commented file is the defaults, and every mistake has a message with its place.

use expect_test::{Expect, expect};

use super::load::{leaves, parse};
use super::*;

fn environment(name: &str) -> Option<String> {
    (name == "SECRET").then(|| "hush".to_owned())
}

fn read(text: &str, overrides: &[&str]) -> Result<Config, ConfigError> {
    let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
    parse("orderflow.toml", text, &overrides, &environment)
}

fn check(text: &str, overrides: &[&str], expected: Expect) {
    expected.assert_eq(&match read(text, overrides) {
        Ok(_) => "fine".to_owned(),
        Err(e) => e.to_string(),
    });
}

#[test]
fn the_commented_file_is_the_defaults() {
    assert_eq!(read(COMMENTED_DEFAULTS, &[]).expect("the file is right"), Config::default());
}

#[test]
fn the_commented_file_has_every_setting() {
    let keys = |table: &toml::Table| {
        let mut keys = Vec::new();
        leaves(table, "", &mut keys);
        keys
    };
    let written: toml::Table = COMMENTED_DEFAULTS.parse().expect("the file is TOML");
    let known = toml::Table::try_from(Config::default()).expect("settings are TOML");
    assert_eq!(keys(&written), keys(&known));
    // And every one of them has a comment above it, or above the group that it ends.
    let lines: Vec<&str> = COMMENTED_DEFAULTS.lines().collect();
    for (at, line) in lines.iter().enumerate().filter(|(_, line)| line.contains(" = ") && !line.starts_with('#')) {
        let group = lines[..at].iter().rev().take_while(|line| !line.is_empty());
        assert!(group.into_iter().any(|line| line.starts_with('#')), "no comment above `{line}`");
    }
}

#[test]
fn what_is_shown_reads_back() {
    let mut config = Config::default();
    config.validate.rules.push(RuleConfig { name: "no_bulk".into(), sql: "unit_count < 500".into() });
    config.source.kafka.properties.0.insert("security.protocol".into(), "ssl".into());
    assert_eq!(read(&config.to_toml(), &[]).expect("reads back"), config);
    config.sinks.clickhouse.password = Secret::new("hush");
    assert!(!config.to_toml().contains("hush"), "secrets are not shown");
}

#[test]
fn overrides_go_before_the_file() {
    let text = "[epoch]\nrows_max = 7\n[source.kafka.properties]\nsecurity.protocol = 'ssl'\nsasl.password = '${SECRET}'";
    let config = read(
        text,
        &[
            "epoch.rows_max=100",
            "watermark.delay=250 ms",
            "job.id=7",
            "fraud.windows=[\"1 min\", \"2 h\"]",
            "source.kafka.properties.queued.min.messages=5",
            "currencies.NOK=95000",
            "sinks.delta.enabled=false",
        ],
    )
    .expect("right");
    assert_eq!(config.epoch.rows_max, 100);
    assert_eq!(config.watermark.delay, Interval::millis(250));
    assert_eq!(config.job.id, "7");
    assert_eq!(config.fraud.windows, [Interval::minutes(1), Interval::hours(2)]);
    let properties: Vec<_> = config.source.kafka.properties.iter().collect();
    assert_eq!(properties, [("queued.min.messages", "5"), ("sasl.password", "hush"), ("security.protocol", "ssl")]);
    assert_eq!(config.currencies.0.get("NOK"), Some(&95_000));
    assert!(!config.sinks.delta.enabled);
}

#[test]
fn unknown_keys_name_the_nearest() {
    check(
        "[watermark]\ndealy = '5 s'\n\n[reservations]\nhold = '1 h'\n",
        &[],
        expect![[r#"
            orderflow.toml:2: unknown key `watermark.dealy`; did you mean `watermark.delay`?
            orderflow.toml:4: unknown key `reservations`; did you mean `reservation`?"#]],
    );
    check(
        "[epoch]\nhold = '1 h'\nzebra = 1\n",
        &[],
        expect![[r#"
        orderflow.toml:2: unknown key `epoch.hold`; did you mean `reservation.hold`?
        orderflow.toml:3: unknown key `epoch.zebra`; keys of this section are `bytes_max`, `in_flight`, `linger`, `rows_max`"#]],
    );
    check("", &["epoch.row_max=5"], expect!["--set epoch.row_max: unknown key `epoch.row_max`; did you mean `epoch.rows_max`?"]);
    check("epoch = 5\n", &[], expect!["orderflow.toml:1: `epoch` is a section, not a value; write [epoch] and its settings below"]);
    check(
        "[[validate.rules]]\nname = 'a'\nsqll = 'true'\n",
        &[],
        expect!["orderflow.toml:3: unknown field `sqll`, expected `name` or `sql`"],
    );
}

#[test]
fn wrong_values_say_what_to_do() {
    check(
        "[epoch]\n\nrows_max = 0\nin_flight = 4000\n",
        &[],
        expect![[r#"
        orderflow.toml:3: epoch.rows_max is 0; choose 1 to 1000000: an epoch is held in memory as a whole
        orderflow.toml:4: epoch.in_flight is 4000; choose 1 to 1024: that many epochs are held in memory"#]],
    );
    check(
        "[supervise]\nbackoff_min = '20 s'\n",
        &["supervise.backoff_max=1 min"],
        expect![
            "--set supervise.backoff_max: supervise.backoff_max is 1 min; choose 1 ms to 30 s: processes of a job wait a minute for each other, and must meet"
        ],
    );
    check(
        "[supervise]\nbackoff_min = '20 s'\n",
        &[],
        expect!["supervise.backoff_max is 15 s, and supervise.backoff_min is 20 s; choose one that is not shorter"],
    );
    check("[epoch]\nrows_max = 'many'\n", &[], expect![[r#"orderflow.toml:2: epoch.rows_max: invalid type: string "many", expected u64"#]]);
    check("[epoch]\nrows_max = -1\n", &[], expect!["orderflow.toml:2: epoch.rows_max: invalid value: integer `-1`, expected u64"]);
    check(
        "[watermark]\ndelay = '5 parsecs'\n",
        &[],
        expect![[
            r#"orderflow.toml:2: watermark.delay: `5 parsecs` is not an interval; write a number and a unit of us, ms, s, min, h or d, such as "250 ms" or "15 min""#
        ]],
    );
    check(
        "[epoch]\nbytes_max = '1.5 MiB'\n",
        &[],
        expect![[
            r#"orderflow.toml:2: epoch.bytes_max: `1.5 MiB` is not a size; write a whole number and a unit of B, KiB, MiB or GiB, such as "64 MiB""#
        ]],
    );
    check(
        "[fraud]\nwindows = ['1 h', '5 min', '7 us']\nreview = 0.95\n",
        &[],
        expect![[r#"
        orderflow.toml:2: fraud.windows is 7 us; choose 1 s to 8784 h: orders are counted for so long
        orderflow.toml:2: fraud.windows is 7 us, which does not divide by 20 into whole microseconds: a window has 20 panes
        orderflow.toml:2: fraud.windows does not rise; write each window once, the shortest first
        orderflow.toml:3: fraud.review is 0.95, above fraud.reject, 0.9; no order would be reviewed"#]],
    );
    check(
        "",
        &["currencies={}"],
        expect!["--set currencies: currencies is empty, so that every order would be invalid; write at least one, such as USD = 1000000"],
    );
    check(
        "[currencies]\neuro = 1\nUSD = 0\n",
        &[],
        expect![[r#"
        orderflow.toml:2: currencies.euro is not a currency code; write three letters A-Z, such as EUR
        orderflow.toml:3: currencies.USD is 0; choose 1 to 1000000000000: it is the value of one minor unit, in millionths of one of the reference currency"#]],
    );
    check(
        "",
        &["sinks.clickhouse.url=localhost:8123", "sinks.clickhouse.database=default"],
        expect![[r#"
        --set sinks.clickhouse.url: sinks.clickhouse.url has the scheme `localhost`; choose one of http, https
        --set sinks.clickhouse.database: sinks.clickhouse.database is `default`, which is shared and not always atomic; name a database for the job"#]],
    );
    check(
        "[sinks.kafka]\nbrokers = 'kafka'\ntopic_prefix = 'a b'\npartitions = 0\nstreams = ['orders']\n[sinks.kafka.properties]\nacks = 1\n",
        &[],
        expect![[r#"
            orderflow.toml:2: sinks.kafka.brokers has `kafka`; write host:port, separated by commas
            orderflow.toml:3: sinks.kafka.topic_prefix is `a b`; choose at most 200 of the characters A-Z a-z 0-9 _-.
            orderflow.toml:4: sinks.kafka.partitions is 0; choose 1 to 1000: each commit touches them all
            orderflow.toml:5: sinks.kafka.streams has `orders`; streams are order_decisions, order_lines, reservation_events, stock_movements, dead_letters
            orderflow.toml:6: sinks.kafka.properties has `acks`, which the sink sets itself, as exactly-once rests on it"#]],
    );
    check(
        "",
        &["sinks.kafka.topic_prefix=order_", "source.orders_topic=order_order_lines"],
        expect![
            "--set sinks.kafka.topic_prefix: sinks.kafka.topic_prefix is `order_`, which makes `order_order_lines`, a topic that the job reads; choose another"
        ],
    );
    check(
        "",
        &["sinks.delta.url=ftp://x", "sinks.delta.compression=zip"],
        expect![[r#"
        --set sinks.delta.url: sinks.delta.url has the scheme `ftp`; choose one of file, s3, s3a, gs, az, abfs, abfss, memory
        --set sinks.delta.compression: sinks.delta.compression is `zip`; choose none, snappy, zstd or zstd(1) to zstd(22)"#]],
    );
    check(
        "",
        &["replay.clock=sundial"],
        expect!["--set replay.clock: replay.clock: unknown variant `sundial`, expected `wall` or `fixed`"],
    );
    check(
        "",
        &["replay.start=tomorrow"],
        expect!["--set replay.start: replay.start is `tomorrow` (premature end of input); write a time such as 2026-01-05T10:00:00Z"],
    );
    check(
        "",
        &["source.kafka.brokers=redpanda", "source.inventory_topic=orders"],
        expect![[r#"
        --set source.kafka.brokers: source.kafka.brokers has `redpanda`; write host:port, separated by commas
        --set source.inventory_topic: source.inventory_topic is the topic of orders too; each has message types of its own, so name two topics"#]],
    );
    check(
        "[source.kafka.properties]\nbootstrap.servers = 'a:1'\n",
        &[],
        expect![
            "orderflow.toml:1: source.kafka.properties has `bootstrap.servers`, which the job sets itself, as exactly-once rests on it; use source.kafka.brokers"
        ],
    );
    check(
        "[epoch_log]\nhome = '/var/lib/log'\nbrokers = 'a:1'\nproperties.acks = '1'\nstorage.aws_region = 'x'\n",
        &[],
        expect![[r#"
            orderflow.toml:2: epoch_log.home is `/var/lib/log`; write kafka:<topic>, a URL such as s3://bucket/folder, or nothing for a file in job.data_dir
            orderflow.toml:3: epoch_log.brokers is of no use without a topic; set epoch_log.home to kafka:<topic>, or leave it out
            orderflow.toml:4: epoch_log.properties has `acks`, which the job sets itself, as exactly-once rests on it
            orderflow.toml:4: epoch_log.properties is of no use without a topic; set epoch_log.home to kafka:<topic>, or leave it out
            orderflow.toml:5: epoch_log.storage is of no use without a URL; set epoch_log.home to one such as s3://bucket/folder, or leave it out"#]],
    );
    check(
        "",
        &["epoch_log.home=kafka:a b", "epoch_log.brokers=redpanda"],
        expect![[r#"
        --set epoch_log.home: epoch_log.home is `a b`; choose 1 to 249 of the characters A-Z a-z 0-9 _-.
        --set epoch_log.brokers: epoch_log.brokers has `redpanda`; write host:port, separated by commas, or nothing for source.kafka.brokers"#]],
    );
    check(
        "",
        &["epoch_log.home=kafka:orders"],
        expect!["--set epoch_log.home: epoch_log.home is the input `orders`; name a topic that nothing else writes to"],
    );
    check(
        "",
        &["epoch_log.home=ftp://host/log"],
        expect!["--set epoch_log.home: epoch_log.home has the scheme `ftp`; choose one of file, s3, s3a, gs, az, abfs, abfss"],
    );
    check("", &["epoch_log.home=s3://bucket/log", "epoch_log.storage.aws_region=x"], expect!["fine"]);
    check("", &["epoch_log.home=kafka:epochs", "epoch_log.brokers=a:1,b:2", "epoch_log.properties.linger.ms=1"], expect!["fine"]);
    check(
        "[[validate.rules]]\nname = 'a b'\nsql = ' '\n",
        &[],
        expect![[r#"
        orderflow.toml:1: validate.rules is `a b`; choose 1 to 64 of the characters A-Z a-z 0-9 _
        orderflow.toml:1: validate.rules has no sql for `a b`; write a predicate that holds for good orders, such as line_count < 50"#]],
    );
    check(
        "",
        &["sinks.jsonl.streams=[\"orders\"]", "metrics.listen=9600", "log.level=noisy=5"],
        expect![[r#"
        --set sinks.jsonl.streams: sinks.jsonl.streams has `orders`; streams are order_decisions, order_lines, reservation_events, stock_movements, dead_letters
        --set metrics.listen: metrics.listen is `9600`; write an address and a port such as 127.0.0.1:9600, or nothing to have none"#]],
    );
}

#[test]
fn the_text_itself_is_wrong() {
    check("[epoch]\nrows_max = \n", &[], expect!["orderflow.toml:2: string values must be quoted, expected literal string"]);
    check("[epoch\n", &[], expect!["orderflow.toml:1: unclosed table, expected `]`"]);
    check("[job]\nid = 'a'\nid = 'b'\n", &[], expect!["orderflow.toml:3: duplicate key"]);
    check(
        "",
        &["=5", "epoch.rows_max.=5"],
        expect![[r#"
            --set : a part of the key is empty; write --set key=value, as --set epoch.rows_max=1000
            --set epoch.rows_max.: a part of the key is empty; write --set key=value, as --set epoch.rows_max=1000"#]],
    );
    check("", &["epoch.rows_max"], expect!["--set epoch.rows_max: there is no `=`; write --set key=value"]);
    check("", &["job.id.x=5"], expect!["--set job.id.x: job.id.x: invalid type: map, expected a string"]);
}

#[test]
fn environment_variables() {
    let config = read("[job]\nid = 'a-${SECRET}-${NONE:-b}'\n[log]\nlevel = '${NONE:-}info'\n", &[]).expect("right");
    assert_eq!((config.job.id.as_str(), config.log.level.as_str()), ("a-hush-b", "info"));
    let plain = read("[[validate.rules]]\nname = 'a'\nsql = \"customer_id <> '$${x}'\"\n", &[]).expect("right");
    assert_eq!(plain.validate.rules[0].sql, "customer_id <> '${x}'");
    check(
        "[job]\nid = '${NONE}'\n[log]\nlevel = '${SECRET'\n",
        &[],
        expect![[r#"
        orderflow.toml:2: environment variable `NONE` is not set; set it, or write `${NONE:-value}` to have a default
        orderflow.toml:4: `${SECRET` has no closing brace; write `$${` for a plain `${`"#]],
    );
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Some(Path::new("nowhere/orderflow.toml")), &[]).expect_err("there is none");
    assert_eq!(error.to_string(), "cannot read nowhere/orderflow.toml: No such file or directory (os error 2)");
}
