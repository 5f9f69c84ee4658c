-- Aggregates of every kind; those whose state is not exact are folded at each epoch, so this is of one cut.
--epoch-rows=40
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
  start TIMESTAMP, a BIGINT, b DOUBLE, c DOUBLE, d DOUBLE, e DOUBLE, f BOOLEAN, g BIGINT, h TEXT, i BIGINT, j DOUBLE, k TEXT[], l TEXT
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'json',
  type = 'sink'
);
INSERT INTO output
SELECT window.start, a, b, c, d, e, f, g, h, i, j, k, l FROM (
  SELECT tumble(INTERVAL '1 hour') AS window, sum(driver_id) AS a, avg(driver_id) AS b, stddev(driver_id) AS c, median(driver_id) AS d,
         var_pop(driver_id) AS e, bool_and(driver_id > 0) AS f, bit_xor(driver_id) AS g, first_value(event_type) AS h,
         count(*) FILTER (WHERE event_type = 'pickup') AS i, corr(driver_id, fare) AS j, array_agg(location) AS k,
         string_agg(event_type, '-') AS l
  FROM cars GROUP BY window);
