//! The settings of the mesh: kind `MeshConfig`, then annotations `culvert.dev/KEY` on namespace and pod. The most
//! specific wins; a value that does not parse is an error, and the last good one stays.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use culvert_api::names;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::object::{FieldError, Object, ObjectKey};
use crate::settings::{
    AccessLogFilter, AccessLogFormat, Bytes, Cidrs, Count, HeadBytes, InboundMode, Mark, OutboundPolicy,
    Percent, Port, PortModes, PortRanges, SettingValue, Switch, TrustDomainName, TrustDomainNames, UdpPolicy,
};

/// Name of the `MeshConfig` that is in force unless an XMesh names another.
pub const DEFAULT_NAME: &str = "default";

/// One setting: where it can be written, what it means, and how it is read.
pub struct Setting {
    /// Below `spec` of a `MeshConfig`.
    pub path: &'static str,
    /// Of a namespace or pod; None for what holds for the whole mesh.
    pub annotation: Option<&'static str>,
    /// What it does, line by line.
    pub doc: &'static [&'static str],
    /// What is accepted.
    pub expected: &'static str,
    set: fn(&mut Settings, &str) -> bool,
    get: fn(&Settings) -> String,
}

impl Setting {
    /// The value in force, as it would be written.
    pub fn text(&self, settings: &Settings) -> String {
        (self.get)(settings)
    }
}

macro_rules! settings {
    ($($(#[doc = $doc:literal])+ $field:ident: $type:ty = $default:expr, $path:literal $(, $annotation:literal)?;)+) => {
        /// Every setting's value.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Settings { $($(#[doc = $doc])+ pub $field: $type),+ }

        impl Default for Settings {
            fn default() -> Self {
                Self { $($field: $default),+ }
            }
        }

        /// Every setting, in the order of the reference page.
        pub static SETTINGS: &[Setting] = &[$(Setting {
            path: $path,
            annotation: settings!(@annotation $($annotation)?),
            doc: &[$($doc),+],
            expected: <$type as SettingValue>::EXPECTED,
            set: |settings, text| <$type as SettingValue>::parse(text)
                .map(|value| settings.$field = value).is_some(),
            get: |settings| settings.$field.text(),
        }),+];
    };
    (@annotation) => { None };
    (@annotation $annotation:literal) => { Some($annotation) };
}

settings! {
    /// Name of the mesh's trust root; first part of every identity.
    trust_domain: TrustDomainName = TrustDomainName("cluster.local".to_owned()), "trustDomain";
    /// Other trust domains whose identities are accepted as this mesh's own, for moving from one to another.
    trust_domain_aliases: TrustDomainNames = TrustDomainNames::default(), "trustDomainAliases";

    /// Whether plaintext from outside the mesh is accepted. `strict` still lets the kubelet's declared probes through.
    inbound_mode: InboundMode = InboundMode::Permissive, "inboundMode", "inbound-mode";
    /// Ports of the application with a mode of their own.
    inbound_mode_ports: PortModes = PortModes::default(), "inboundModePorts", "inbound-mode-ports";
    /// Whether connections to addresses outside the cluster pass.
    outbound_policy: OutboundPolicy = OutboundPolicy::Allow, "outboundPolicy", "outbound-policy";
    /// Whether UDP passes. It is never encrypted by the mesh.
    udp: UdpPolicy = UdpPolicy::Allow, "udp", "udp";
    /// Destination ports that are not captured on the way out: plaintext, not counted, not governed.
    exclude_outbound_ports: PortRanges = PortRanges::default(), "excludeOutboundPorts", "exclude-outbound-ports";
    /// Destination addresses that are not captured on the way out.
    exclude_outbound_cidrs: Cidrs = Cidrs::default(), "excludeOutboundCidrs", "exclude-outbound-cidrs";
    /// Ports of the application that are not captured on the way in.
    exclude_inbound_ports: PortRanges = PortRanges::default(), "excludeInboundPorts", "exclude-inbound-ports";
    /// Ports whose bytes are never looked at, whatever their Service declares.
    opaque_ports: PortRanges = PortRanges::default(), "opaquePorts", "opaque-ports";

    /// Open connections of one workload, both directions together. More are refused with reason `WorkloadLimit`.
    max_connections: Count = Count(32_768), "limits.connections", "max-connections";
    /// Bytes buffered for one workload.
    max_memory: Bytes = Bytes(256 << 20), "limits.memory", "max-memory";
    /// Requests of one workload that may be under way at once. More are answered 503 with reason `WorkloadLimit`, as are
    /// requests that come while the workload's memory is used up.
    max_requests: Count = Count(16_384), "limits.requests", "max-requests";
    /// Size of one request's head: over HTTP/1 as it is sent, over HTTP/2 as RFC 9113 counts it (names, values and 32 bytes
    /// per field). A larger one is answered 431 with reason `HeadersTooLarge`. Holds for new connections.
    max_request_head: HeadBytes = HeadBytes(64 << 10), "limits.requestHead", "max-request-head";
    /// Requests that may be under way at once on one HTTP/2 connection of a client. Holds for new connections.
    max_streams: Count = Count(1024), "limits.streams", "max-streams";

    /// Until a TCP connection to a peer or the application is established.
    connect_timeout: Duration = Duration::from_secs(5), "timeouts.connect", "connect-timeout";
    /// Until a TLS handshake is finished.
    tls_handshake_timeout: Duration = Duration::from_secs(5), "timeouts.tlsHandshake", "tls-handshake-timeout";
    /// Until HTTP/2 settings have been exchanged, and again until a CONNECT is answered.
    tunnel_handshake_timeout: Duration = Duration::from_secs(5), "timeouts.tunnelHandshake", "tunnel-handshake-timeout";
    /// How long a connection to an unknown address of the cluster waits for news of its workload before it is reset.
    unknown_destination_timeout: Duration = Duration::from_secs(1), "timeouts.unknownDestination",
        "unknown-destination-timeout";
    /// After one side has closed: how long the connection may carry nothing before it is closed whole.
    half_closed_idle_timeout: Duration = Duration::from_secs(300), "timeouts.halfClosedIdle", "half-closed-idle-timeout";
    /// How long open connections may go on when a pod leaves the mesh, when it ends (those that lead to it), or when its
    /// node proxy ends. Then they are cut, reason `Drained`. `1ms` is as good as not to drain: requests under way are lost.
    drain_timeout: Duration = Duration::from_secs(600), "timeouts.drain", "drain-timeout";
    /// From the first byte of a request's head to its last; on a port with routes also from the connection's start to the
    /// first byte. Holds for new connections, as the two below.
    request_head_timeout: Duration = Duration::from_secs(10), "timeouts.requestHead", "request-head-timeout";
    /// How long a client may send nothing of a request's body that is waited for (over HTTP/2: while nothing of the response
    /// comes either), or take nothing of a response. Calls of gRPC may be silent for as long as `timeouts.connectionIdle`.
    body_idle_timeout: Duration = Duration::from_secs(60), "timeouts.bodyIdle", "body-idle-timeout";
    /// A client's connection that carries requests and has none is closed after this.
    connection_idle_timeout: Duration = Duration::from_secs(3600), "timeouts.connectionIdle", "connection-idle-timeout";

    /// Whether endpoints that fail are passed over by the pod's node ([routing.md](routing.md#endpoints-that-fail)).
    ejection: Switch = Switch::Enabled, "ejection.mode", "ejection";
    /// Requests in a row that an endpoint must fail, or connections in a row that it must reset, to be ejected. Of requests two fifths are
    /// enough, and two at least, when the first failed half a second ago or more.
    ejection_failures: Count = Count(5), "ejection.failures", "ejection-failures";
    /// Attempts in a row to connect that must fail for an endpoint to be ejected. What could not connect is tried elsewhere.
    ejection_connect_failures: Count = Count(1), "ejection.connectFailures", "ejection-connect-failures";
    /// How long an endpoint is passed over the first time; doubled each time it fails again, and up to half of it more at
    /// random.
    ejection_base: Duration = Duration::from_secs(1), "ejection.baseTime", "ejection-base-time";
    /// How long at most, before what is added at random; never less than `ejection.baseTime`.
    ejection_max: Duration = Duration::from_secs(60), "ejection.maxTime", "ejection-max-time";
    /// How many of the endpoints of a Service's port may be ejected at once, in percent, rounded down. None of a single one.
    ejection_max_percent: Percent = Percent(50), "ejection.maxPercent", "ejection-max-percent";

    /// Which connections get an access log line.
    access_log_filter: AccessLogFilter = AccessLogFilter::Failures, "accessLog.filter";
    /// How access log lines are written.
    access_log_format: AccessLogFormat = AccessLogFormat::Json, "accessLog.format";

    /// Bits of packet and connection marks that Culvert may use inside a pod's network namespace.
    mark_mask: Mark = Mark(0xfff), "interception.markMask";
    /// Mark of the node proxy's own packets.
    proxy_mark: Mark = Mark(0x539), "interception.proxyMark";
    /// Mark of captured outbound connections.
    outbound_mark: Mark = Mark(0x111), "interception.outboundMark";
    /// Mark of the application's replies to connections opened by the node proxy.
    reply_mark: Mark = Mark(0x112), "interception.replyMark";
    /// Mark of captured inbound connections.
    inbound_mark: Mark = Mark(0x113), "interception.inboundMark";
    /// Routing table inside the pod that delivers marked packets locally.
    route_table: Count = Count(100), "interception.routeTable";
    /// Priority of the policy routing rules inside the pod.
    rule_priority: Count = Count(32_764), "interception.rulePriority";
    /// Where captured outbound connections arrive inside the pod.
    outbound_port: Port = Port(names::OUTBOUND_PORT), "interception.outboundPort";
    /// Where captured plaintext inbound connections arrive inside the pod.
    inbound_port: Port = Port(names::INBOUND_PORT), "interception.inboundPort";
    /// Where tunnels arrive inside the pod. Peers of other implementations expect the default.
    hbone_port: Port = Port(names::HBONE_PORT), "interception.hbonePort";
}

/// A value that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{object}: {key}: {value:?} is not valid, expected {expected}{}", .kept.as_ref().map(|kept| format!("; {kept:?} stays in force")).unwrap_or_default())]
pub struct SettingError {
    pub object: ObjectKey,
    /// The annotation, or the field of the `MeshConfig`.
    pub key: String,
    pub value: String,
    pub expected: String,
    /// The last good value, which stays in force; None when there was none and the less specific one holds.
    pub kept: Option<String>,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    Default,
    Mesh,
    Namespace,
    Pod,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Default => "default",
            Origin::Mesh => "mesh",
            Origin::Namespace => "namespace",
            Origin::Pod => "pod",
        })
    }
}

/// The last valid text of every setting of every object, so that a later invalid one does not take effect. An object
/// made anew under the same name starts without.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastGood(BTreeMap<(ObjectKey, String), BTreeMap<usize, String>>);

impl LastGood {
    /// Remembers what is in force in a layer.
    pub fn remember(&mut self, layer: &Layer) {
        if !layer.values.is_empty() {
            self.0.insert(layer.of.clone(), layer.values.clone());
        }
    }
}

/// What one object says about settings: index into [`SETTINGS`] to text, all of it valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    of: (ObjectKey, String),
    values: BTreeMap<usize, String>,
    pub errors: Vec<SettingError>,
}

impl Layer {
    /// What a namespace's or pod's annotations say.
    pub fn of_annotations(object: &Object, last: &LastGood) -> Self {
        let mut layer = Self::empty(object);
        for (name, value) in &object.metadata.annotations {
            let Some(key) = name.strip_prefix(names::ANNOTATION_PREFIX) else { continue };
            match SETTINGS.iter().position(|setting| setting.annotation == Some(key)) {
                Some(index) => layer.add(index, name, value.trim(), last),
                None => layer.error(name, value, format!("one of the settings {}", annotations()), None),
            }
        }
        layer
    }

    /// What a `MeshConfig` says.
    pub fn of_mesh(object: &Object, last: &LastGood) -> Self {
        let mut layer = Self::empty(object);
        match object.body.get("spec") {
            None | Some(Value::Null) => {}
            Some(Value::Object(spec)) => layer.fields(spec, "", last),
            Some(other) => layer.error("spec", &other.to_string(), "fields".to_owned(), None),
        }
        for field in object.body.keys().filter(|field| !matches!(field.as_str(), "spec" | "status")) {
            layer.error(field, "", "spec".to_owned(), None);
        }
        layer.consistent(last);
        layer
    }

    /// Whether the object says nothing, rightly or wrongly.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty() && self.errors.is_empty()
    }

    fn empty(object: &Object) -> Self {
        Self { of: (object.key(), object.uid().to_owned()), values: BTreeMap::new(), errors: Vec::new() }
    }

    fn fields(&mut self, fields: &Map<String, Value>, prefix: &str, last: &LastGood) {
        for (name, value) in fields {
            let path = format!("{prefix}{name}");
            let index = SETTINGS.iter().position(|setting| setting.path == path);
            let group = format!("{path}.");
            match (index, value) {
                (_, Value::Null) => {}
                (Some(index), value) => match text_of(value) {
                    Some(text) => self.add(index, &format!("spec.{path}"), &text, last),
                    None => {
                        let kept = self.keep(index, last);
                        let expected = SETTINGS[index].expected.to_owned();
                        self.error(&format!("spec.{path}"), &value.to_string(), expected, kept);
                    }
                },
                (None, Value::Object(inner)) if SETTINGS.iter().any(|at| at.path.starts_with(&group)) => {
                    self.fields(inner, &group, last);
                }
                (None, value) => {
                    let value = value.to_string();
                    self.error(
                        &format!("spec.{path}"),
                        &value,
                        "a known field (docs/settings.md)".to_owned(),
                        None,
                    );
                }
            }
        }
    }

    fn add(&mut self, index: usize, key: &str, text: &str, last: &LastGood) {
        if (SETTINGS[index].set)(&mut Settings::default(), text) {
            self.values.insert(index, text.to_owned());
        } else {
            let kept = self.keep(index, last);
            self.error(key, text, SETTINGS[index].expected.to_owned(), kept);
        }
    }

    /// Puts the last good value in force, if there is one.
    fn keep(&mut self, index: usize, last: &LastGood) -> Option<String> {
        let kept = last.0.get(&self.of)?.get(&index)?.clone();
        self.values.insert(index, kept.clone());
        Some(kept)
    }

    fn error(&mut self, key: &str, value: &str, expected: String, kept: Option<String>) {
        let (object, key, value) = (self.of.0.clone(), key.to_owned(), value.to_owned());
        self.errors.push(SettingError { object, key, value, expected, kept });
    }

    /// Marks and ports of the interception only work together: none of them is taken when they do not.
    fn consistent(&mut self, last: &LastGood) {
        let mut settings = Settings::default();
        self.apply(&mut settings);
        let Some((key, value, expected)) = interception_fault(&settings) else { return };
        let ours = |index: &usize| SETTINGS[*index].path.starts_with("interception.");
        self.values.retain(|index, _| !ours(index));
        let kept = last.0.get(&self.of).into_iter().flatten().filter(|(index, _)| ours(index));
        self.values.extend(kept.map(|(index, text)| (*index, text.clone())));
        self.error(key, &value, expected.to_owned(), None);
    }

    fn apply(&self, settings: &mut Settings) {
        for (index, text) in &self.values {
            (SETTINGS[*index].set)(settings, text);
        }
    }
}

/// Every annotation key, for messages.
fn annotations() -> String {
    SETTINGS.iter().filter_map(|setting| setting.annotation).collect::<Vec<_>>().join(", ")
}

fn interception_fault(settings: &Settings) -> Option<(&'static str, String, &'static str)> {
    let mask = settings.mark_mask.0;
    let marks = [settings.proxy_mark, settings.outbound_mark, settings.reply_mark, settings.inbound_mark];
    let text = |marks: &[Mark]| marks.iter().map(SettingValue::text).collect::<Vec<_>>().join(",");
    if marks.iter().any(|mark| mark.0 & !mask != 0) {
        return Some(("spec.interception", text(&marks), "marks within markMask"));
    }
    let ports = [settings.outbound_port, settings.inbound_port, settings.hbone_port].map(|port| port.0);
    let distinct = |numbers: &[u32]| (1..numbers.len()).all(|n| !numbers[..n].contains(&numbers[n]));
    if !distinct(&marks.map(|mark| mark.0)) {
        return Some(("spec.interception", text(&marks), "four different marks"));
    }
    if !distinct(&ports.map(u32::from)) {
        return Some(("spec.interception", format!("{ports:?}"), "three different ports"));
    }
    None
}

/// A JSON value as it would be written in an annotation; None when there is no such form.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.trim().to_owned()),
        Value::Number(number) => Some(number.to_string()),
        Value::Array(items) => {
            items.iter().map(text_of).collect::<Option<Vec<_>>>().map(|items| items.join(","))
        }
        Value::Object(map) => {
            let pair = |(key, value): (&String, &Value)| text_of(value).map(|value| format!("{key}={value}"));
            map.iter().map(pair).collect::<Option<Vec<_>>>().map(|pairs| pairs.join(","))
        }
        Value::Null | Value::Bool(_) => None,
    }
}

/// What is wrong with a `MeshConfig`.
pub fn check(object: &Object) -> Vec<FieldError> {
    let errors = Layer::of_mesh(object, &LastGood::default()).errors;
    let fault = |error: SettingError| {
        FieldError::new(error.key, format!("invalid value: {}, expected {}", error.value, error.expected))
    };
    errors.into_iter().map(fault).collect()
}

/// What is in force, and where each value comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct Effective {
    pub settings: Settings,
    origins: BTreeMap<usize, Origin>,
}

impl Effective {
    /// Where the value of a setting (by its path) comes from.
    pub fn origin(&self, path: &str) -> Origin {
        let index = SETTINGS.iter().position(|setting| setting.path == path);
        index.and_then(|index| self.origins.get(&index)).copied().unwrap_or(Origin::Default)
    }
}

/// Merges the layers, the most specific winning setting by setting.
pub fn effective(mesh: Option<&Layer>, namespace: Option<&Layer>, pod: Option<&Layer>) -> Effective {
    let mut in_force = Effective { settings: Settings::default(), origins: BTreeMap::new() };
    let layers = [(mesh, Origin::Mesh), (namespace, Origin::Namespace), (pod, Origin::Pod)];
    for (layer, origin) in layers {
        let Some(layer) = layer else { continue };
        layer.apply(&mut in_force.settings);
        in_force.origins.extend(layer.values.keys().map(|index| (*index, origin)));
    }
    in_force
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(kind: &str, annotations: Value, spec: Value) -> Object {
        let api_version = if kind == "MeshConfig" { "culvert.dev/v1alpha1" } else { "v1" };
        serde_json::from_value(json!({"apiVersion": api_version, "kind": kind, "spec": spec,
            "metadata": {"name": "x", "annotations": annotations}}))
        .unwrap()
    }

    #[test]
    fn the_most_specific_value_wins() {
        let none = LastGood::default();
        let mesh =
            json!({"inboundMode": "strict", "limits": {"connections": 10}, "opaquePorts": [25, "100-200"]});
        let mesh = Layer::of_mesh(&object("MeshConfig", json!({}), mesh), &none);
        let namespace =
            json!({"culvert.dev/inbound-mode": "permissive", "culvert.dev/max-connections": "20"});
        let namespace = Layer::of_annotations(&object("Namespace", namespace, json!({})), &none);
        let pod = json!({"culvert.dev/inbound-mode": "strict", "other/inbound-mode": "x"});
        let pod = Layer::of_annotations(&object("Pod", pod, json!({})), &none);
        assert!(mesh.errors.is_empty() && namespace.errors.is_empty() && pod.errors.is_empty(), "{mesh:?}");
        let found = effective(Some(&mesh), Some(&namespace), Some(&pod));
        assert_eq!(found.settings.inbound_mode, InboundMode::Strict);
        assert_eq!(found.origin("inboundMode"), Origin::Pod);
        assert_eq!(
            (found.settings.max_connections, found.origin("limits.connections")),
            (Count(20), Origin::Namespace)
        );
        assert_eq!(found.settings.opaque_ports.text(), "25,100-200");
        assert_eq!(found.origin("udp"), Origin::Default);
    }

    #[test]
    fn an_invalid_value_is_named_and_the_last_good_one_stays() {
        let good = object("Pod", json!({"culvert.dev/inbound-mode": "strict"}), json!({}));
        let mut last = LastGood::default();
        last.remember(&Layer::of_annotations(&good, &last));
        let bad = object("Pod", json!({"culvert.dev/inbound-mode": "strikt"}), json!({}));
        let layer = Layer::of_annotations(&bad, &last);
        assert_eq!(
            layer.errors[0].to_string(),
            "Pod default/x: culvert.dev/inbound-mode: \"strikt\" is not valid, expected `permissive` or `strict`; \
             \"strict\" stays in force"
        );
        assert_eq!(effective(None, None, Some(&layer)).settings.inbound_mode, InboundMode::Strict);
        let mut anew = bad.clone();
        anew.metadata.uid = Some("another".to_owned());
        let layer = Layer::of_annotations(&anew, &last);
        assert_eq!(effective(None, None, Some(&layer)).settings.inbound_mode, InboundMode::Permissive);
        let unknown = object("Pod", json!({"culvert.dev/inboundmode": "strict"}), json!({}));
        assert!(Layer::of_annotations(&unknown, &last).errors[0].expected.contains("inbound-mode"));
    }

    #[test]
    fn a_mesh_config_is_checked_field_by_field() {
        let spec = json!({"inboundMode": true, "limit": 1, "limits": {"conections": 1, "memory": "1Mi"},
            "interception": {"proxyMark": "0x1000"}, "timeouts": {"connect": 5}});
        let fields: Vec<String> =
            check(&object("MeshConfig", json!({}), spec)).into_iter().map(|fault| fault.field).collect();
        let expected = [
            "spec.inboundMode",
            "spec.limit",
            "spec.limits.conections",
            "spec.timeouts.connect",
            "spec.interception",
        ];
        assert_eq!(fields, expected);
    }

    #[test]
    fn defaults_are_valid_and_named_once() {
        let settings = Settings::default();
        for (index, setting) in SETTINGS.iter().enumerate() {
            let text = setting.text(&settings);
            let mut again = Settings::default();
            assert!((setting.set)(&mut again, &text), "{} {text}", setting.path);
            assert_eq!(again, settings);
            assert!(SETTINGS[..index].iter().all(|other| other.path != setting.path));
        }
    }
}
