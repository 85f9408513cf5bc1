//! The alarms and the dashboard of `k8s/`, against what a node exports.

use std::collections::BTreeSet;

use serde_json::Value;
use unisono_tests::{Metrics, in_repository, promtool};

use crate::metrics::with_everything;

#[tokio::test]
async fn dashboard_and_alarms_look_at_metrics_that_there_are() {
    let (node, _identity) = with_everything().await;
    let metrics = node.metrics().await;
    let exported = metrics.names("TYPE");
    for file in ["k8s/alerts.yaml", "k8s/grafana-dashboard.json"] {
        let text = in_repository(file);
        let named: BTreeSet<_> = Metrics::named_in(&text).collect();
        assert!(named.len() > 10, "{file}: {named:?}");
        for name in named {
            let suffixes = ["_bucket", "_count", "_sum"].iter();
            let base = suffixes
                .filter_map(|suffix| name.strip_suffix(suffix))
                .find(|base| exported.contains(base))
                .unwrap_or(name);
            assert!(exported.contains(base), "{file} names {name}");
        }
    }
    let dashboard: Value =
        serde_json::from_str(&in_repository("k8s/grafana-dashboard.json")).expect("JSON");
    assert!(dashboard["panels"].as_array().expect("panels").len() > 10);
}

#[test]
fn the_alarms_are_rules_that_fire() {
    promtool(&["check", "rules", "k8s/alerts.yaml"], "");
    promtool(&["test", "rules", "tests/alerts_test.yaml"], "");
    for alert in in_repository("k8s/alerts.yaml").split("- alert: ").skip(1) {
        for annotation in ["summary: ", "description: ", "action: "] {
            assert!(alert.contains(annotation), "{annotation}in {alert}");
        }
    }
}
