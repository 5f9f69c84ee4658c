-- Aggregates of each hour.
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
  start TIMESTAMP, "end" TIMESTAMP, event_type TEXT, rows BIGINT, drivers BIGINT, least DOUBLE, most DOUBLE
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'json',
  type = 'sink'
);
INSERT INTO output
SELECT window.start, window.end, event_type, rows, drivers, least, most FROM (
  SELECT tumble(INTERVAL '1 hour') AS window, event_type, count(*) AS rows, count(DISTINCT driver_id) AS drivers,
         min(fare) AS least, max(fare) AS most
  FROM cars GROUP BY window, event_type);
