-- An aggregate of a table that changes.
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
  rows BIGINT, drivers BIGINT
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'debezium_json',
  type = 'sink'
);
INSERT INTO output
SELECT rows, count(*) FROM (SELECT driver_id, count(*) AS rows FROM cars GROUP BY driver_id) GROUP BY rows;
