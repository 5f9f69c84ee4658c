-- Changes in, changes out.
CREATE TABLE orders (id INT PRIMARY KEY, product_name TEXT, quantity INTEGER, price DOUBLE) WITH (
  connector = 'single_file', path = '$input_dir/changes.json', format = 'debezium_json', type = 'source');
CREATE TABLE output (
  id TEXT PRIMARY KEY, c INT, q INT, most DOUBLE
) WITH (
  connector = 'single_file',
  path = '$output_path',
  format = 'debezium_json',
  type = 'sink'
);
INSERT INTO output
SELECT concat('p_', product_name), count(*), sum(quantity + 5) + 10, max(price) FROM orders GROUP BY concat('p_', product_name);
