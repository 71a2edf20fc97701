//! Endpoints that node proxies pass over because they fail, as `/config` of their admin ports tells.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::sandbox::get::{Table, duration};

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ejected {
    /// Whose pods pass it over.
    pub node: String,
    /// `namespace/name`
    pub service: String,
    /// Of the Service.
    pub port: u16,
    /// `connections` or `requests`: what it is not chosen for.
    pub carried: String,
    /// `namespace/name`
    pub workload: String,
    /// `IP:PORT` of the endpoint.
    pub address: String,
    /// In a row.
    pub times: u32,
    pub for_ms: u64,
    /// Until it may be tried; 0 when the next request or connection may.
    pub trial_in_ms: u64,
}

/// Those of a node, from its proxy's `/config?only=ejected`. What makes no sense is left out.
#[must_use]
pub fn of(node: &str, config: &Value) -> Vec<Ejected> {
    let all = config.get("ejected").and_then(Value::as_array);
    all.into_iter().flatten().filter_map(|one| ejected(node, one)).collect()
}

fn ejected(node: &str, one: &Value) -> Option<Ejected> {
    let text = |field: &str| one.get(field).and_then(Value::as_str).map(str::to_owned);
    let number = |field: &str| one.get(field).and_then(Value::as_u64);
    Some(Ejected {
        node: node.to_owned(),
        service: text("service")?,
        port: number("port")?.try_into().ok()?,
        carried: text("carried")?,
        workload: text("workload")?,
        address: text("address")?,
        times: number("times")?.try_into().ok()?,
        for_ms: number("for_ms")?,
        trial_in_ms: number("trial_in_ms")?,
    })
}

impl Ejected {
    /// For how long it has been out, and when it is tried, in words.
    #[must_use]
    pub fn words(&self) -> String {
        let seconds = |ms: u64| duration(i64::try_from(ms.div_ceil(1000)).unwrap_or(i64::MAX));
        let trial = match self.trial_in_ms {
            0 => format!("the next of the {} tries it", self.carried),
            ms => format!("tried again in {}", seconds(ms)),
        };
        format!("ejected by {} for {}, {trial}", self.node, seconds(self.for_ms))
    }
}

/// As a table; empty without any.
#[must_use]
pub fn table(all: &[Ejected]) -> String {
    if all.is_empty() {
        return String::new();
    }
    let mut table =
        Table::new(["EJECTED BY", "SERVICE", "ENDPOINT", "ADDRESS", "FOR", "IN A ROW", "NEXT TRIAL"]);
    let seconds = |ms: u64| duration(i64::try_from(ms.div_ceil(1000)).unwrap_or(i64::MAX));
    for one in all {
        table.row(vec![
            one.node.clone(),
            format!("{}:{} ({})", one.service, one.port, one.carried),
            one.workload.clone(),
            one.address.clone(),
            seconds(one.for_ms),
            one.times.to_string(),
            if one.trial_in_ms == 0 { "due".to_owned() } else { seconds(one.trial_in_ms) },
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_proxy_says_is_read_and_told() {
        let config = json!({"ejected": [
            {"service": "shop/cart", "port": 80, "carried": "requests", "workload": "shop/cart-1", "uid": "u",
                "address": "10.1.0.2:8080", "times": 3, "for_ms": 4200, "trial_in_ms": 2600},
            {"service": "shop/cart", "port": 70_000},
        ]});
        let [one] = &of("node1", &config)[..] else { panic!("{:?}", of("node1", &config)) };
        assert_eq!(one.words(), "ejected by node1 for 5s, tried again in 3s");
        let due = Ejected { trial_in_ms: 0, ..one.clone() };
        assert!(due.words().ends_with("the next of the requests tries it"), "{}", due.words());
        let shown = table(&[one.clone(), due]);
        for word in ["shop/cart:80 (requests)", "shop/cart-1", "10.1.0.2:8080", "due"] {
            assert!(shown.contains(word), "{word}: {shown}");
        }
        assert_eq!(table(&[]), "");
        assert!(of("node1", &json!({})).is_empty());
    }
}
