-- What becomes of a customer's orders in a session, which ends after half an hour without an order.
CREATE TABLE customer_sessions (
  started TIMESTAMP,
  ended TIMESTAMP,
  customer_id TEXT,
  placed BIGINT,
  valid BIGINT,
  accepted BIGINT,
  in_review BIGINT,
  out_of_stock BIGINT,
  amount BIGINT
) WITH (connector = 'stream', type = 'sink');

INSERT INTO customer_sessions
SELECT window.start, window.end, customer_id, placed, valid, accepted, in_review, out_of_stock, amount FROM (
  SELECT session(INTERVAL '30 minutes') AS window, customer_id, count(*) AS placed,
         count(*) FILTER (WHERE reason NOT IN ('invalid', 'duplicate', 'conflict')) AS valid,
         count(*) FILTER (WHERE decision = 'accepted') AS accepted, count(*) FILTER (WHERE decision = 'review') AS in_review,
         count(*) FILTER (WHERE reason = 'out_of_stock') AS out_of_stock,
         sum(amount) FILTER (WHERE decision <> 'rejected') AS amount
  FROM order_decisions
  GROUP BY window, customer_id
);
