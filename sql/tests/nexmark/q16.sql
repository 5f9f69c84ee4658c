-- Channel statistics of a day.
SELECT channel, date_trunc('day', date_time) AS day, max(date_trunc('minute', date_time)) AS minute,
       count(*) AS bids,
       count(*) FILTER (WHERE price < 10000) AS bids_1,
       count(*) FILTER (WHERE price >= 10000 AND price < 1000000) AS bids_2,
       count(*) FILTER (WHERE price >= 1000000) AS bids_3,
       count(DISTINCT bidder) AS bidders,
       count(DISTINCT bidder) FILTER (WHERE price < 10000) AS bidders_1,
       count(DISTINCT bidder) FILTER (WHERE price >= 10000 AND price < 1000000) AS bidders_2,
       count(DISTINCT bidder) FILTER (WHERE price >= 1000000) AS bidders_3,
       count(DISTINCT auction) AS auctions,
       count(DISTINCT auction) FILTER (WHERE price < 10000) AS auctions_1,
       count(DISTINCT auction) FILTER (WHERE price >= 10000 AND price < 1000000) AS auctions_2,
       count(DISTINCT auction) FILTER (WHERE price >= 1000000) AS auctions_3
FROM bid GROUP BY 1, 2
