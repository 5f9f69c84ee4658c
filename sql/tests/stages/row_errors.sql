-- A row for which an expression has no value is left out, and counted.
--errors=1
CREATE TABLE impulse (
  timestamp TIMESTAMP,
  counter BIGINT UNSIGNED NOT NULL,
  subtask_index BIGINT UNSIGNED NOT NULL
) WITH (
  connector = 'single_file',
  path = '$input_dir/impulse.json',
  format = 'json',
  type = 'source',
  event_time_field = 'timestamp'
);
CREATE TABLE output (
  counter BIGINT
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'json',
  type = 'sink'
);
INSERT INTO output SELECT 100 / (counter - 7) FROM impulse WHERE counter < 10;
