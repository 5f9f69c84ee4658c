-- An aggregate of sessions.
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
  start TIMESTAMP, sessions BIGINT, most BIGINT
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'json',
  type = 'sink'
);
INSERT INTO output
SELECT window.start, sessions, most FROM (
  SELECT window, count(*) AS sessions, max(rows) AS most FROM (
    SELECT session(INTERVAL '2 minutes') AS window, driver_id, count(*) AS rows FROM cars GROUP BY 1, 2)
  GROUP BY window);
