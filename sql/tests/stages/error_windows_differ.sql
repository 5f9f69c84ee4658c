--fail=a join of tumble(1 min) with tumble(2 min)
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
SELECT a.n FROM (SELECT tumble(INTERVAL '1 minute') AS w, count(*) AS n FROM impulse GROUP BY 1) a JOIN (SELECT tumble(INTERVAL '2 minutes') AS w, count(*) AS n FROM impulse GROUP BY 1) b ON a.n = b.n;
