-- The latest row of each driver.
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
  driver_id BIGINT, timestamp TIMESTAMP, location TEXT
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'debezium_json',
  type = 'sink'
);
INSERT INTO output
SELECT driver_id, timestamp, location FROM (
  SELECT *, ROW_NUMBER() OVER (PARTITION BY driver_id ORDER BY timestamp DESC, location) AS n FROM cars) WHERE n <= 2;
