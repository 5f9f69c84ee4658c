-- A function of one's own, in an expression, a condition and a key. sql/udfs/price_band.rs
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
CREATE TABLE output (location TEXT, band TEXT, same TEXT) WITH (
  connector = 'single_file', path = '$output_path', format = 'json', type = 'sink'
);
INSERT INTO output
SELECT location, price_band(CAST(fare * 100 AS BIGINT), location), price_band(1, NULL) FROM cars
WHERE price_band(driver_id * 500, event_type) LIKE 'medium%';
