--fail=tumble() may only stand in the SELECT and GROUP BY
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
SELECT counter FROM impulse WHERE tumble(INTERVAL '1 hour') IS NULL;
