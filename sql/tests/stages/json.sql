-- JSON that no columns were declared for.
CREATE TABLE cars (value JSON) WITH (
  connector = 'single_file', path = '$input_dir/cars.json', format = 'json', type = 'source', 'json.unstructured' = 'true');
CREATE TABLE output (
  who BIGINT, what TEXT, nothing TEXT, location TEXT, has BOOLEAN, fare DOUBLE
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'json',
  type = 'sink'
);
INSERT INTO output
SELECT json_get_int(value, 'driver_id'), value->>'event_type', value->'not_a_field', extract_json_string(value, '$.location'),
       value ? 'fare', json_get_float(value, 'fare')
FROM cars;
