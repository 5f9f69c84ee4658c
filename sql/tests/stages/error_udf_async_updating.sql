--fail=async function look_up_region() over rows that can be taken back is not supported
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
SELECT look_up_region(rows, location) FROM (SELECT location, count(*) AS rows FROM cars GROUP BY location);
