--fail=line 13, column 8: there is no column totl
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
SELECT totl FROM impulse;
