-- A join with a table that changes.
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
  driver_id BIGINT, fare DOUBLE
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'debezium_json',
  type = 'sink'
);
INSERT INTO output
SELECT c.driver_id, c.fare FROM cars c JOIN (SELECT driver_id, max(fare) AS most FROM cars GROUP BY driver_id) m
ON c.driver_id = m.driver_id AND c.fare = m.most;
