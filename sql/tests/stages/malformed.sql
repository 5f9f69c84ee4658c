-- Messages that are none are left out, and counted.
--malformed=5
CREATE TABLE t (a BIGINT NOT NULL) WITH (connector = 'single_file', path = '$input_dir/broken.json', format = 'json', type = 'source');
CREATE TABLE output (
  a BIGINT
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'json',
  type = 'sink'
);
INSERT INTO output SELECT a FROM t;
