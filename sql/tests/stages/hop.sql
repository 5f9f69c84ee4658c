-- Overlapping windows.
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
  start TIMESTAMP, "end" TIMESTAMP, driver_id BIGINT, rows BIGINT, total BIGINT
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'json',
  type = 'sink'
);
INSERT INTO output
SELECT window.start, window.end, driver_id, rows, total FROM (
  SELECT hop(INTERVAL '10 minutes', INTERVAL '1 hour') AS window, driver_id, count(*) AS rows, sum(driver_id) AS total
  FROM cars GROUP BY window, driver_id);
