--fail=async function look_up_region() cannot stand here
CREATE TABLE cars (
  timestamp TIMESTAMP NOT NULL,
  driver_id BIGINT,
  region TEXT GENERATED ALWAYS AS (look_up_region(driver_id, 'Oslo')) STORED
) WITH (
  connector = 'single_file',
  path = '$input_dir/cars.json',
  format = 'json',
  type = 'source'
);
SELECT region FROM cars;
