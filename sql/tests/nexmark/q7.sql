-- Highest bid: of each ten seconds.
SELECT b.window.start AS start, b.auction, b.bidder, b.price FROM (
  SELECT tumble(INTERVAL '10 seconds') AS window, auction, bidder, price FROM bid GROUP BY window, auction, bidder, price) b
JOIN (SELECT tumble(INTERVAL '10 seconds') AS window, max(price) AS most FROM bid GROUP BY window) m
ON b.window = m.window AND b.price = m.most

-- over all rows at once:
SELECT DISTINCT b.start, b.auction, b.bidder, b.price FROM (
  SELECT date_bin(INTERVAL '10 seconds', date_time) AS start, auction, bidder, price FROM bid) b
JOIN (SELECT date_bin(INTERVAL '10 seconds', date_time) AS start, max(price) AS most FROM bid GROUP BY 1) m
ON b.start = m.start AND b.price = m.most
