-- The ten SKUs of which most units were sold in an hour.
CREATE TABLE top_skus_per_hour (
  hour TIMESTAMP,
  place BIGINT,
  sku TEXT,
  units BIGINT,
  orders BIGINT
) WITH (connector = 'stream', type = 'sink');

INSERT INTO top_skus_per_hour
SELECT window.start, row_number, sku, units, orders FROM (
  SELECT *, ROW_NUMBER() OVER (PARTITION BY window ORDER BY units DESC, sku) AS row_number FROM (
    SELECT tumble(INTERVAL '1 hour') AS window, sku, sum(quantity) AS units, count(*) AS orders
    FROM order_lines
    GROUP BY window, sku
  )
) WHERE row_number <= 10;
