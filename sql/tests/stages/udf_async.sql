-- Asynchronous functions of one's own: several in a query, within each other, in a condition and in a key. sql/udfs/look_up_region.rs
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
CREATE TABLE output (driver_id BIGINT, region TEXT, twice TEXT) WITH (
  connector = 'single_file', path = '$output_path', format = 'json', type = 'sink'
);
INSERT INTO output
SELECT driver_id, upper(look_up_region(driver_id, location)) AS region, look_up_region(driver_id + 1, look_up_region(driver_id, location)) AS twice
FROM cars WHERE look_up_region(driver_id, event_type) <> 'pickup-1' AND fare > 10;
SELECT count(*) AS rows, region FROM (
  SELECT tumble(INTERVAL '1 hour') AS window, look_up_region(driver_id, location) AS region, event_type FROM cars
  GROUP BY window, region, event_type)
GROUP BY region;
SELECT tumble(INTERVAL '1 hour') AS window, max(look_up_region(driver_id, location)) AS last FROM cars GROUP BY window;
