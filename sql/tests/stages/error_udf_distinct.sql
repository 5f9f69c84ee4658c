--fail=median_of(DISTINCT …) is not supported
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
SELECT tumble(INTERVAL '1 hour') AS window, median_of(DISTINCT driver_id) FROM cars GROUP BY window;
