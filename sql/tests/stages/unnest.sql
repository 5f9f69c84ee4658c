-- Lists spread out.
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
  counter BIGINT UNSIGNED NOT NULL,
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'json',
  type = 'sink'
);
CREATE VIEW unnested AS
SELECT unnest(counters) AS counter FROM (
  SELECT array_agg(counter) AS counters, tumble(INTERVAL '1 day') FROM impulse GROUP BY tumble(INTERVAL '1 day'));
INSERT INTO output SELECT counter FROM unnested;
