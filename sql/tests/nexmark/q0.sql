-- Pass through: what it costs to do nothing.
SELECT auction, bidder, price, date_time FROM bid
