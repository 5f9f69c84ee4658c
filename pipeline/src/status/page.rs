//! The status page: one HTML text that loads itself again, made of the same figures as `/metrics`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use prometheus::proto::{Metric, MetricFamily};

use super::Phase;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#1b1f24;background:#fff}\
h1{font-size:1.4rem}h2{font-size:1rem;margin:1.6rem 0 .3rem}table{border-collapse:collapse;width:100%}\
th,td{text-align:right;padding:.25rem .6rem;border-bottom:1px solid #d8dee4}th:first-child,td:first-child{text-align:left}th{font-weight:600;color:#57606a}\
.phase{font-size:.9rem;padding:.1rem .6rem;border-radius:1rem;background:#d8dee4}.live{background:#b4f1c4}.failed{background:#ffc1bc}\
@media(prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}th,td{border-color:#30363d}.phase{color:#1b1f24}}";

/// The page. `rate` is in rows a second.
pub(super) fn render(job: &str, phase: Phase, uptime: Duration, rate: f64, families: &[MetricFamily]) -> String {
    let figures = Figures(families);
    let mut out = String::with_capacity(8 << 10);
    let job = escape(job);
    let phase = phase.name();
    put(&mut out, format_args!("<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=2><title>{job}</title>"));
    put(&mut out, format_args!("<style>{STYLE}</style><h1>{job} <span class=\"phase {phase}\">{phase}</span></h1>"));

    let watermark = figures.value("orderflow_watermark_timestamp_seconds");
    let latency = |name| match figures.quantiles(name) {
        Some([p50, p99]) => format!("{p50} / {p99}"),
        None => "–".to_owned(),
    };
    let overview = [
        ("rows in", count(figures.value("orderflow_epoch_rows"))),
        ("rows a second, over ten seconds", count(rate)),
        (
            "epoch sealed / decided",
            format!("{} / {}", count(figures.value("orderflow_epoch_sealed")), count(figures.value("orderflow_epoch_decided"))),
        ),
        ("watermark", if watermark == 0.0 { "–".to_owned() } else { time(watermark) }),
        ("arrival to decision, p50 / p99", latency("orderflow_epoch_arrival_to_decided_seconds")),
        ("seal to decision, p50 / p99", latency("orderflow_epoch_seal_to_decided_seconds")),
        ("CPU seconds", format!("{:.1}", figures.value("orderflow_process_cpu_seconds"))),
        ("memory", bytes(figures.value("orderflow_process_resident_bytes"))),
        ("up for", humantime::format_duration(Duration::from_secs(uptime.as_secs())).to_string()),
    ];
    table(&mut out, "Job", &["", "now"], overview.map(|(name, value)| vec![name.to_owned(), value]));

    let decisions = figures.by_labels("orderflow_decisions_total", &["decision", "reason"]);
    table(&mut out, "Decisions", &["decision", "orders"], decisions.into_iter().map(|(kind, n)| vec![kind, count(n)]));
    let rows = columns(&[
        figures.by_labels("orderflow_split_lag_rows", &["topic", "split"]),
        figures.by_labels("orderflow_split_buffer_bytes", &["topic", "split"]),
    ]);
    table(
        &mut out,
        "Splits",
        &["split", "rows behind", "read ahead"],
        rows.into_iter().map(|(name, v)| vec![name, count(v[0]), bytes(v[1])]),
    );
    let rows =
        columns(&[figures.by_labels("orderflow_state_entries", &["operator"]), figures.by_labels("orderflow_state_bytes", &["operator"])]);
    table(&mut out, "State", &["operator", "entries", "bytes"], rows.into_iter().map(|(name, v)| vec![name, count(v[0]), bytes(v[1])]));
    let rows = columns(&[
        figures.least_by_label("orderflow_sink_epoch_committed", "sink"),
        figures.by_labels("orderflow_sink_rows_total", &["sink"]),
        figures.by_labels("orderflow_sink_backlog_rows", &["sink"]),
        figures.by_labels("orderflow_sink_retries_total", &["sink"]),
    ]);
    let heads = ["sink", "epoch committed", "rows", "rows waiting", "retries"];
    table(&mut out, "Sinks", &heads, rows.into_iter().map(|(name, v)| std::iter::once(name).chain(v.into_iter().map(count)).collect()));
    let rows = columns(&[
        figures.by_labels("orderflow_dead_letters_total", &["topic"]),
        figures.by_labels("orderflow_unknown_fields_total", &["topic"]),
    ]);
    let heads = ["topic", "dead letters", "unknown fields"];
    table(&mut out, "Input", &heads, rows.into_iter().map(|(name, v)| vec![name, count(v[0]), count(v[1])]));
    out.push_str("<p><a href=/metrics>metrics</a></p></html>");
    out
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = out.write_fmt(text);
}

fn table(out: &mut String, title: &str, heads: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    let mut rows = rows.into_iter().peekable();
    if rows.peek().is_none() {
        return;
    }
    put(out, format_args!("<h2>{title}</h2><table><tr>"));
    heads.iter().for_each(|head| put(out, format_args!("<th>{head}</th>")));
    for row in rows {
        out.push_str("</tr><tr>");
        row.iter().for_each(|cell| put(out, format_args!("<td>{}</td>", escape(cell))));
    }
    out.push_str("</tr></table>");
}

/// Several figures of the same things side by side; 0 where there is none.
fn columns(figures: &[BTreeMap<String, f64>]) -> BTreeMap<String, Vec<f64>> {
    let names = figures.iter().flat_map(BTreeMap::keys);
    names.map(|name| (name.clone(), figures.iter().map(|column| column.get(name).copied().unwrap_or(0.0)).collect())).collect()
}

struct Figures<'a>(&'a [MetricFamily]);

impl Figures<'_> {
    fn metrics(&self, name: &str) -> &[Metric] {
        self.0.iter().find(|family| family.name() == name).map_or(&[], MetricFamily::get_metric)
    }

    /// The value of a metric without labels; of a histogram, the sum of what it saw.
    fn value(&self, name: &str) -> f64 {
        self.metrics(name).iter().map(any_value).sum()
    }

    /// Values by the values of `labels`; other labels are added over.
    fn by_labels(&self, name: &str, labels: &[&str]) -> BTreeMap<String, f64> {
        let mut out = BTreeMap::new();
        for metric in self.metrics(name) {
            let label = |name: &&str| metric.get_label().iter().find(|pair| pair.name() == *name).map(|pair| pair.value().to_owned());
            let key: Vec<String> = labels.iter().filter_map(label).filter(|value| !value.is_empty()).collect();
            *out.entry(key.join(" / ")).or_insert(0.0) += any_value(metric);
        }
        out
    }

    /// The least value for each value of `label`: how far all of a sink's streams have come.
    fn least_by_label(&self, name: &str, label: &str) -> BTreeMap<String, f64> {
        let mut out = BTreeMap::new();
        for metric in self.metrics(name) {
            if let Some(pair) = metric.get_label().iter().find(|pair| pair.name() == label) {
                let least = out.entry(pair.value().to_owned()).or_insert(f64::INFINITY);
                *least = any_value(metric).min(*least);
            }
        }
        out
    }

    /// p50 and p99 of a histogram: upper bounds of the buckets in which they fall.
    fn quantiles(&self, name: &str) -> Option<[String; 2]> {
        let histogram = self.metrics(name).first()?.get_histogram();
        let total = histogram.get_sample_count();
        let bound = |quantile: f64| {
            let rank = (quantile * total as f64).ceil() as u64;
            let bucket = histogram.get_bucket().iter().find(|bucket| bucket.cumulative_count() >= rank.max(1));
            bucket.map_or_else(|| "more".to_owned(), |bucket| format!("≤ {} ms", bucket.upper_bound() * 1e3))
        };
        (total > 0).then(|| [bound(0.5), bound(0.99)])
    }
}

fn any_value(metric: &Metric) -> f64 {
    // A metric has one of the three; the others read as 0.
    metric.get_counter().get_value() + metric.get_gauge().get_value() + metric.get_histogram().get_sample_sum()
}

/// A whole number in groups of three.
fn count(n: f64) -> String {
    indicatif::HumanCount(n.max(0.0).round() as u64).to_string().replace(',', "\u{202f}")
}

fn bytes(n: f64) -> String {
    indicatif::HumanBytes(n.max(0.0) as u64).to_string()
}

fn time(seconds: f64) -> String {
    let time = chrono::DateTime::from_timestamp_micros((seconds * 1e6) as i64);
    time.map_or_else(|| "–".to_owned(), |time| time.format("%Y-%m-%d %H:%M:%S%.3f UTC").to_string())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use orderflow_operators::epoch::Epoch;

    #[test]
    fn figures_of_workers_are_added() {
        let metrics = Metrics::new();
        metrics.state("reserve", 0, 10, 1000);
        metrics.state("reserve", 1, 20, 2000);
        let families = metrics.gather();
        assert_eq!(Figures(&families).by_labels("orderflow_state_entries", &["operator"])["reserve"], 30.0);
    }

    #[test]
    fn a_sink_is_as_far_as_its_last_stream() {
        let metrics = Metrics::new();
        for (stream, epoch) in [("order_lines", 7), ("dead_letters", 5)] {
            metrics.sink_through("delta", stream, Epoch(epoch));
        }
        let families = metrics.gather();
        assert_eq!(Figures(&families).least_by_label("orderflow_sink_epoch_committed", "sink")["delta"], 5.0);
    }

    #[test]
    fn quantiles_are_bounds_of_buckets() {
        let metrics = Metrics::new();
        assert_eq!(Figures(&metrics.gather()).quantiles("orderflow_epoch_seal_to_decided_seconds"), None);
        for ms in [2, 2, 2, 45] {
            metrics.epoch_decided(Epoch(1), 1, Duration::from_millis(ms), None);
        }
        let quantiles = Figures(&metrics.gather()).quantiles("orderflow_epoch_seal_to_decided_seconds");
        assert_eq!(quantiles, Some(["≤ 2 ms".to_owned(), "≤ 50 ms".to_owned()]));
    }
}
