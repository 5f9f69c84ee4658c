-- User sessions: bids of a person without a pause of two seconds.
SELECT bidder, bids, window.start AS start FROM (
  SELECT session(INTERVAL '2 seconds') AS window, bidder, count(*) AS bids FROM bid GROUP BY window, bidder)

-- over all rows at once:
SELECT bidder, count(*) AS bids, min(date_time) AS start FROM (
  SELECT *, sum(begins) OVER (PARTITION BY bidder ORDER BY date_time ROWS UNBOUNDED PRECEDING) AS number FROM (
    SELECT bidder, date_time,
           CASE WHEN date_time > lag(date_time) OVER (PARTITION BY bidder ORDER BY date_time) + INTERVAL '2 seconds' THEN 1 ELSE 0 END AS begins
    FROM bid))
GROUP BY bidder, number
