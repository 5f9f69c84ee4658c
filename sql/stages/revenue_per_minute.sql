-- Revenue per minute and currency, of orders that were not rejected. Amounts are minor units; `amount` is in the reference currency.
CREATE TABLE revenue_per_minute (
  minute TIMESTAMP,
  currency TEXT,
  orders BIGINT,
  units BIGINT,
  total BIGINT,
  amount BIGINT
) WITH (connector = 'stream', type = 'sink');

INSERT INTO revenue_per_minute
SELECT window.start, currency, orders, units, total, amount FROM (
  SELECT tumble(INTERVAL '1 minute') AS window, currency, count(*) AS orders, sum(unit_count) AS units, sum(total) AS total,
         sum(amount) AS amount
  FROM order_decisions
  WHERE decision <> 'rejected'
  GROUP BY window, currency
);
