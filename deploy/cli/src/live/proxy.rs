//! `culvert proxy config|certs|connections NODE`: what a node's proxy has in force.

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use serde_json::Value;

use super::proxies;
use super::target::{Cluster, ClusterArgs};
use crate::cli::output::{Format, print};
use crate::sandbox::get::{Table, duration};

/// What the proxy of a node has in force.
#[derive(Args, Debug)]
pub struct ProxyArgs {
    #[command(subcommand)]
    command: ProxyCommand,
}

#[derive(Subcommand, Debug)]
enum ProxyCommand {
    /// Version, controller, settings, workloads, Services, pods, and what it has refused.
    Config(OneProxy),
    /// Certificates of the identities on the node.
    Certs(OneProxy),
    /// Open connections and tunnels of each pod.
    Connections(OneProxy),
}

#[derive(Args, Debug)]
struct OneProxy {
    node: String,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Asks the proxy and prints.
///
/// # Errors
/// When there is none on that node, or it does not answer.
pub async fn run(arguments: &ProxyArgs) -> anyhow::Result<()> {
    let (one, parts) = match &arguments.command {
        ProxyCommand::Config(one) => (one, "node,controller,mesh,workloads,services,pods,ejected,refused"),
        ProxyCommand::Certs(one) => (one, "certificates"),
        ProxyCommand::Connections(one) => (one, "connections"),
    };
    let cluster = one.cluster.connect().await?;
    let value = ask(&cluster, &one.node, parts).await?;
    let text = match &arguments.command {
        ProxyCommand::Config(_) => serde_yaml_ng::to_string(&value)?,
        ProxyCommand::Certs(_) => certificates(&value, Utc::now()),
        ProxyCommand::Connections(_) => connections(&value),
    };
    print(one.output, &text, &value)
}

/// Parts of `/config` of a node's proxy.
async fn ask(cluster: &Cluster, node: &str, parts: &str) -> anyhow::Result<Value> {
    let (component, objects) = proxies::find(cluster, node).await?;
    let pod = objects.in_namespace(culvert_objects::Kind::Pod, culvert_api::names::SYSTEM_NAMESPACE);
    let mut pod = pod.filter(|pod| pod.name() == component.pod);
    let pod = pod.next().ok_or_else(|| proxies::AdminError::NoProxy(node.to_owned()))?;
    Ok(proxies::json(&cluster.client, pod, &format!("/config?only={parts}")).await?)
}

fn items<'a>(value: &'a Value, part: &str) -> impl Iterator<Item = &'a Value> {
    value.get(part).and_then(Value::as_array).into_iter().flatten()
}

fn text(value: &Value, field: &str) -> String {
    match value.get(field) {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => String::new(),
        Some(other) => other.to_string(),
    }
}

fn certificates(value: &Value, now: DateTime<Utc>) -> String {
    let mut table = Table::new(["IDENTITY", "ENDS IN", "PODS", "FAILURES", "LAST ERROR"]);
    for one in items(value, "certificates") {
        let end = one.get("not_after").and_then(Value::as_i64);
        let left = end.map(|end| end - now.timestamp());
        table.row(vec![
            text(one, "identity"),
            match left {
                None => "no certificate".to_owned(),
                Some(left) if left <= 0 => "ended".to_owned(),
                Some(left) => duration(left),
            },
            text(one, "leases"),
            text(one, "failures"),
            text(one, "last_error"),
        ]);
    }
    table.render()
}

fn connections(value: &Value) -> String {
    let mut table =
        Table::new(["WORKLOAD", "CONNECTIONS", "BUFFERED", "TUNNELS IN", "TUNNELS OUT", "WORKER"]);
    for one in items(value, "connections") {
        let out = one.get("tunnels_out").and_then(Value::as_object).into_iter().flatten();
        let out: u64 = out.filter_map(|(_, count)| count.as_u64()).sum();
        table.row(vec![
            text(one, "workload"),
            text(one, "connections"),
            text(one, "buffered_bytes"),
            text(one, "tunnels_in"),
            out.to_string(),
            text(one, "worker"),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn certificates_and_connections_are_rows() {
        let value = json!({"certificates": [
            {"identity": "spiffe://cluster.local/ns/shop/sa/cart", "not_after": 7200, "leases": 2, "failures": 0, "last_error": null},
            {"identity": "spiffe://cluster.local/ns/shop/sa/web", "not_after": null, "leases": 1, "failures": 3, "last_error": "NoPodOnNode"}]});
        let shown = certificates(&value, DateTime::UNIX_EPOCH);
        let lines: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1][1..], ["2h", "2", "0", "-"], "{shown}");
        assert_eq!(lines[2][1..], ["no", "certificate", "1", "3", "NoPodOnNode"], "{shown}");
        assert!(certificates(&value, DateTime::from_timestamp(7200, 0).unwrap()).contains("ended"));
        let value = json!({"connections": [{"workload": "w", "connections": 4, "buffered_bytes": 0, "tunnels_in": 1,
            "tunnels_out": {"a": 2, "b": 1}, "worker": 3}]});
        assert!(
            connections(&value).contains("w          4             0          1            3             3"),
            "{}",
            connections(&value)
        );
    }
}
