-- Hot items: the auction with most bids of the last ten seconds, every two seconds.
SELECT window.start AS start, auction, num FROM (
  SELECT *, ROW_NUMBER() OVER (PARTITION BY window ORDER BY num DESC, auction) AS place FROM (
    SELECT hop(INTERVAL '2 seconds', INTERVAL '10 seconds') AS window, auction, count(*) AS num FROM bid GROUP BY window, auction))
WHERE place = 1

-- over all rows at once:
SELECT start, auction, num FROM (
  SELECT *, row_number() OVER (PARTITION BY start ORDER BY num DESC, auction) AS place FROM (
    SELECT start, auction, count(*) AS num FROM (
      SELECT arrow_cast(date_bin(INTERVAL '2 seconds', date_time), 'Timestamp(Microsecond, None)') - to.back AS start, auction
      FROM bid CROSS JOIN (VALUES (INTERVAL '0 s'), (INTERVAL '2 s'), (INTERVAL '4 s'), (INTERVAL '6 s'), (INTERVAL '8 s')) AS to(back))
    GROUP BY start, auction))
WHERE place = 1
