--fail=table `output` has 1 columns, its query 2
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
  n BIGINT
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'json',
  type = 'sink'
);
INSERT INTO output SELECT counter, subtask_index FROM impulse;
