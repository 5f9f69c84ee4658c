-- Last bid: of each person for each auction.
SELECT auction, bidder, price, channel, date_time FROM (
  SELECT *, ROW_NUMBER() OVER (PARTITION BY bidder, auction ORDER BY date_time DESC) AS place FROM bid) WHERE place <= 1
