//! What routes need to know of Services, read once each.

use std::collections::HashMap;
use std::sync::Arc;

use culvert_api::mesh as pb;
use culvert_objects::types::{Protocol, ServiceSpec, ServiceType, SessionAffinity};
use culvert_objects::{Kind, Objects};
use culvert_routing::model::Carries;

use crate::translate::services;

/// Services by namespace and name, as they are asked for.
pub struct Services<'a> {
    objects: &'a Objects,
    known: HashMap<(String, String), Option<Arc<ServiceFacts>>>,
}

/// One Service.
#[derive(Debug)]
pub struct ServiceFacts {
    pub nature: Nature,
    pub affinity: SessionAffinity,
    pub ports: Vec<PortFacts>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    /// With virtual addresses, or waiting for them.
    Virtual,
    Headless,
    ExternalName,
}

#[derive(Debug)]
pub struct PortFacts {
    pub number: u16,
    pub name: String,
    pub protocol: Protocol,
    pub app_protocol: Option<String>,
}

impl PortFacts {
    /// The `appProtocol`, else the name, where it declares something that routes of a sort do not carry. For requests: bytes
    /// that are no HTTP, or HTTP in TLS. For TLS: HTTP in the clear.
    pub fn contradicts(&self, carries: Carries) -> Option<&str> {
        use pb::AppProtocol::{Http1, Http2, Tcp, Tls};
        let written = self.app_protocol.as_deref().filter(|written| !written.is_empty());
        let declared = services::declared(written, &self.name);
        let contradicts = match carries {
            Carries::Requests => matches!(declared, Tcp | Tls),
            Carries::Tls => matches!(declared, Http1 | Http2),
            Carries::Bytes => false,
        };
        contradicts.then(|| written.unwrap_or(&self.name))
    }

    /// The same for what is sent to the port. A name alone does not contradict: many call a port `tcp` that speaks HTTP.
    pub fn cannot_take(&self, carries: Carries) -> Option<&str> {
        self.contradicts(carries).filter(|_| self.app_protocol.as_deref().is_some_and(|of| !of.is_empty()))
    }
}

impl<'a> Services<'a> {
    pub fn new(objects: &'a Objects) -> Self {
        Self { objects, known: HashMap::new() }
    }

    /// None when there is no such Service.
    pub fn find(&mut self, namespace: &str, name: &str) -> Option<Arc<ServiceFacts>> {
        let key = (namespace.to_owned(), name.to_owned());
        self.known.entry(key).or_insert_with(|| facts(self.objects, namespace, name)).clone()
    }
}

impl ServiceFacts {
    /// The TCP ports; UDP and SCTP pass by the mesh.
    pub fn tcp_ports(&self) -> impl Iterator<Item = &PortFacts> {
        self.ports.iter().filter(|port| port.protocol == Protocol::Tcp)
    }
}

fn facts(objects: &Objects, namespace: &str, name: &str) -> Option<Arc<ServiceFacts>> {
    let spec: ServiceSpec = objects.find(Kind::Service, namespace, name)?.spec().ok()?;
    let nature = match spec.kind {
        ServiceType::ExternalName => Nature::ExternalName,
        _ if spec.is_headless() => Nature::Headless,
        _ => Nature::Virtual,
    };
    let ports = spec.ports.into_iter().map(|port| PortFacts {
        number: port.port,
        name: port.name,
        protocol: port.protocol,
        app_protocol: port.app_protocol,
    });
    Some(Arc::new(ServiceFacts { nature, affinity: spec.session_affinity, ports: ports.collect() }))
}
