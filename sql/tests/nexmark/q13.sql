-- Side input: what a table that does not change says of each bid.
SELECT b.auction, b.bidder, b.price, b.date_time, s.value FROM bid b JOIN side s ON b.auction % 100 = s.key
