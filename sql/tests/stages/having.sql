-- Conditions on aggregates.
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
  start TIMESTAMP, driver_id BIGINT, rows BIGINT
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'json',
  type = 'sink'
);
INSERT INTO output
SELECT window.start, driver_id, rows FROM (
  SELECT tumble(INTERVAL '30 minutes') AS window, driver_id, count(*) AS rows FROM cars GROUP BY window, driver_id HAVING count(*) > 3);
