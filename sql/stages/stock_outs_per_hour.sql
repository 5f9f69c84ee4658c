-- For each SKU, how many orders of an hour were rejected since it was short.
CREATE TABLE stock_outs_per_hour (
  hour TIMESTAMP,
  sku TEXT,
  orders BIGINT,
  customers BIGINT
) WITH (connector = 'stream', type = 'sink');

INSERT INTO stock_outs_per_hour
SELECT window.start, sku, orders, customers FROM (
  SELECT tumble(INTERVAL '1 hour') AS window, sku, count(*) AS orders, count(DISTINCT customer_id) AS customers
  FROM (SELECT unnest(detail) AS sku, customer_id FROM order_decisions WHERE reason = 'out_of_stock')
  GROUP BY window, sku
);
