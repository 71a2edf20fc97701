//! The workloads that most tests want, as the YAML a user would write.

use serde_json::{Value, json};

use crate::command::binary;

/// Whether a namespace opts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Labelled {
    Yes,
    No,
}

/// A namespace with one client on `node1` and servers on `node2`; every pod is a `culvert/echo` with every kind of
/// port, and `server` is a dual-stack Service.
#[derive(Clone, Debug)]
pub struct Shop {
    name: String,
    labelled: Labelled,
    servers: u32,
    annotations: Vec<(String, String)>,
    pod_annotations: Vec<(String, String)>,
    pre_stop: Option<u64>,
}

/// Container ports by name, and by the Service port of the same number.
const PORTS: [(&str, u16, &str); 10] = [
    ("http", 8080, "TCP"),
    ("grpc", 9003, "TCP"),
    ("tcp", 9000, "TCP"),
    ("tcp-first", 9001, "TCP"),
    ("udp", 9002, "UDP"),
    ("discard", 9004, "TCP"),
    ("chargen", 9005, "TCP"),
    ("silent", 9006, "TCP"),
    ("reset", 9007, "TCP"),
    ("tls", 9443, "TCP"),
];

impl Shop {
    pub fn new(name: &str, labelled: Labelled) -> Self {
        Self {
            name: name.to_owned(),
            labelled,
            servers: 1,
            annotations: Vec::new(),
            pod_annotations: Vec::new(),
            pre_stop: None,
        }
    }

    #[must_use]
    pub fn servers(mut self, servers: u32) -> Self {
        self.servers = servers;
        self
    }

    /// Pods of Deployments serve on for so many seconds after they were told to end, as users have it where news takes its
    /// time.
    #[must_use]
    pub fn pre_stop(mut self, seconds: u64) -> Self {
        self.pre_stop = Some(seconds);
        self
    }

    #[must_use]
    pub fn labelled(mut self, labelled: Labelled) -> Self {
        self.labelled = labelled;
        self
    }

    /// A setting for the whole namespace: `culvert.dev/KEY`.
    #[must_use]
    pub fn setting(mut self, key: &str, value: &str) -> Self {
        self.annotations.push((format!("culvert.dev/{key}"), value.to_owned()));
        self
    }

    /// A setting for the servers' pods.
    #[must_use]
    pub fn server_setting(mut self, key: &str, value: &str) -> Self {
        self.pod_annotations.push((format!("culvert.dev/{key}"), value.to_owned()));
        self
    }

    /// The Namespace alone, to change label and annotations.
    pub fn namespace(&self) -> String {
        let mut metadata = json!({"name": self.name, "annotations": pairs(&self.annotations)});
        if self.labelled == Labelled::Yes {
            metadata["labels"] = json!({"culvert.dev/mesh": "enabled"});
        }
        document(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}))
    }

    /// All of it.
    pub fn yaml(&self) -> String {
        let mut all = self.namespace();
        all += &self.account("client");
        all += &self.account("server");
        all += &self.deployment("client", 1, Some("node1"), &[]);
        all += &self.deployment("server", self.servers, Some("node2"), &self.pod_annotations);
        all + &self.service("server", &json!({}))
    }

    /// A ServiceAccount.
    pub fn account(&self, name: &str) -> String {
        let metadata = json!({"name": name, "namespace": self.name});
        document(&json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}))
    }

    /// A Deployment of echo servers under the service account of its name.
    pub fn deployment(
        &self,
        name: &str,
        replicas: u32,
        node: Option<&str>,
        annotations: &[(String, String)],
    ) -> String {
        let mut template = json!({
            "metadata": {"labels": {"app": name}, "annotations": pairs(annotations)},
            "spec": {"serviceAccountName": name, "terminationGracePeriodSeconds": 1, "containers": [container()]},
        });
        if let Some(node) = node {
            template["spec"]["nodeName"] = json!(node);
        }
        if let Some(seconds) = self.pre_stop {
            template["spec"]["terminationGracePeriodSeconds"] = json!(seconds + 10);
            template["spec"]["containers"][0]["lifecycle"] =
                json!({"preStop": {"sleep": {"seconds": seconds}}});
        }
        document(&json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "namespace": self.name},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template},
        }))
    }

    /// A dual-stack Service over the pods of that name, with `extra` merged into its spec.
    pub fn service(&self, name: &str, extra: &Value) -> String {
        self.service_for(name, name, extra)
    }

    /// A Service of one name over the pods of another.
    pub fn service_for(&self, name: &str, app: &str, extra: &Value) -> String {
        let ports = PORTS.map(|(name, port, protocol)| {
            json!({"name": name, "port": port, "targetPort": name, "protocol": protocol})
        });
        let mut spec = json!({"selector": {"app": app}, "ports": ports, "ipFamilyPolicy": "PreferDualStack"});
        for (key, value) in extra.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let metadata = json!({"name": name, "namespace": self.name});
        document(&json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}))
    }

    /// A Deployment behind the Service `part_of` ([`Shop::parted_service`]) whose pods run `culvert-echo serve` as told. They are
    /// ready when they listen.
    pub fn part(&self, part_of: &str, name: &str, node: &str, replicas: u32, serve: &[&str]) -> String {
        let echo = binary("culvert-echo").display().to_string();
        // All ports are bound before one is served: this one speaks for the others.
        let command = [&[echo.as_str(), "serve", "--http", "8081"], serve].concat();
        let probe = json!({"httpGet": {"path": "/ready", "port": 8081}, "periodSeconds": 1});
        let container = json!({"name": "echo", "image": "none", "command": command, "readinessProbe": probe});
        document(&json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": self.name},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": {
                "metadata": {"labels": {"app": name, "part-of": part_of}},
                "spec": {"nodeName": node, "terminationGracePeriodSeconds": 1, "containers": [container]}}},
        }))
    }

    /// A Service over such Deployments, HTTP on 8080 and bytes on 9000, with `extra` merged into its spec.
    pub fn parted_service(&self, name: &str, extra: &Value) -> String {
        let mut spec = json!({"selector": {"part-of": name}, "ports": [
            {"name": "http", "port": 8080, "targetPort": 8080}, {"name": "tcp", "port": 9000, "targetPort": 9000}]});
        for (key, value) in extra.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        self.service(name, &spec)
    }

    /// A single pod on a node, under the service account of its name.
    pub fn pod(&self, name: &str, node: &str) -> String {
        document(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": self.name, "labels": {"app": name}},
            "spec": {"serviceAccountName": name, "nodeName": node, "terminationGracePeriodSeconds": 1,
                     "containers": [container()]},
        }))
    }
}

fn container() -> Value {
    let ports = PORTS
        .map(|(name, port, protocol)| json!({"name": name, "containerPort": port, "protocol": protocol}));
    json!({
        "name": "echo", "image": "culvert/echo", "ports": ports,
        "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 1},
    })
}

fn pairs(pairs: &[(String, String)]) -> Value {
    Value::Object(pairs.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str()))).collect())
}

/// JSON is YAML.
fn document(value: &Value) -> String {
    format!("---\n{value}\n")
}
