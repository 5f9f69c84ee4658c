-- Winning bids: of each auction the highest in its time.
SELECT id, item_name, category, seller, bidder, price, bid_time FROM (
  SELECT a.id, a.item_name, a.category, a.seller, b.bidder, b.price, b.date_time AS bid_time,
         ROW_NUMBER() OVER (PARTITION BY a.id ORDER BY b.price DESC, b.date_time) AS place
  FROM auction a JOIN bid b ON a.id = b.auction WHERE b.date_time BETWEEN a.date_time AND a.expires)
WHERE place <= 1
