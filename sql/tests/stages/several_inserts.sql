-- Views, common tables, several sinks; what they share is computed once.
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
CREATE TABLE hours (
  start TIMESTAMP, rows BIGINT
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'json',
  type = 'sink'
);
CREATE TABLE busy (
  start TIMESTAMP, rows BIGINT
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'json',
  type = 'sink'
);
CREATE VIEW hourly AS SELECT window.start AS start, rows FROM (
  SELECT tumble(INTERVAL '1 hour') AS window, count(*) AS rows FROM cars GROUP BY window);
INSERT INTO hours SELECT * FROM hourly;
INSERT INTO busy WITH counted AS (SELECT start, rows FROM hourly) SELECT start, rows FROM counted WHERE rows > 20;
