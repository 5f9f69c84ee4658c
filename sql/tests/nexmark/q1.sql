-- Currency: each bid's price in euros.
SELECT auction, bidder, price * 908 / 1000 AS price, date_time FROM bid
