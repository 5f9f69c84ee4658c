-- A right join of all so far.
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
  l BIGINT, r BIGINT
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'debezium_json',
  type = 'sink'
);
INSERT INTO output
SELECT a.counter, b.counter FROM (SELECT counter FROM impulse WHERE counter % 2 = 0) a
RIGHT JOIN (SELECT counter * 3 AS counter FROM impulse WHERE counter % 2 = 0) b ON a.counter = b.counter;
