-- Orders of an hour that were paid in it, and more than five minutes after their stock was held.
CREATE TABLE late_payments (
  hour TIMESTAMP,
  order_id TEXT,
  held_at TIMESTAMP,
  paid_at TIMESTAMP,
  units BIGINT
) WITH (connector = 'stream', type = 'sink');

INSERT INTO late_payments
SELECT held.window.start, held.order_id, held_at, paid_at, units FROM (
  SELECT tumble(INTERVAL '1 hour') AS window, order_id, min(event_time) AS held_at, sum(quantity) AS units
  FROM reservation_events WHERE kind = 'held' GROUP BY window, order_id
) held JOIN (
  SELECT tumble(INTERVAL '1 hour') AS window, order_id, min(event_time) AS paid_at
  FROM reservation_events WHERE kind = 'confirmed' GROUP BY window, order_id
) paid ON held.window = paid.window AND held.order_id = paid.order_id
WHERE paid_at > held_at + INTERVAL '5 minutes';
