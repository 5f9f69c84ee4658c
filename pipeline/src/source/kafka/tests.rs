//! Against librdkafka's mock brokers in this process: they speak the protocol, but know no transactions.

use std::sync::mpsc::Receiver;
use std::time::Instant;

use expect_test::{Expect, expect};
use rdkafka::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};

use super::*;
use crate::source::{Message, Messages, write_topics};

const LONG: Duration = Duration::from_secs(60);

type Cluster = MockCluster<'static, DefaultProducerContext>;

fn cluster(inventory: i32, orders: i32) -> (Cluster, KafkaSettings) {
    let cluster = MockCluster::new(1).expect("a mock broker");
    for (topic, partitions) in [("inventory", inventory), ("orders", orders)] {
        cluster.create_topic(topic, partitions, 1).expect("a topic");
    }
    let settings = settings(&cluster.bootstrap_servers());
    (cluster, settings)
}

fn settings(brokers: &str) -> KafkaSettings {
    KafkaSettings {
        brokers: brokers.to_owned(),
        orders_topic: "orders".into(),
        inventory_topic: "inventory".into(),
        group_id: "job".into(),
        start_wait: LONG,
        properties: BTreeMap::new(),
    }
}

fn write(settings: &KafkaSettings, rows: &[(Topic, u32, &str)]) {
    let count = rows.len() as u64;
    let rows = rows.iter().map(|&(topic, partition, text)| (topic, partition, "key", text));
    let written = write_topics(rows, settings.clone(), 1, 1, LONG).expect("is written");
    assert_eq!(written.orders + written.inventory, count);
}

struct Opened {
    reader: SplitReader,
    wakes: Receiver<()>,
    next: i64,
}

fn open(source: &KafkaSource, split: u32, offset: i64) -> Opened {
    let (sender, wakes) = mpsc::channel();
    let reader = source.open(&source.splits()[split as usize], offset, Arc::new(move || _ = sender.send(()))).expect("opens");
    Opened { reader, wakes, next: offset }
}

impl Opened {
    fn wait(&self, done: impl Fn(&SplitReader) -> bool) {
        while !done(&self.reader) {
            self.wakes.recv_timeout(LONG).expect("a wake follows every change");
        }
    }

    /// The next messages, as text, once there are `count`.
    fn read(&mut self, count: u64) -> Vec<String> {
        self.wait(|reader| reader.error().is_some() || reader.available().rows >= count);
        let end = self.reader.cut(self.next, count, u64::MAX);
        let messages = self.reader.take(self.next, end).expect("what was cut is there");
        self.next = end;
        texts(&messages)
    }

    fn error(&self) -> String {
        self.wait(|reader| reader.error().is_some());
        self.reader.error().map(|error| error.to_string()).unwrap_or_default()
    }
}

fn texts(messages: &Messages) -> Vec<String> {
    let text = |(offset, message)| match message {
        Message::Whole(bytes) => format!("{offset}:{}", String::from_utf8_lossy(bytes)),
        Message::Oversized { start, bytes } => format!("{offset}:{} of {bytes}", String::from_utf8_lossy(start)),
    };
    messages.iter().map(text).collect()
}

/// Looks again and again, for what nobody is woken for.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LONG, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn partitions_are_read_from_where_they_are_opened() {
    let (_cluster, settings) = cluster(1, 2);
    let rows: Vec<(Topic, u32, String)> = (0..300)
        .map(|n| if n % 3 == 0 { (Topic::Inventory, 0, format!("i{n}")) } else { (Topic::Orders, n % 3 - 1, format!("o{n}")) })
        .collect();
    let written = write_topics(rows.iter().map(|(t, p, text)| (*t, *p, text, text)), settings.clone(), 2, 1, LONG).expect("is written");
    let bytes = rows.iter().map(|(_, _, text)| text.len() as u64).sum();
    assert_eq!(written, crate::source::Written { orders: 200, inventory: 100, bytes });

    let source = KafkaSource::connect(settings, SourceLimits::default()).expect("connects");
    assert!(!source.bounded());
    let names: Vec<_> = source.splits().iter().map(|split| (split.number, split.topic, split.name.as_str())).collect();
    assert_eq!(names, [(0, Topic::Inventory, "inventory/0"), (1, Topic::Orders, "orders/0"), (2, Topic::Orders, "orders/1")]);
    assert_eq!(source.start_offsets().expect("brokers answer"), [0, 0, 0]);

    for (split, topic, partition, from) in [(0, Topic::Inventory, 0, 0), (1, Topic::Orders, 0, 7), (2, Topic::Orders, 1, 100)] {
        let expected: Vec<String> = rows
            .iter()
            .filter(|(t, p, _)| (*t, *p) == (topic, partition))
            .enumerate()
            .skip(from)
            .map(|(offset, (_, _, text))| format!("{offset}:{text}"))
            .collect();
        let mut opened = open(&source, split, from as i64);
        assert_eq!(opened.read(expected.len() as u64), expected);
        eventually("nothing is left at the broker", || opened.reader.available().lag == Some(0));
        assert!(!opened.reader.available().ended);
    }
}

#[test]
fn what_a_message_is_does_not_matter() {
    let (_cluster, settings) = cluster(1, 1);
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", &settings.brokers).create().expect("a producer");
    producer.send(BaseRecord::<str, str>::to("orders").partition(0).key("tombstone")).map_err(|(error, _)| error).expect("is sent");
    for text in ["", "12345", "123456789"] {
        producer.send(BaseRecord::<str, str>::to("orders").partition(0).payload(text)).map_err(|(error, _)| error).expect("is sent");
    }
    producer.flush(LONG).expect("is written");
    let source = KafkaSource::connect(settings, SourceLimits { message_bytes_max: 5, ..SourceLimits::default() }).expect("connects");
    assert_eq!(open(&source, 1, 0).read(4), ["0:", "1:", "2:12345", "3:12345 of 9"]);
}

#[test]
fn a_full_buffer_loses_nothing() {
    let (_cluster, settings) = cluster(1, 1);
    let texts: Vec<String> = (0..3_000).map(|n| format!("message {n} {}", "x".repeat(n % 50))).collect();
    let rows: Vec<(Topic, u32, &str)> = texts.iter().map(|text| (Topic::Orders, 0, text.as_str())).collect();
    write(&settings, &rows);
    let limits = SourceLimits { buffer_bytes_max: 2_000, chunk_rows: 10, ..SourceLimits::default() };
    let source = KafkaSource::connect(settings, limits).expect("connects");
    let mut opened = open(&source, 1, 0);
    let mut read = Vec::new();
    while read.len() < texts.len() {
        assert!(opened.reader.available().bytes < 2_000 + 10 * 100);
        read.extend(opened.read(1));
        thread::yield_now();
    }
    let expected: Vec<String> = texts.iter().enumerate().map(|(offset, text)| format!("{offset}:{text}")).collect();
    assert_eq!(read, expected);
}

#[test]
fn a_reader_can_be_dropped_and_opened_again() {
    let (_cluster, settings) = cluster(1, 1);
    write(&settings, &[(Topic::Orders, 0, "a"), (Topic::Orders, 0, "b"), (Topic::Orders, 0, "c")]);
    let source = KafkaSource::connect(settings.clone(), SourceLimits::default()).expect("connects");
    let mut first = open(&source, 1, 0);
    let error = source.open(&source.splits()[1], 0, Arc::new(|| {})).map(|_| ()).expect_err("one reader at a time");
    assert_eq!(error.to_string(), "orders/0 is being read already");
    assert_eq!(first.read(2), ["0:a", "1:b"]);
    drop(first);
    eventually("the partition is given back", || !lock(&source.open).contains("orders/0"));
    let mut second = open(&source, 1, 1);
    assert_eq!(second.read(2), ["1:b", "2:c"]);
    write(&settings, &[(Topic::Orders, 0, "d")]);
    assert_eq!(second.read(1), ["3:d"]);
    drop(source);
    assert_eq!(second.error(), "orders/0 is no longer read: its source was closed");
}

#[test]
fn a_broker_that_comes_back_is_read_on() {
    let (cluster, settings) = cluster(1, 1);
    write(&settings, &[(Topic::Orders, 0, "before")]);
    let source = KafkaSource::connect(settings.clone(), SourceLimits::default()).expect("connects");
    let mut opened = open(&source, 1, 0);
    assert_eq!(opened.read(1), ["0:before"]);
    cluster.broker_down(-1).expect("goes down");
    eventually("the failure is seen", || source.consumer.context().last_reason().is_some());
    cluster.broker_up(-1).expect("comes up");
    write(&settings, &[(Topic::Orders, 0, "after")]);
    assert_eq!(opened.read(1), ["1:after"]);
    assert!(opened.reader.error().is_none());
}

#[test]
fn an_offset_that_is_gone_is_an_error() {
    let (_cluster, settings) = cluster(1, 1);
    // A mock broker keeps the last 5 MiB of a partition.
    let text = "x".repeat(500_000);
    let rows: Vec<(Topic, u32, &str)> = (0..20).map(|_| (Topic::Orders, 0, text.as_str())).collect();
    let uncompressed = KafkaSettings { properties: [("compression.codec".into(), "none".into())].into(), ..settings.clone() };
    write(&uncompressed, &rows);
    let source = KafkaSource::connect(settings, SourceLimits::default()).expect("connects");
    let first = source.start_offsets().expect("brokers answer")[1];
    assert!(first > 0, "the mock broker has dropped messages");
    assert_eq!(open(&source, 1, first).read(20 - first as u64).len() as i64, 20 - first);
    eventually("the partition is given back", || !lock(&source.open).contains("orders/0"));

    let check = |offset: i64, expected: Expect| {
        let opened = open(&source, 1, offset);
        expected.assert_eq(&opened.error().replace(&format!("only {first} to"), "only FIRST to"));
        drop(opened);
        eventually("the partition is given back", || !lock(&source.open).contains("orders/0"));
    };
    check(
        0,
        expect![
            "orders/0: the next message to read has offset 0, but the broker has only FIRST to 20 (exclusive): messages were deleted before they were read, or the topic was made anew. Raise the topic's retention (retention.ms, retention.bytes) beyond the longest time that the job may stand still; to go on without them, start anew under another job.id"
        ],
    );
    check(
        21,
        expect![
            "orders/0: the next message to read has offset 21, but the broker has only FIRST to 20 (exclusive): messages were deleted before they were read, or the topic was made anew. Raise the topic's retention (retention.ms, retention.bytes) beyond the longest time that the job may stand still; to go on without them, start anew under another job.id"
        ],
    );
    let error = source.open(&source.splits()[1], Place::OFFSET_MAX + 1, Arc::new(|| {})).map(|_| ()).expect_err("is too large");
    expect!["orders/0 has offset 281474976710656; the largest that can be told apart is 281474976710655"].assert_eq(&error.to_string());
}

#[test]
fn progress_is_committed_for_show() {
    let (_cluster, settings) = cluster(1, 1);
    write(&settings, &[(Topic::Orders, 0, "a"), (Topic::Orders, 0, "b")]);
    let source = KafkaSource::connect(settings, SourceLimits::default()).expect("connects");
    let mut opened = open(&source, 1, 0);
    opened.read(2);
    source.commit_progress(&[("orders/0", 2)]);
    eventually("the group's offset is 2", || {
        let mut list = TopicPartitionList::new();
        list.add_partition("orders", 0);
        let committed = source.consumer.committed_offsets(list, LONG).expect("the broker answers");
        committed.elements()[0].offset() == Offset::Offset(2)
    });
}

#[test]
fn wrong_settings_are_named() {
    let check = |name: &str, value: &str, expected: Expect| {
        let settings = KafkaSettings { properties: [(name.to_owned(), value.to_owned())].into(), ..settings("127.0.0.1:1") };
        let error = KafkaSource::connect(settings, SourceLimits::default()).map(|_| ()).expect_err("is wrong");
        expected.assert_eq(&error.to_string());
    };
    // The value may be a password.
    check("sasl.pasword", "hush", expect![[r#"source.kafka.properties: `sasl.pasword`: No such configuration property: "sasl.pasword""#]]);
    check(
        "security.protocol",
        "tls",
        expect![[r#"source.kafka.properties: `security.protocol`: Invalid value "tls" for configuration property "security.protocol""#]],
    );
    check(
        "fetch.wait.max.ms",
        "soon",
        expect![[r#"source.kafka.properties: `fetch.wait.max.ms`: Invalid value for configuration property "fetch.wait.max.ms""#]],
    );
    check(
        "auto.offset.reset",
        "earliest",
        expect![
            "source.kafka.properties: `auto.offset.reset` cannot be set here: the job alone chooses where to read, or it would lose or repeat messages"
        ],
    );
    check("group.id", "mine", expect!["source.kafka.properties: `group.id` cannot be set here: it is job.id"]);
    let same = KafkaSettings { orders_topic: "both".into(), inventory_topic: "both".into(), ..settings("127.0.0.1:1") };
    let error = KafkaSource::connect(same, SourceLimits::default()).map(|_| ()).expect_err("is wrong");
    expect!["source.orders_topic and source.inventory_topic are both `both`: orders and stock movements need a topic each"]
        .assert_eq(&error.to_string());

    let properties = [("security.protocol", "ssl"), ("ssl.ca.location", "no/such/ca.pem")].map(|(n, v)| (n.to_owned(), v.to_owned()));
    let tls = KafkaSettings { properties: properties.into(), ..settings("127.0.0.1:1") };
    let error = KafkaSource::connect(tls, SourceLimits::default()).map(|_| ()).expect_err("is wrong").to_string();
    assert!(error.starts_with("librdkafka refuses the settings under source.kafka: ssl.ca.location failed"), "{error}");
}

#[test]
fn what_is_missing_at_the_start_is_named() {
    let wait = Duration::from_millis(500);
    let connect = |settings| {
        KafkaSource::connect(KafkaSettings { start_wait: wait, ..settings }, SourceLimits::default())
            .map(|_| ())
            .expect_err("fails")
            .to_string()
    };
    let error = connect(settings("127.0.0.1:1"));
    assert!(error.starts_with("no broker of 127.0.0.1:1 answered within 0 s: ") && error.contains("Connection refused"), "{error}");

    let (cluster, with_topics) = cluster(1, 1);
    let error = connect(KafkaSettings { orders_topic: "elsewhere".into(), ..with_topics.clone() });
    expect!["topic `elsewhere` does not exist at BROKERS: create it, for example with `rpk topic create elsewhere --partitions 4 --brokers BROKERS` or `kafka-topics.sh --create --topic elsewhere --partitions 4 --bootstrap-server BROKERS`"].assert_eq(&error.replace(&cluster.bootstrap_servers(), "BROKERS"));

    let few = write_topics([(Topic::Orders, 2, "", "")], with_topics, 3, 1, LONG).expect_err("there is one partition");
    expect!["topic `orders` has 1 partitions, 3 are needed: add some, or write to fewer"].assert_eq(&few.to_string());

    // What speaks another protocol on the port.
    let plain =
        KafkaSettings { properties: [("security.protocol".to_owned(), "ssl".to_owned())].into(), ..settings(&cluster.bootstrap_servers()) };
    let error = connect(plain);
    assert!(error.contains("SSL handshake failed") || error.contains("ssl"), "{error}");
}

/// What mock brokers do not do: topics made on demand, transactions, deletion. `deploy/dev/kafka.sh start` starts a broker;
/// KAFKA_BROKERS names another.
#[test]
#[ignore = "needs a broker: deploy/dev/kafka.sh start"]
fn a_real_broker() {
    let brokers = std::env::var("KAFKA_BROKERS").unwrap_or_else(|_| "127.0.0.1:9092".to_owned());
    let run = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis();
    let settings = KafkaSettings {
        orders_topic: format!("test-orders-{run}"),
        inventory_topic: format!("test-inventory-{run}"),
        group_id: format!("test-{run}"),
        ..settings(&brokers)
    };
    let rows: Vec<(Topic, u32, String)> = (0..400_000).map(|n| (Topic::Orders, n % 2, format!("{n} {}", "x".repeat(350)))).collect();
    let start = Instant::now();
    let written =
        write_topics(rows.iter().map(|(t, p, text)| (*t, *p, &text[..5], text)), settings.clone(), 2, 1, LONG).expect("is written");
    assert_eq!((written.orders, written.inventory), (400_000, 0));
    println!("written in {:?}", start.elapsed());

    let source = KafkaSource::connect(settings.clone(), SourceLimits::default()).expect("connects");
    let start = Instant::now();
    for split in [1, 2] {
        let mut opened = open(&source, split, 0);
        let mut count = 0;
        while count < 200_000 {
            for text in opened.read(1_000) {
                assert!(text.starts_with(&format!("{count}:{} ", 2 * count + i64::from(split) - 1)), "{text}");
                count += 1;
            }
        }
        eventually("nothing is left at the broker", || opened.reader.available().lag == Some(0));
    }
    println!("read and compared in {:?}", start.elapsed());

    // Committed, aborted, committed: markers and aborted messages are gaps.
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", &brokers).set("transactional.id", format!("test-{run}")).create().expect("a producer");
    producer.init_transactions(LONG).expect("is let in");
    for (text, commit) in [("a", true), ("b", false), ("c", true)] {
        producer.begin_transaction().expect("begins");
        for _ in 0..2 {
            let record = BaseRecord::<str, str>::to(&settings.inventory_topic).partition(0).payload(text);
            producer.send(record).map_err(|(error, _)| error).expect("is sent");
        }
        producer.flush(LONG).expect("is written");
        if commit { producer.commit_transaction(LONG) } else { producer.abort_transaction(LONG) }.expect("ends");
    }
    let mut opened = open(&source, 0, 0);
    assert_eq!(opened.read(4), ["0:a", "1:a", "6:c", "7:c"]);
    eventually("the marker at the end is no lag", || opened.reader.available().lag == Some(0));
    drop(opened);
    eventually("the partition is given back", || !lock(&source.open).contains("inventory/0"));
    assert_eq!(open(&source, 0, 4).read(2), ["6:c", "7:c"], "from within a gap");
    source.commit_progress(&[("inventory/0", 8), ("orders/0", 200_000)]);
    eventually("the group's offset is 8", || {
        let mut list = TopicPartitionList::new();
        list.add_partition(&settings.inventory_topic, 0);
        let committed = source.consumer.committed_offsets(list, LONG).expect("the broker answers");
        committed.elements()[0].offset() == Offset::Offset(8)
    });
}
