--fail=is not a multiple of the slide
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
SELECT hop(INTERVAL '7 seconds', INTERVAL '10 seconds') AS w, count(*) FROM impulse GROUP BY w;
