-- Bids of a person in each ten seconds; Nexmark's windows here are of processing time, which a replay has not.
SELECT bidder, bids, window.start AS start FROM (
  SELECT tumble(INTERVAL '10 seconds') AS window, bidder, count(*) AS bids FROM bid GROUP BY window, bidder)

-- over all rows at once:
SELECT bidder, count(*) AS bids, date_bin(INTERVAL '10 seconds', date_time) AS start FROM bid GROUP BY bidder, start
