--fail=line 2, column 8: expected
SELECT FROM WHERE;
