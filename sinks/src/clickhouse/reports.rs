//! What people ask of the results: small tables for the terminal, read from the reporting views.

use super::ClickHouseSettings;
use super::connection::Connection;
use super::schema::identifier;
use crate::SinkError;

/// A question that the reporting views answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// Orders, units and revenue of accepted and review orders, for each minute of event time and currency, newest first.
    RevenuePerMinute,
    /// Scored orders and how many of them were fraud, for each hour of event time and billing country, newest first.
    FraudPerHour,
    /// The SKUs for which most orders were refused.
    StockOuts,
    /// How orders were decided, for each minute of event time, newest first.
    Acceptance,
    /// Quantiles of the time from an order's event time to its epoch's sealing, for each minute of sealing, newest first.
    Latency,
}

/// A report's answer, ready to print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportTable {
    /// For people.
    pub title: &'static str,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// As many texts in each row as there are columns. Times are UTC, amounts in minor units.
    pub rows: Vec<Vec<String>>,
}

impl Report {
    /// All of them, in the order in which people read them.
    pub const ALL: [Report; 5] = [Report::RevenuePerMinute, Report::FraudPerHour, Report::StockOuts, Report::Acceptance, Report::Latency];

    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Report::RevenuePerMinute => "Revenue per minute and currency, in minor units",
            Report::FraudPerHour => "Fraud per hour and billing country",
            Report::StockOuts => "SKUs that ran out",
            Report::Acceptance => "Decisions per minute",
            Report::Latency => "Milliseconds from event time to sealing, per minute",
        }
    }

    /// For command lines.
    pub fn name(self) -> &'static str {
        match self {
            Report::RevenuePerMinute => "revenue",
            Report::FraudPerHour => "fraud",
            Report::StockOuts => "stock-outs",
            Report::Acceptance => "acceptance",
            Report::Latency => "latency",
        }
    }

    /// The query, with `limit` rows at most. It can be run anywhere, by other programs too.
    pub fn sql(self, database: &str, limit: u64) -> String {
        let database = format!("`{}`", database.replace('\\', "\\\\").replace('`', "\\`"));
        self.query(&database, limit)
    }

    /// Runs the query.
    ///
    /// # Errors
    /// [`SinkError`]: the server is away, or refuses; without tables if the job has never written there.
    pub async fn run(self, settings: &ClickHouseSettings, limit: u64) -> Result<ReportTable, SinkError> {
        let connection = Connection::new(settings);
        let query = connection.query_server(&self.query(&identifier(&settings.database), limit));
        let (columns, rows) = connection.table(&format!("report {}", self.name()), query).await?;
        Ok(ReportTable { title: self.title(), columns, rows })
    }

    /// Totals stand in as many rows as parts were not merged yet, hence the sums. An inner query keeps the names of
    /// sums apart from those of the columns that they sum.
    fn query(self, database: &str, limit: u64) -> String {
        match self {
            Report::RevenuePerMinute => format!(
                "SELECT minute, currency, sum(orders) AS orders, sum(units) AS units, sum(revenue) AS revenue \
                 FROM {database}.revenue_by_minute GROUP BY minute, currency ORDER BY minute DESC, currency LIMIT {limit}"
            ),
            Report::FraudPerHour => format!(
                "SELECT hour, if(billing = '', '-', billing) AS country, scored AS orders, to_review AS review, frauds AS fraud, \
                 round(100 * frauds / scored, 2) AS fraud_percent, stopped AS fraud_amount FROM \
                 (SELECT hour, country AS billing, sum(orders) AS scored, sum(review) AS to_review, sum(fraud) AS frauds, \
                 sum(fraud_amount) AS stopped \
                 FROM {database}.fraud_by_hour GROUP BY hour, billing) ORDER BY hour DESC, fraud DESC, country LIMIT {limit}"
            ),
            Report::StockOuts => format!(
                "SELECT sku, sum(orders) AS orders_refused, count(DISTINCT hour) AS hours, min(hour) AS first_hour, max(hour) AS last_hour \
                 FROM {database}.stock_outs_by_hour GROUP BY sku ORDER BY orders_refused DESC, sku LIMIT {limit}"
            ),
            Report::Acceptance => format!(
                "SELECT minute, decided AS orders, accepted, review, invalid, duplicate, fraud, out_of_stock, \
                 round(100 * (accepted + review) / decided, 2) AS accepted_percent FROM \
                 (SELECT minute, sum(orders) AS decided, sumIf(orders, decision = 'accepted') AS accepted, \
                 sumIf(orders, decision = 'review') AS review, sumIf(orders, reason = 'invalid') AS invalid, \
                 sumIf(orders, reason IN ('duplicate', 'conflict')) AS duplicate, sumIf(orders, reason = 'fraud') AS fraud, \
                 sumIf(orders, reason = 'out_of_stock') AS out_of_stock \
                 FROM {database}.decisions_by_minute GROUP BY minute) ORDER BY minute DESC LIMIT {limit}"
            ),
            Report::Latency => format!(
                "SELECT minute, decided AS orders, round(quantiles[1], 1) AS p50, round(quantiles[2], 1) AS p90, \
                 round(quantiles[3], 1) AS p99, round(quantiles[4], 1) AS p999, round(greatest_ms, 1) AS max FROM \
                 (SELECT minute, sum(orders) AS decided, quantilesTDigestMerge(0.5, 0.9, 0.99, 0.999)(latency_ms) AS quantiles, \
                 max(latency_ms_max) AS greatest_ms FROM {database}.latency_by_minute GROUP BY minute) ORDER BY minute DESC LIMIT {limit}"
            ),
        }
    }
}
