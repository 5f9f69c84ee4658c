-- New users: persons who sell in the ten seconds in which they came.
SELECT p.id, p.name, p.window.start AS start, a.auctions FROM (
  SELECT tumble(INTERVAL '10 seconds') AS window, id, name FROM person GROUP BY window, id, name) p
JOIN (SELECT tumble(INTERVAL '10 seconds') AS window, seller, count(*) AS auctions FROM auction GROUP BY window, seller) a
ON p.window = a.window AND p.id = a.seller

-- over all rows at once:
SELECT p.id, p.name, p.start, a.auctions FROM (
  SELECT date_bin(INTERVAL '10 seconds', date_time) AS start, id, name FROM person GROUP BY 1, 2, 3) p
JOIN (SELECT date_bin(INTERVAL '10 seconds', date_time) AS start, seller, count(*) AS auctions FROM auction GROUP BY 1, 2) a
ON p.start = a.start AND p.id = a.seller
