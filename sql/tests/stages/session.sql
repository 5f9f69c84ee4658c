-- Windows as long as there is something.
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
  start TIMESTAMP, "end" TIMESTAMP, driver_id BIGINT, rows BIGINT, places TEXT
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'json',
  type = 'sink'
);
INSERT INTO output
SELECT window.start, window.end, driver_id, rows, places FROM (
  SELECT session(INTERVAL '4 minutes') AS window, driver_id, count(*) AS rows, max(location) AS places
  FROM cars GROUP BY window, driver_id);
