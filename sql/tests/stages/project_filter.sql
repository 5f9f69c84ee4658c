-- Expressions and conditions, quoted names, comments.
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
  "When" TIMESTAMP, who TEXT, cents BIGINT
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'json',
  type = 'sink'
);
INSERT INTO output
SELECT timestamp, concat('driver ', driver_id), CAST(round(fare * 100) AS BIGINT) -- in cents
FROM cars /* all of them */ WHERE event_type = 'pickup' AND fare IS NOT NULL;
