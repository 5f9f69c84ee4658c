--fail=line 2, column 13: expected an expression, found FROM
SELECT FROM WHERE;
