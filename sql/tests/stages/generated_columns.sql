-- Columns computed as rows are read.
CREATE TABLE cars (
  timestamp TIMESTAMP NOT NULL, driver_id BIGINT, event_type TEXT,
  minute TIMESTAMP GENERATED ALWAYS AS (date_trunc('minute', timestamp)) STORED,
  watermark TIMESTAMP GENERATED ALWAYS AS (timestamp - INTERVAL '1 hour') STORED
) WITH (connector = 'single_file', path = '$input_dir/cars.json', format = 'json', type = 'source',
  event_time_field = 'minute', watermark_field = 'watermark');
CREATE TABLE output (
  start TIMESTAMP, minutes BIGINT
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'json',
  type = 'sink'
);
INSERT INTO output
SELECT window.start, minutes FROM (SELECT tumble(INTERVAL '1 hour') AS window, count(DISTINCT minute) AS minutes FROM cars GROUP BY window);
