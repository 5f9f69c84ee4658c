-- A full join of windows.
CREATE TABLE cars (
  timestamp TIMESTAMP NOT NULL,
  driver_id BIGINT,
  event_type TEXT,
  location TEXT,
  fare DOUBLE,
  WATERMARK FOR timestamp AS timestamp - INTERVAL '30 seconds'
) WITH (
  connector = 'single_file',
  path = '$input_dir/cars.json',
  format = 'json',
  type = 'source'
);
CREATE TABLE output (
  start TIMESTAMP, driver_id BIGINT, other BIGINT, dropoffs BIGINT, pickups BIGINT
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'json',
  type = 'sink'
);
INSERT INTO output
SELECT coalesce(d.window.start, p.window.start), d.driver_id, p.driver_id, d.rows, p.rows FROM (
  SELECT tumble(INTERVAL '10 minutes') AS window, driver_id, count(*) AS rows FROM cars WHERE event_type = 'dropoff' GROUP BY 1, 2) d
FULL JOIN (
  SELECT tumble(INTERVAL '10 minutes') AS window, driver_id, count(*) AS rows FROM cars WHERE event_type = 'pickup' GROUP BY 1, 2) p
ON d.window = p.window AND d.driver_id = p.driver_id AND d.rows <= p.rows;
