-- Auction statistics of a day.
SELECT auction, date_trunc('day', date_time) AS day, count(*) AS bids,
       count(*) FILTER (WHERE price < 10000) AS bids_1,
       count(*) FILTER (WHERE price >= 10000 AND price < 1000000) AS bids_2,
       count(*) FILTER (WHERE price >= 1000000) AS bids_3,
       min(price) AS least, max(price) AS most, avg(price) AS average, sum(price) AS total
FROM bid GROUP BY 1, 2
