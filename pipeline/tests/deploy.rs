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
fn links_of_documents_lead_somewhere() {
    let mut broken = Vec::new();
    for document in [
        "README.md",
        "ARCHITECTURE.md",
        "SEMANTICS.md",
        "benches/RESULTS.md",
        "sql/README.md",
        "deploy/arroyo/README.md",
        "fixtures/python/README.md",
    ] {
        let text = text(document);
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).filter(|link| !link.contains("://"));
        broken.extend(links.filter(|link| !leads_somewhere(document, link)).map(|link| format!("{document}: {link}")));
    }
    assert!(broken.is_empty(), "{broken:?}");
}

/// Whether there is what `link` of `document` names: a file or folder and, behind `#`, a heading in it.
fn leads_somewhere(document: &str, link: &str) -> bool {
    let (path, heading) = link.split_once('#').map_or((link, None), |(path, heading)| (path, Some(heading)));
    let target = if path.is_empty() { root().join(document) } else { root().join(document).with_file_name("").join(path) };
    let has_heading = |heading: &str| {
        let text = std::fs::read_to_string(&target).unwrap_or_default();
        text.lines().filter(|line| line.starts_with('#')).any(|line| anchor(line) == heading)
    };
    target.exists() && heading.is_none_or(has_heading)
}

/// The name that a heading has in links, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_')).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn a_link_to_no_heading_is_found() {
    assert!(leads_somewhere("README.md", "benches/RESULTS.md#on-a-real-kafka"));
    assert!(!leads_somewhere("README.md", "benches/RESULTS.md#on-a-kafka"));
    assert!(!leads_somewhere("sql/README.md", "benches/RESULTS.md"));
}
