-- Aggregates of one's own beside others: in windows that overlap, in sessions, in an updating table. sql/udfs/median_of.rs
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
CREATE TABLE hops (start TIMESTAMP, event_type TEXT, middle BIGINT, few BIGINT, rows BIGINT) WITH (
  connector = 'single_file', path = '$output_path', format = 'json', type = 'sink'
);
INSERT INTO hops
SELECT window.start, event_type, middle, few, rows FROM (
  SELECT hop(INTERVAL '10 minutes', INTERVAL '30 minutes') AS window, event_type, median_of(driver_id) AS middle,
         median_of(CAST(fare AS BIGINT)) FILTER (WHERE location = 'Oslo') AS few, count(*) AS rows
  FROM cars GROUP BY window, event_type);
SELECT location, median_of(driver_id) AS middle FROM cars GROUP BY session(INTERVAL '20 seconds'), location;
SELECT location, median_of(driver_id) AS middle FROM cars GROUP BY location;
