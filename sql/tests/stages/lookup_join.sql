-- A table that does not change.
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
CREATE TEMPORARY TABLE cities (city TEXT PRIMARY KEY, country TEXT) WITH (
  connector = 'single_file', path = '$input_dir/cities.json', format = 'json');
CREATE TABLE output (
  driver_id BIGINT, location TEXT, country TEXT
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'json',
  type = 'sink'
);
INSERT INTO output
SELECT c.driver_id, c.location, l.country FROM cars c LEFT JOIN cities l ON c.location = l.city WHERE c.event_type = 'pickup';
