-- Overlapping windows without a key.
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
  start TIMESTAMP, "end" TIMESTAMP, rows BIGINT, least BIGINT, most BIGINT
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'json',
  type = 'sink'
);
INSERT INTO output
SELECT window.start, window.end, rows, least, most FROM (
  SELECT hop(INTERVAL '2 second', INTERVAL '10 second') AS window, count(*) AS rows, min(counter) AS least, max(counter) AS most
  FROM impulse GROUP BY 1);
