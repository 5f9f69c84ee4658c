-- How many of an hour's valid, first-seen orders were rejected or held up for fraud, by country.
CREATE TABLE fraud_rate_per_hour (
  hour TIMESTAMP,
  country TEXT,
  orders BIGINT,
  rejected BIGINT,
  in_review BIGINT,
  rate DOUBLE
) WITH (connector = 'stream', type = 'sink');

INSERT INTO fraud_rate_per_hour
SELECT window.start, country, orders, rejected, in_review, CAST(rejected AS DOUBLE) / orders FROM (
  SELECT tumble(INTERVAL '1 hour') AS window, coalesce(billing_country, '') AS country, count(*) AS orders,
         count(*) FILTER (WHERE reason = 'fraud') AS rejected, count(*) FILTER (WHERE decision = 'review') AS in_review
  FROM order_decisions
  WHERE fraud_score IS NOT NULL
  GROUP BY window, coalesce(billing_country, '')
);
