//! Requests that fail and are sent again.

use culvert_e2e::routes::{backend, port_parent, route};
use culvert_e2e::{SOON, Shared, binary, eventually, run};
use serde_json::{Value, json};
use std::process::Command;

static MESH: Shared = Shared::new("retries");

const PORT: u16 = 8080;

#[test]
fn what_fails_is_sent_again_elsewhere_within_a_budget() {
    let mesh = MESH.beside();
    let namespace = "retries";
    let (_, client) = mesh.open_versions(namespace);
    let rules = json!([
        {"matches": [{"path": {"value": "/ready"}}], "backendRefs": [backend("v1")]},
        {"retry": {"codes": [503], "attempts": 2, "backoff": "10ms"}, "backendRefs": [backend("v1")]},
    ]);
    let policy = json!({"apiVersion": "gateway.networking.x-k8s.io/v1alpha1", "kind": "XBackendTrafficPolicy",
        "metadata": {"name": "budget", "namespace": namespace},
        "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "v1"}],
            "retryConstraint": {"budget": {"percent": 0, "interval": "1h"}, "minRetryRate": {"count": 3, "interval": "1h"}}}});
    let parent = port_parent(namespace, "server", PORT);
    mesh.apply(&(route("HTTPRoute", namespace, "retry", &parent, &rules) + &format!("---\n{policy}\n")));
    let get = |path: &str| mesh.echo(&client, &["get", &format!("http://server:{PORT}{path}")]);
    eventually("the route is in force", SOON, || {
        let report = get("/ready");
        let by = report["last"]["pod"].as_str().unwrap_or_default();
        if by.starts_with("v1-") { Ok(()) } else { Err(report.to_string()) }
    });
    eventually("the policy is accepted", SOON, || {
        let policy = mesh.get("xbackendtrafficpolicy", Some(namespace), Some("budget"));
        let told = &policy["status"]["ancestors"][0];
        let condition = &told["conditions"][0];
        let is_so = condition["type"] == "Accepted"
            && condition["status"] == "True"
            && told["ancestorRef"]["name"] == "v1";
        if is_so { Ok(()) } else { Err(policy.to_string()) }
    });
    eventually("the node has the policy's budget", SOON, || {
        let mut command = Command::new(binary("culvert"));
        let from = format!("{namespace}/{}", client.name);
        command.args(["explain", "-o", "json", "--name", mesh.name(), "--from", &from]);
        command.arg(format!("http://server:{PORT}/a"));
        let explained: Value = run(command, SOON).ok().json();
        let (retry, budget) = (&explained["rule"]["retry"], &explained["backends"][0]["retry_budget"]);
        let is_so = retry["attempts"] == 2 && retry["codes"] == json!([503]) && budget["min_retries"] == 3;
        if is_so { Ok(()) } else { Err(explained.to_string()) }
    });
    let retried = |result: &str| mesh.metrics("node1").sum("culvert_retries_total", &[("result", result)]);
    // Three tries and the backend's own answer, then one more retry and no room for another.
    let report = get("/a?status=503");
    assert_eq!(report["last_status"], 503, "{report}");
    assert!(report["last_headers"].get("proxy-status").is_none(), "the backend's own: {report}");
    let line = mesh.access_log("node1", &["\"/a?status=503\"", "\"response_code\":503"]);
    assert_eq!(line["attempts"], 3, "{line}");
    let report = get("/b?status=503");
    assert_eq!(report["last_status"], 503, "{report}");
    let said = report["last_headers"]["proxy-status"].as_str().unwrap_or_default();
    assert!(said.contains("RetryBudget"), "{report}");
    let line = mesh.access_log("node1", &["\"/b?status=503\"", "\"RetryBudget\""]);
    assert_eq!(line["attempts"], 2, "{line}");
    assert_eq!((retried("sent"), retried("over_budget")), (3.0, 1.0));
    assert_eq!(get("/c")["last_status"], 200);
}
