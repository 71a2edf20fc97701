//! Settings: which `MeshConfig` is in force, what it and the namespaces' annotations say, and their statuses.

use std::collections::{BTreeMap, BTreeSet};

use culvert_api::mesh as pb;
use culvert_api::names::{MESH_DISABLED, MESH_ENABLED, MESH_LABEL};
use culvert_objects::mesh_config::{
    DEFAULT_NAME, Effective, LastGood, Layer, SettingError, Settings, effective,
};
use culvert_objects::settings::{
    AccessLogFilter, AccessLogFormat, InboundMode, OutboundPolicy, PortRanges, Switch, UdpPolicy,
};
use culvert_objects::types::{NodeSpec, XMeshSpec};
use culvert_objects::{Kind, Object, ObjectKey, Objects};

use super::{Environment, Statuses};
use crate::CONTROLLER_NAME;
use crate::status::{DesiredCondition, DesiredStatus};

/// Condition type on namespaces and pods with a bad annotation.
const SETTINGS_CONDITION: &str = "culvert.dev/Settings";

/// The settings in force above the pods.
#[derive(Clone, Debug, PartialEq)]
pub struct InForce {
    mesh_layer: Option<Layer>,
    mesh: Effective,
    namespaces: BTreeMap<String, Namespace>,
    last_good: LastGood,
}

#[derive(Clone, Debug, PartialEq)]
struct Namespace {
    layer: Layer,
    settings: pb::WorkloadSettings,
}

impl InForce {
    /// What holds for the whole mesh.
    pub fn mesh(&self) -> &Settings {
        &self.mesh.settings
    }

    /// The settings that were valid in this pass; the `last` of the next.
    pub fn last_good(&self) -> &LastGood {
        &self.last_good
    }

    /// What holds for a pod, with where each value comes from; and everything said above and at it that cannot be used.
    pub fn explained(&self, pod: &Object, last: &LastGood) -> (Effective, Vec<SettingError>) {
        let namespace = self.namespaces.get(pod.namespace()).map(|namespace| &namespace.layer);
        let own = Layer::of_annotations(pod, last);
        let found = effective(self.mesh_layer.as_ref(), namespace, Some(&own));
        let layers = [self.mesh_layer.as_ref(), namespace, Some(&own)].into_iter().flatten();
        (found, layers.flat_map(|layer| layer.errors.clone()).collect())
    }

    /// What holds for a pod; its status when its annotations are at fault.
    pub fn of_pod(
        &self,
        pod: &Object,
        last: &LastGood,
        next: &mut LastGood,
    ) -> (pb::WorkloadSettings, Option<DesiredCondition>) {
        let namespace = self.namespaces.get(pod.namespace());
        let layer = Layer::of_annotations(pod, last);
        if layer.is_empty() {
            let settings = namespace.map(|namespace| namespace.settings.clone());
            return (settings.unwrap_or_else(|| workload_settings(self.mesh())), None);
        }
        next.remember(&layer);
        let above = namespace.map(|namespace| &namespace.layer);
        let settings = effective(self.mesh_layer.as_ref(), above, Some(&layer)).settings;
        (workload_settings(&settings), fault(&layer))
    }
}

/// Finds what is in force and says in statuses what is not.
pub fn in_force(objects: &Objects, last: &LastGood, statuses: &mut Statuses) -> InForce {
    let mut last_good = LastGood::default();
    let name = config_name(objects);
    let mesh_layer = objects.find(Kind::MeshConfig, "", &name).map(|config| Layer::of_mesh(config, last));
    mesh_config_statuses(objects, &name, mesh_layer.as_ref(), statuses);
    if let Some(layer) = &mesh_layer {
        last_good.remember(layer);
    }
    let mut namespaces = BTreeMap::new();
    for namespace in objects.of_kind(Kind::Namespace) {
        let layer = Layer::of_annotations(namespace, last);
        last_good.remember(&layer);
        if let Some(condition) = fault(&layer).or_else(|| label_fault(namespace)) {
            let status = DesiredStatus::of(namespace).with_condition(condition);
            statuses.insert(namespace.key(), status.into());
        }
        let settings = workload_settings(&effective(mesh_layer.as_ref(), Some(&layer), None).settings);
        namespaces.insert(namespace.name().to_owned(), Namespace { layer, settings });
    }
    let mesh = effective(mesh_layer.as_ref(), None, None);
    InForce { mesh_layer, mesh, namespaces, last_good }
}

/// The name that the mesh's XMesh gives (the first by name, if there are several), else the default.
pub fn config_name(objects: &Objects) -> String {
    let named = objects.of_kind(Kind::XMesh).find_map(|mesh| {
        let spec = mesh.spec::<XMeshSpec>().ok()?;
        let parameters = spec.parameters_ref.filter(|_| spec.controller_name == CONTROLLER_NAME)?;
        (parameters.group == "culvert.dev" && parameters.kind == Kind::MeshConfig.as_str())
            .then_some(parameters.name)
    });
    named.unwrap_or_else(|| DEFAULT_NAME.to_owned())
}

fn mesh_config_statuses(objects: &Objects, used: &str, layer: Option<&Layer>, statuses: &mut Statuses) {
    let mut unreadable: BTreeMap<&ObjectKey, Vec<String>> = BTreeMap::new();
    for problem in objects.problems() {
        if let Some(key) = problem.object.as_ref().filter(|key| key.kind == Kind::MeshConfig) {
            unreadable.entry(key).or_default().push(format!("{}: {}", problem.field, problem.message));
        }
    }
    let known: BTreeSet<ObjectKey> = objects.of_kind(Kind::MeshConfig).map(|config| config.key()).collect();
    for key in known.iter().chain(unreadable.keys().copied().filter(|key| !known.contains(key))) {
        let mut faults = unreadable.get(key).cloned().unwrap_or_default();
        let in_use = key.name == used;
        if in_use {
            faults.extend(layer.into_iter().flat_map(|layer| &layer.errors).map(ToString::to_string));
        }
        let condition = match (faults.is_empty(), in_use) {
            (false, _) => {
                let message = format!("{}; the last good values stay in force", faults.join("; "));
                DesiredCondition::no("Accepted", "Invalid", message)
            }
            (true, true) => DesiredCondition::yes("Accepted", "Accepted", "in force"),
            (true, false) => {
                DesiredCondition::no("Accepted", "NotUsed", format!("the mesh uses the MeshConfig {used}"))
            }
        };
        let status = match objects.get(key) {
            Some(config) => DesiredStatus::of(config),
            None => DesiredStatus::of(&Object::new(key.clone())),
        };
        statuses.insert(key.clone(), status.with_condition(condition).into());
    }
}

fn fault(layer: &Layer) -> Option<DesiredCondition> {
    if layer.errors.is_empty() {
        return None;
    }
    let faults: Vec<String> = layer.errors.iter().map(ToString::to_string).collect();
    Some(DesiredCondition::no(SETTINGS_CONDITION, "InvalidValue", faults.join("; ")))
}

fn label_fault(namespace: &Object) -> Option<DesiredCondition> {
    let value = namespace.label(MESH_LABEL).filter(|value| ![MESH_ENABLED, MESH_DISABLED].contains(value))?;
    let message = format!(
        "{}: label {MESH_LABEL}: {value:?} is not valid, expected {MESH_ENABLED} or {MESH_DISABLED}; \
         the namespace is not enrolled",
        namespace.key()
    );
    Some(DesiredCondition::no(SETTINGS_CONDITION, "InvalidValue", message))
}

/// The resource for the whole mesh.
pub fn resource(objects: &Objects, environment: &Environment, settings: &Settings) -> pb::MeshSettings {
    let texts = |ranges: &[ipnet::IpNet]| ranges.iter().map(ToString::to_string).collect::<Vec<_>>();
    let pod_cidrs = match environment.pod_cidrs.as_slice() {
        [] => node_ranges(objects),
        given => texts(given),
    };
    pb::MeshSettings {
        trust_domain: settings.trust_domain.0.clone(),
        trust_domain_aliases: settings.trust_domain_aliases.0.iter().map(|alias| alias.0.clone()).collect(),
        cluster: environment.cluster.clone(),
        network: environment.network.clone(),
        pod_cidrs,
        service_cidrs: texts(&environment.service_cidrs),
        interception: Some(pb::Interception {
            mark_mask: settings.mark_mask.0,
            proxy_mark: settings.proxy_mark.0,
            outbound_mark: settings.outbound_mark.0,
            reply_mark: settings.reply_mark.0,
            inbound_mark: settings.inbound_mark.0,
            route_table: settings.route_table.0,
            rule_priority: settings.rule_priority.0,
            outbound_port: settings.outbound_port.0.into(),
            inbound_port: settings.inbound_port.0.into(),
            hbone_port: settings.hbone_port.0.into(),
        }),
        access_log: Some(pb::AccessLog {
            filter: match settings.access_log_filter {
                AccessLogFilter::Failures => pb::AccessLogFilter::Failures,
                AccessLogFilter::All => pb::AccessLogFilter::All,
                AccessLogFilter::None => pb::AccessLogFilter::None,
            }
            .into(),
            format: match settings.access_log_format {
                AccessLogFormat::Json => pb::AccessLogFormat::Json,
                AccessLogFormat::Text => pb::AccessLogFormat::Text,
            }
            .into(),
        }),
        // They come from elsewhere (`session_keys`), for they are no objects.
        session_keys: Vec::new(),
    }
}

fn node_ranges(objects: &Objects) -> Vec<String> {
    let specs = objects.of_kind(Kind::Node).filter_map(|node| node.spec::<NodeSpec>().ok());
    let ranges = specs.flat_map(|spec| spec.pod_cidrs.into_iter().chain([spec.pod_cidr]));
    ranges.filter(|range| !range.is_empty()).collect::<BTreeSet<_>>().into_iter().collect()
}

fn mode(mode: InboundMode) -> i32 {
    match mode {
        InboundMode::Permissive => pb::InboundMode::Permissive,
        InboundMode::Strict => pb::InboundMode::Strict,
    }
    .into()
}

fn ranges(ranges: &PortRanges) -> Vec<pb::PortRange> {
    let range = |range: &culvert_objects::settings::PortRange| pb::PortRange {
        first: range.first.into(),
        last: range.last.into(),
    };
    ranges.0.iter().map(range).collect()
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What one workload is told.
pub fn workload_settings(settings: &Settings) -> pb::WorkloadSettings {
    let port_mode = |(port, of): &(u16, InboundMode)| pb::PortMode { port: (*port).into(), mode: mode(*of) };
    pb::WorkloadSettings {
        inbound_mode: mode(settings.inbound_mode),
        port_modes: settings.inbound_mode_ports.0.iter().map(port_mode).collect(),
        outbound_policy: match settings.outbound_policy {
            OutboundPolicy::Allow => pb::OutboundPolicy::Allow,
            OutboundPolicy::RegistryOnly => pb::OutboundPolicy::RegistryOnly,
        }
        .into(),
        udp: match settings.udp {
            UdpPolicy::Allow => pb::UdpPolicy::Allow,
            UdpPolicy::Deny => pb::UdpPolicy::Deny,
        }
        .into(),
        exclude_outbound_ports: ranges(&settings.exclude_outbound_ports),
        exclude_outbound_cidrs: settings.exclude_outbound_cidrs.0.iter().map(ToString::to_string).collect(),
        exclude_inbound_ports: ranges(&settings.exclude_inbound_ports),
        opaque_ports: ranges(&settings.opaque_ports),
        limits: Some(pb::Limits {
            connections: settings.max_connections.0,
            memory_bytes: settings.max_memory.0,
            requests: settings.max_requests.0,
            request_head_bytes: settings.max_request_head.0,
            streams: settings.max_streams.0,
        }),
        timeouts: Some(pb::Timeouts {
            connect_ms: millis(settings.connect_timeout),
            tls_handshake_ms: millis(settings.tls_handshake_timeout),
            tunnel_handshake_ms: millis(settings.tunnel_handshake_timeout),
            unknown_destination_ms: millis(settings.unknown_destination_timeout),
            half_closed_idle_ms: millis(settings.half_closed_idle_timeout),
            drain_ms: millis(settings.drain_timeout),
            request_head_ms: millis(settings.request_head_timeout),
            body_idle_ms: millis(settings.body_idle_timeout),
            connection_idle_ms: millis(settings.connection_idle_timeout),
        }),
        ejection: Some(pb::Ejection {
            disabled: settings.ejection == Switch::Disabled,
            failures: settings.ejection_failures.0,
            connect_failures: settings.ejection_connect_failures.0,
            base_ms: millis(settings.ejection_base),
            max_ms: millis(settings.ejection_max),
            max_percent: settings.ejection_max_percent.0.into(),
        }),
    }
}
