-- Rows of two queries.
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
  counter BIGINT UNSIGNED, what TEXT
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'json',
  type = 'sink'
);
INSERT INTO output
SELECT counter, 'even' FROM impulse WHERE counter % 2 = 0 UNION ALL SELECT counter + 1000, 'third' FROM impulse WHERE counter % 3 = 0;
