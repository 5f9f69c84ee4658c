-- What reports read: totals that views keep up to date with each insert into `order_decisions`, and that a replayed insert does not count
-- twice, since the targets deduplicate too. Querying them takes milliseconds however many orders there are.
--
-- A view that fails would fail the insert. Event times can be any 64 bits of microseconds, far from what DateTime holds, so
-- times are cut to 1970 to 2106 before they are rounded; sums have 128 bits.

CREATE TABLE IF NOT EXISTS revenue_by_minute
(
    minute   DateTime('UTC') COMMENT 'of event time' CODEC(DoubleDelta, ZSTD(1)),
    currency LowCardinality(String),
    orders   UInt64,
    units    Int128,
    revenue  Int128 COMMENT 'in minor units of the currency'
)
ENGINE = SummingMergeTree
ORDER BY (minute, currency)
SETTINGS non_replicated_deduplication_window = 10000, replicated_deduplication_window = 10000,
    replicated_deduplication_window_seconds = 2592000;

CREATE MATERIALIZED VIEW IF NOT EXISTS revenue_by_minute_view TO revenue_by_minute AS
SELECT
    toStartOfMinute(toDateTime(toUInt32(
        greatest(0, least(4294967295, intDiv(toUnixTimestamp64Micro(event_time), 1000000)))), 'UTC')) AS minute,
    currency,
    count() AS orders,
    sum(toInt128(ifNull(unit_count, 0))) AS units,
    sum(toInt128(ifNull(total, 0))) AS revenue
FROM order_decisions
WHERE decision IN ('accepted', 'review')
GROUP BY minute, currency;

CREATE TABLE IF NOT EXISTS fraud_by_hour
(
    hour           DateTime('UTC') COMMENT 'of event time' CODEC(DoubleDelta, ZSTD(1)),
    country        LowCardinality(String) COMMENT 'of billing; empty where not given',
    orders         UInt64 COMMENT 'that were scored',
    review         UInt64,
    fraud          UInt64,
    fraud_amount   Int128 COMMENT 'of orders rejected as fraud, in minor units of the reference currency'
)
ENGINE = SummingMergeTree
ORDER BY (hour, country)
SETTINGS non_replicated_deduplication_window = 10000, replicated_deduplication_window = 10000,
    replicated_deduplication_window_seconds = 2592000;

CREATE MATERIALIZED VIEW IF NOT EXISTS fraud_by_hour_view TO fraud_by_hour AS
SELECT
    toStartOfHour(toDateTime(toUInt32(
        greatest(0, least(4294967295, intDiv(toUnixTimestamp64Micro(event_time), 1000000)))), 'UTC')) AS hour,
    ifNull(billing_country, '') AS country,
    count() AS orders,
    countIf(decision = 'review') AS review,
    countIf(reason = 'fraud') AS fraud,
    sumIf(toInt128(ifNull(amount, 0)), reason = 'fraud') AS fraud_amount
FROM order_decisions
WHERE fraud_score IS NOT NULL
GROUP BY hour, country;

CREATE TABLE IF NOT EXISTS stock_outs_by_hour
(
    hour   DateTime('UTC') COMMENT 'of event time' CODEC(DoubleDelta, ZSTD(1)),
    sku    String,
    orders UInt64 COMMENT 'refused because this SKU was short'
)
ENGINE = SummingMergeTree
ORDER BY (hour, sku)
SETTINGS non_replicated_deduplication_window = 10000, replicated_deduplication_window = 10000,
    replicated_deduplication_window_seconds = 2592000;

CREATE MATERIALIZED VIEW IF NOT EXISTS stock_outs_by_hour_view TO stock_outs_by_hour AS
SELECT
    toStartOfHour(toDateTime(toUInt32(
        greatest(0, least(4294967295, intDiv(toUnixTimestamp64Micro(event_time), 1000000)))), 'UTC')) AS hour,
    sku,
    count() AS orders
FROM order_decisions
ARRAY JOIN detail AS sku
WHERE reason = 'out_of_stock'
GROUP BY hour, sku;

CREATE TABLE IF NOT EXISTS decisions_by_minute
(
    minute   DateTime('UTC') COMMENT 'of event time' CODEC(DoubleDelta, ZSTD(1)),
    decision LowCardinality(String),
    reason   LowCardinality(String),
    orders   UInt64
)
ENGINE = SummingMergeTree
ORDER BY (minute, decision, reason)
SETTINGS non_replicated_deduplication_window = 10000, replicated_deduplication_window = 10000,
    replicated_deduplication_window_seconds = 2592000;

CREATE MATERIALIZED VIEW IF NOT EXISTS decisions_by_minute_view TO decisions_by_minute AS
SELECT
    toStartOfMinute(toDateTime(toUInt32(
        greatest(0, least(4294967295, intDiv(toUnixTimestamp64Micro(event_time), 1000000)))), 'UTC')) AS minute,
    decision,
    reason,
    count() AS orders
FROM order_decisions
GROUP BY minute, decision, reason;

-- The difference is taken in floating point: of two integers of 64 bits it need not fit one.
CREATE TABLE IF NOT EXISTS latency_by_minute
(
    minute         DateTime('UTC') COMMENT 'of sealing' CODEC(DoubleDelta, ZSTD(1)),
    orders         SimpleAggregateFunction(sum, UInt64),
    latency_ms     AggregateFunction(quantilesTDigest(0.5, 0.9, 0.99, 0.999), Float64) COMMENT 'from event time to sealing',
    latency_ms_max SimpleAggregateFunction(max, Float64)
)
ENGINE = AggregatingMergeTree
ORDER BY minute
SETTINGS non_replicated_deduplication_window = 10000, replicated_deduplication_window = 10000,
    replicated_deduplication_window_seconds = 2592000;

CREATE MATERIALIZED VIEW IF NOT EXISTS latency_by_minute_view TO latency_by_minute AS
SELECT
    toStartOfMinute(toDateTime(toUInt32(
        greatest(0, least(4294967295, intDiv(toUnixTimestamp64Micro(sealed_at), 1000000)))), 'UTC')) AS minute,
    count() AS orders,
    quantilesTDigestState(0.5, 0.9, 0.99, 0.999)(
        (toFloat64(toUnixTimestamp64Micro(sealed_at)) - toFloat64(toUnixTimestamp64Micro(event_time))) / 1000) AS latency_ms,
    max((toFloat64(toUnixTimestamp64Micro(sealed_at)) - toFloat64(toUnixTimestamp64Micro(event_time))) / 1000) AS latency_ms_max
FROM order_decisions
GROUP BY minute;
