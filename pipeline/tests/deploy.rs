//! What is deployed fits the job: dashboards and alerts name metrics that exist, settings files are right, links lead somewhere.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orderflow::config::Config;
use orderflow::job_plan::DecisionCounts;
use orderflow::metrics::Metrics;
use orderflow_operators::epoch::Epoch;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The name of every series that `/metrics` can have.
fn series() -> BTreeSet<String> {
    let metrics = Metrics::new();
    let (epoch, time) = (Epoch(1), Duration::from_millis(1));
    metrics.rows("decode", 1);
    metrics.decisions(&DecisionCounts::default());
    metrics.decoded("orders", 1, 1);
    metrics.epoch_sealed(epoch, 1);
    metrics.epoch_decided(epoch, 1, time, Some(time));
    metrics.reservation_rounds(1);
    metrics.split("orders", 0, 1, 1);
    metrics.state("reserve", 0, 1, 1);
    metrics.sink_rows("delta", "order_lines", 1);
    metrics.sink_commit("delta", time);
    metrics.sink_through("delta", "order_lines", epoch);
    metrics.sink_backlog("delta", "order_lines", 1);
    metrics.sink_retry("delta", "order_lines");
    metrics.checkpoint(epoch, 1, 1, time);
    metrics.checkpoint_failed();
    metrics.restarts(1);
    let text = metrics.render();
    let name = |line: &str| line.split(['{', ' ']).next().unwrap_or_default().to_owned();
    text.lines().filter(|line| !line.starts_with('#')).map(name).collect()
}

/// Every word in `text` that is a metric's name.
fn mentioned(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("orderflow_")).map(str::to_owned).collect()
}

#[test]
fn dashboards_and_alerts_name_metrics_that_exist() {
    let known = series();
    let dashboard = mentioned(&text("deploy/grafana/dashboards/orderflow.json"));
    let alerts = mentioned(&text("deploy/prometheus/alerts.yml"));
    assert!(dashboard.len() > 15 && alerts.len() > 5, "names are found at all");
    let unknown: Vec<_> = dashboard.union(&alerts).filter(|name| !known.contains(*name)).collect();
    assert!(unknown.is_empty(), "not among the metrics: {unknown:?}");
    // And the other way round: the dashboard shows every metric.
    let base = |name: &str| name.trim_end_matches("_bucket").trim_end_matches("_sum").trim_end_matches("_count").to_owned();
    let shown: BTreeSet<String> = dashboard.iter().map(|name| base(name)).collect();
    let hidden: BTreeSet<String> = known.iter().map(|name| base(name)).filter(|name| !shown.contains(name)).collect();
    assert!(hidden.is_empty(), "not on the dashboard: {hidden:?}");
}

#[test]
fn settings_of_deployments_are_right() {
    for path in ["deploy/compose/orderflow.toml", "deploy/kubernetes/base/orderflow.toml"] {
        if let Err(e) = Config::load(Some(&root().join(path)), &[]) {
            panic!("{e}");
        }
    }
}

#[test]
fn links_of_the_readme_lead_somewhere() {
    let readme = text("README.md");
    let links = readme.split("](").skip(1).filter_map(|rest| rest.split(')').next()).filter(|link| !link.contains("://"));
    let broken: Vec<_> = links.filter(|link| !root().join(link).exists()).collect();
    assert!(broken.is_empty(), "{broken:?}");
}
