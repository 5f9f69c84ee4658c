-- One table for each stream, with the columns that readers see, and the record of what was committed.
--
-- The job runs these files itself (sinks/src/clickhouse/schema.rs), in its own database, each once, in the order of their
-- numbers. A file that was cut short by a crash runs again as a whole, and several sinks may run it at the same time: every
-- statement must bear that (IF NOT EXISTS). A file that was ever released is not edited; a change is a new file. Statements end
-- with a semicolon at the end of a line.
--
-- Deduplication. Inserts carry a token, and a part whose token is known is dropped. The window is how many parts are
-- remembered: a commit makes a few at most, so that this is thousands of commits. Without Keeper it is 0 by default, and rows
-- are doubled silently; every table that rows reach, the targets of views too, must set it. `replicated_…` says the same to a
-- server that makes replicated tables of these (ClickHouse Cloud, a Replicated database); its seconds bound how long a job may
-- be down in the middle of a commit.
--
-- Partitions. Event times are the producers' words, and each may name another month: partitions by event time would let one bad producer
-- make hundreds of parts with each insert, until the server refuses them (TOO_MANY_PARTS). Sealing times and epoch numbers are
-- the job's own and only grow, so that an insert has rows of one or two partitions whatever it holds. A partition must also be a function
-- of the row: one by the time of insertion would put the replay of an insert into another partition, where its token is not known.
-- 100 million epochs are six days at the most of 200 a second, and a year at three.
--
-- A server does not fsync inserts by default. On a single one that may lose power, `ALTER TABLE … MODIFY SETTING fsync_after_insert = 1,
-- fsync_part_directory = 1` on all tables keeps what was committed.

-- What each job has begun and committed. A row replaces those of the same life and state with a lesser `through_epoch`, so that
-- the table has a few rows for each start of the job. A life is one start of the job's sink.
CREATE TABLE IF NOT EXISTS orderflow_commits
(
    job           String,
    stream        LowCardinality(String),
    life          UInt64,
    state         Enum8('recovered' = 1, 'begun' = 2, 'committed' = 3),
    from_epoch    UInt64,
    through_epoch UInt64,
    rows_max      UInt64 COMMENT 'most rows of an insert of this commit',
    bytes_max     UInt64 COMMENT 'most bytes of an insert of this commit',
    rows          UInt64 COMMENT 'rows of the commit',
    written_at    DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree(through_epoch)
ORDER BY (job, stream, life, state);

-- The columns of the fraud features, which follow `model`, depend on the configured windows: the job adds them.
CREATE TABLE IF NOT EXISTS order_decisions
(
    epoch            Int64 CODEC(Delta, ZSTD(1)),
    split            Int32 CODEC(ZSTD(1)),
    `offset`         Int64 CODEC(Delta, ZSTD(1)),
    order_id         String CODEC(ZSTD(1)),
    customer_id      String CODEC(ZSTD(1)),
    event_time       DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    currency         LowCardinality(String) CODEC(ZSTD(1)),
    total            Nullable(Int64) CODEC(ZSTD(1)),
    amount           Nullable(Int64) CODEC(ZSTD(1)),
    line_count       Int64 CODEC(ZSTD(1)),
    unit_count       Nullable(Int64) CODEC(ZSTD(1)),
    decision         LowCardinality(String) CODEC(ZSTD(1)),
    reason           LowCardinality(String) CODEC(ZSTD(1)),
    detail           Array(String) CODEC(ZSTD(1)),
    fraud_score      Nullable(Float64) CODEC(ZSTD(1)),
    model            LowCardinality(Nullable(String)) CODEC(ZSTD(1)),
    billing_country  LowCardinality(Nullable(String)) CODEC(ZSTD(1)),
    shipping_country LowCardinality(Nullable(String)) CODEC(ZSTD(1)),
    sealed_at        DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    INDEX order_id_bloom order_id TYPE bloom_filter(0.01) GRANULARITY 4,
    INDEX customer_id_bloom customer_id TYPE bloom_filter(0.01) GRANULARITY 4
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(sealed_at)
ORDER BY (event_time, order_id)
SETTINGS non_replicated_deduplication_window = 10000, replicated_deduplication_window = 10000,
    replicated_deduplication_window_seconds = 2592000;

CREATE TABLE IF NOT EXISTS order_lines
(
    epoch       Int64 CODEC(Delta, ZSTD(1)),
    split       Int32 CODEC(ZSTD(1)),
    `offset`    Int64 CODEC(Delta, ZSTD(1)),
    order_id    String CODEC(ZSTD(1)),
    customer_id String CODEC(ZSTD(1)),
    event_time  DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    sku         String CODEC(ZSTD(1)),
    quantity    Int64 CODEC(ZSTD(1)),
    unit_price  Int64 CODEC(ZSTD(1)),
    line_total  Int64 CODEC(ZSTD(1)),
    INDEX order_id_bloom order_id TYPE bloom_filter(0.01) GRANULARITY 4,
    INDEX sku_bloom sku TYPE bloom_filter(0.01) GRANULARITY 4
)
ENGINE = MergeTree
PARTITION BY intDiv(epoch, 100000000)
ORDER BY (event_time, order_id)
SETTINGS non_replicated_deduplication_window = 10000, replicated_deduplication_window = 10000,
    replicated_deduplication_window_seconds = 2592000;

CREATE TABLE IF NOT EXISTS reservation_events
(
    epoch      Int64 CODEC(Delta, ZSTD(1)),
    split      Nullable(Int32) CODEC(ZSTD(1)),
    `offset`   Nullable(Int64) CODEC(ZSTD(1)),
    order_id   String CODEC(ZSTD(1)),
    sku        Nullable(String) CODEC(ZSTD(1)),
    quantity   Nullable(Int64) CODEC(ZSTD(1)),
    kind       LowCardinality(String) CODEC(ZSTD(1)),
    event_time DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    on_hand    Nullable(Int64) CODEC(ZSTD(1)),
    reserved   Nullable(Int64) CODEC(ZSTD(1)),
    INDEX order_id_bloom order_id TYPE bloom_filter(0.01) GRANULARITY 4,
    INDEX sku_bloom sku TYPE bloom_filter(0.01) GRANULARITY 4
)
ENGINE = MergeTree
PARTITION BY intDiv(epoch, 100000000)
ORDER BY (event_time, order_id)
SETTINGS non_replicated_deduplication_window = 10000, replicated_deduplication_window = 10000,
    replicated_deduplication_window_seconds = 2592000;

CREATE TABLE IF NOT EXISTS stock_movements
(
    epoch       Int64 CODEC(Delta, ZSTD(1)),
    split       Int32 CODEC(ZSTD(1)),
    `offset`    Int64 CODEC(Delta, ZSTD(1)),
    movement_id String CODEC(ZSTD(1)),
    sku         String CODEC(ZSTD(1)),
    `type`      LowCardinality(String) CODEC(ZSTD(1)),
    quantity    Int64 CODEC(ZSTD(1)),
    event_time  DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    on_hand     Int64 CODEC(ZSTD(1)),
    reserved    Int64 CODEC(ZSTD(1)),
    INDEX movement_id_bloom movement_id TYPE bloom_filter(0.01) GRANULARITY 4
)
ENGINE = MergeTree
PARTITION BY intDiv(epoch, 100000000)
ORDER BY (sku, event_time)
SETTINGS non_replicated_deduplication_window = 10000, replicated_deduplication_window = 10000,
    replicated_deduplication_window_seconds = 2592000;

CREATE TABLE IF NOT EXISTS dead_letters
(
    epoch    Int64 CODEC(Delta, ZSTD(1)),
    split    Int32 CODEC(ZSTD(1)),
    `offset` Int64 CODEC(Delta, ZSTD(1)),
    topic    LowCardinality(String) CODEC(ZSTD(1)),
    raw      String CODEC(ZSTD(3)),
    error    String CODEC(ZSTD(1))
)
ENGINE = MergeTree
ORDER BY (epoch, split, `offset`)
SETTINGS non_replicated_deduplication_window = 10000, replicated_deduplication_window = 10000,
    replicated_deduplication_window_seconds = 2592000;
