--fail=did you mean `path`
CREATE TABLE t (a INT) WITH (connector = 'single_file', paht = 'x', format = 'json', type = 'source');
SELECT a FROM t;
