-- Calculation: conditions and functions of a row.
SELECT auction, bidder, price * 908 / 1000 AS price,
       CASE WHEN date_part('second', date_time) BETWEEN 8 AND 18 THEN 'dayTime'
            WHEN date_part('second', date_time) <= 6 OR date_part('second', date_time) >= 50 THEN 'nightTime' ELSE 'otherTime' END AS bid_time,
       date_time, length(url) - length(replace(url, 'c', '')) AS c_counts
FROM bid WHERE price * 908 / 1000 > 100000 AND price * 908 / 1000 < 50000000
