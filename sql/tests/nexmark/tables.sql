CREATE TABLE person (id BIGINT, name TEXT, city TEXT, state TEXT, date_time TIMESTAMP) WITH (
  connector = 'single_file', path = 'person.json', format = 'json', type = 'source', event_time_field = 'date_time');
CREATE TABLE auction (
  id BIGINT, item_name TEXT, initial_bid BIGINT, reserve BIGINT, date_time TIMESTAMP, expires TIMESTAMP, seller BIGINT, category BIGINT
) WITH (connector = 'single_file', path = 'auction.json', format = 'json', type = 'source', event_time_field = 'date_time');
CREATE TABLE bid (auction BIGINT, bidder BIGINT, price BIGINT, channel TEXT, url TEXT, date_time TIMESTAMP) WITH (
  connector = 'single_file', path = 'bid.json', format = 'json', type = 'source', event_time_field = 'date_time');
CREATE TEMPORARY TABLE side (key BIGINT PRIMARY KEY, value TEXT) WITH (
  connector = 'single_file', path = 'side.json', format = 'json', type = 'lookup');
