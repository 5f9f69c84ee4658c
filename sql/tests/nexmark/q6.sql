-- Average selling price of a seller's last ten auctions: of the winning bids, the ten that ended last.
SELECT seller, avg(price) AS average, count(*) AS auctions FROM (
  SELECT seller, price, ROW_NUMBER() OVER (PARTITION BY seller ORDER BY expires DESC, id) AS recent FROM (
    SELECT a.id, a.seller, a.expires, b.price, ROW_NUMBER() OVER (PARTITION BY a.id ORDER BY b.price DESC, b.date_time) AS place
    FROM auction a JOIN bid b ON a.id = b.auction WHERE b.date_time BETWEEN a.date_time AND a.expires)
  WHERE place <= 1)
WHERE recent <= 10 GROUP BY seller
