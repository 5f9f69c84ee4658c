-- What is there of each SKU, as of its last change. An updating table: each change takes the row before back.
SET updating_ttl = '3650 days';

CREATE TABLE live_stock (
  sku TEXT PRIMARY KEY,
  on_hand BIGINT,
  reserved BIGINT,
  available BIGINT,
  changes BIGINT
) WITH (connector = 'stream', type = 'sink');

INSERT INTO live_stock
SELECT sku, last_value(on_hand), last_value(reserved), last_value(on_hand) - last_value(reserved), count(*) FROM (
  SELECT sku, on_hand, reserved FROM stock_movements
  UNION ALL
  SELECT sku, on_hand, reserved FROM reservation_events WHERE sku IS NOT NULL
)
GROUP BY sku;
