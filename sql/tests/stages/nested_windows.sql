-- An aggregate of a window's aggregates.
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
  start TIMESTAMP, most BIGINT, drivers BIGINT
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'json',
  type = 'sink'
);
INSERT INTO output
SELECT window.start, most, drivers FROM (
  SELECT window, max(rows) AS most, count(*) AS drivers FROM (
    SELECT hop(INTERVAL '15 minutes', INTERVAL '1 hour') AS window, driver_id, count(*) AS rows FROM cars GROUP BY 1, 2)
  GROUP BY window);
