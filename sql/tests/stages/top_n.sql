-- The most active drivers of each window.
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
  start TIMESTAMP, driver_id BIGINT, rows BIGINT, row_number BIGINT
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'json',
  type = 'sink'
);
INSERT INTO output
SELECT window.start, driver_id, rows, row_number FROM (
  SELECT *, ROW_NUMBER() OVER (PARTITION BY window ORDER BY rows DESC, driver_id DESC) AS row_number FROM (
    SELECT driver_id, hop(INTERVAL '20' minute, INTERVAL '1' hour) AS window, count(*) AS rows FROM cars GROUP BY 1, 2))
WHERE row_number <= 2;
