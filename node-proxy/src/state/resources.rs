//! The controller's resources as they come and go: accepted ones go into the builder, refused ones are listed, and the
//! wire form of what is accepted is held for the disk and for resuming the stream.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use culvert_api::mesh as wire;
use culvert_api::mesh::ResourceType;
use culvert_api::mesh::resource::Body;
use prost::Message;
use prost::bytes::Bytes;
use thiserror::Error;

use super::builder::Builder;
use super::convert::{self, ConversionError, Converter};
use super::kept::Kept;
use super::model::{ServiceKey, WorkloadUid};
use super::snapshot::{Map, Origin, RefusedResource, Snapshot};

/// Bytes of one page of [`wire::Held`], at most.
const HELD_PAGE: usize = 256 * 1024;

/// The types of resources that this version knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceKind {
    MeshSettings,
    Workload,
    Service,
    Listener,
    Route,
    Namespace,
}

impl ResourceKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MeshSettings => "mesh_settings",
            Self::Workload => "workload",
            Self::Service => "service",
            Self::Listener => "listener",
            Self::Route => "route",
            Self::Namespace => "namespace",
        }
    }

    fn from_wire(number: i32) -> Option<Self> {
        match ResourceType::try_from(number) {
            Ok(ResourceType::MeshSettings) => Some(Self::MeshSettings),
            Ok(ResourceType::Workload) => Some(Self::Workload),
            Ok(ResourceType::Service) => Some(Self::Service),
            Ok(ResourceType::Listener) => Some(Self::Listener),
            Ok(ResourceType::Route) => Some(Self::Route),
            Ok(ResourceType::Namespace) => Some(Self::Namespace),
            Ok(ResourceType::Unspecified) | Err(_) => None,
        }
    }

    fn to_wire(self) -> ResourceType {
        match self {
            Self::MeshSettings => ResourceType::MeshSettings,
            Self::Workload => ResourceType::Workload,
            Self::Service => ResourceType::Service,
            Self::Listener => ResourceType::Listener,
            Self::Route => ResourceType::Route,
            Self::Namespace => ResourceType::Namespace,
        }
    }
}

/// Names a resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceId {
    pub kind: ResourceKind,
    pub name: Arc<str>,
}

impl ResourceId {
    fn to_wire(&self) -> wire::ResourceKey {
        wire::ResourceKey { r#type: self.kind.to_wire().into(), name: self.name.to_string() }
    }
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.name)
    }
}

/// Why a resource is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RefusalError {
    #[error("the resource has no key")]
    NoKey,
    #[error("the resource type {0} is not known to this version")]
    UnknownType(i32),
    #[error("the resource has no body that this version knows")]
    NoBody,
    #[error(transparent)]
    Conversion(#[from] ConversionError),
}

/// An accepted resource.
#[derive(Clone, Debug)]
pub(super) struct HeldResource {
    pub version: Arc<str>,
    /// The whole [`wire::Resource`].
    pub encoded: Bytes,
    /// Orders resources by when they claimed their addresses: putting them in again in this order gives each address
    /// to the same workload.
    pub claimed: u64,
}

/// All resources of the controller.
#[derive(Debug, Default)]
pub struct Resources {
    builder: Builder,
    converter: Converter,
    held: Map<ResourceId, HeldResource>,
    /// Routes that were refused without a version that works: kept on disk too, so that a restart does not pass on
    /// unrouted what was answered 500 before.
    unusable: Map<ResourceId, HeldResource>,
    refused: BTreeMap<ResourceId, RefusedResource>,
    refused_changed: bool,
    claims: u64,
    node: String,
    has_settings: bool,
}

impl Resources {
    /// What an earlier process kept. Resources that this version refuses are left out.
    pub fn restore(kept: &Kept) -> Self {
        let mut resources = Self::default();
        resources.set_node(&kept.node);
        for resource in kept.resources() {
            resources.upsert(resource);
        }
        resources
    }

    pub fn node(&self) -> &str {
        &self.node
    }

    pub fn set_node(&mut self, node: &str) {
        node.clone_into(&mut self.node);
        self.builder.set_node(node);
    }

    /// Takes one page in; what is refused is returned for the controller.
    pub fn apply(&mut self, page: wire::Page) -> Vec<wire::Refused> {
        let refused = page.upserts.into_iter().filter_map(|resource| self.upsert(resource)).collect();
        for key in page.removals {
            self.remove(key);
        }
        refused
    }

    /// The state at a mark: what to decide on and what to keep. `None` while there are no settings: that is no complete
    /// state.
    pub fn freeze(&mut self, origin: Origin, version: &str) -> Option<(Snapshot, Kept)> {
        self.converter.prune();
        if std::mem::take(&mut self.refused_changed) {
            self.builder.set_refused(self.refused.values().cloned().collect());
        }
        let snapshot = self.builder.freeze(origin, version);
        let kept = Kept::new(version, &self.node, self.held.clone(), self.unusable.clone());
        self.has_settings.then_some((snapshot, kept))
    }

    /// What is held, for resuming the stream, in pages.
    pub fn held(&self) -> Vec<wire::Held> {
        let mut pages = Vec::new();
        let mut page = wire::Held::default();
        let mut size = 0;
        for (id, held) in self.held.iter() {
            let resource =
                wire::ResourceVersion { key: Some(id.to_wire()), version: held.version.to_string() };
            size += resource.encoded_len() + 8;
            page.resources.push(resource);
            if size >= HELD_PAGE {
                pages.push(std::mem::take(&mut page));
                size = 0;
            }
        }
        if !page.resources.is_empty() {
            pages.push(page);
        }
        pages
    }

    /// For a new stream: the controller sends again whatever differs from what is held. What it does not send is, by
    /// now, as it is held.
    pub fn forget_refused(&mut self) {
        self.refused_changed |= !self.refused.is_empty();
        self.refused.clear();
        self.unusable = Map::new_sync();
        self.builder.forget_refused_routes();
    }

    /// Resources refused at present.
    pub fn refused_count(&self) -> u32 {
        u32::try_from(self.refused.len()).unwrap_or(u32::MAX)
    }

    fn upsert(&mut self, resource: wire::Resource) -> Option<wire::Refused> {
        let encoded = Bytes::from(resource.encode_to_vec());
        let (key, version) = (resource.key.clone(), resource.version.clone());
        let error = match self.accept(resource) {
            Ok((id, claims)) => {
                self.hold(id, &version, encoded, claims);
                return None;
            }
            Err(error) => error,
        };
        let refused = wire::Refused { key: key.clone(), version, reason: error.to_string() };
        self.refuse_route(encoded, &refused);
        if let Some((kind, key)) = key.and_then(|key| Some((ResourceKind::from_wire(key.r#type)?, key))) {
            self.list_refused(ResourceId { kind, name: key.name.into() }, &refused);
        }
        Some(refused)
    }

    /// Converts and builds in; says whether an address was claimed.
    fn accept(&mut self, resource: wire::Resource) -> Result<(ResourceId, bool), RefusalError> {
        let key = resource.key.ok_or(RefusalError::NoKey)?;
        let kind = ResourceKind::from_wire(key.r#type).ok_or(RefusalError::UnknownType(key.r#type))?;
        let claims = match (kind, resource.body.ok_or(RefusalError::NoBody)?) {
            (ResourceKind::MeshSettings, Body::MeshSettings(settings)) => {
                self.builder.set_mesh(settings.try_into()?);
                self.has_settings = true;
                false
            }
            (ResourceKind::Workload, Body::Workload(workload)) => {
                self.builder.upsert_workload(self.converter.workload(&key.name, workload)?)
            }
            (ResourceKind::Service, Body::Service(service)) => {
                self.builder.upsert_service(self.converter.service(&key.name, service)?)
            }
            (ResourceKind::Listener, Body::Listener(listener)) => {
                self.builder.upsert_listener(convert::routes::listener(&key.name, listener)?);
                false
            }
            (ResourceKind::Route, Body::Route(route)) => {
                let route = convert::routes::route(&key.name, route)?;
                self.builder.upsert_route(&key.name.as_str().into(), route);
                false
            }
            (ResourceKind::Namespace, Body::Namespace(namespace)) => {
                let (name, enrols) = convert::namespace(&key.name, namespace)?;
                self.builder.upsert_namespace(name, enrols);
                false
            }
            _ => return Err(ConversionError::OtherType.into()),
        };
        Ok((ResourceId { kind, name: key.name.into() }, claims))
    }

    fn hold(&mut self, id: ResourceId, version: &str, encoded: Bytes, claims: bool) {
        let claimed = match self.held.get(&id).filter(|_| !claims) {
            Some(held) => held.claimed,
            None => {
                self.claims += 1;
                self.claims
            }
        };
        self.refused_changed |= self.refused.remove(&id).is_some();
        self.unusable.remove_mut(&id);
        self.held.insert_mut(id, HeldResource { version: version.into(), encoded, claimed });
    }

    /// A refused route without a version that works stays in the way: what it asked for is not known.
    fn refuse_route(&mut self, encoded: Bytes, refused: &wire::Refused) {
        let Some(key) = refused.key.as_ref().filter(|key| key.r#type() == ResourceType::Route) else {
            return;
        };
        let id = ResourceId { kind: ResourceKind::Route, name: key.name.as_str().into() };
        if self.held.contains_key(&id) {
            return;
        }
        let resource = wire::Resource::decode(encoded.clone()).unwrap_or_default();
        let route = match &resource.body {
            Some(Body::Route(route)) => Some(route),
            _ => None,
        };
        if let Some(unusable) = convert::routes::unusable(&id.name, route, &refused.reason) {
            self.builder.refuse_route(&id.name, unusable);
            let version = refused.version.as_str().into();
            self.unusable.insert_mut(id, HeldResource { version, encoded, claimed: u64::MAX });
        }
    }

    fn list_refused(&mut self, id: ResourceId, refused: &wire::Refused) {
        let resource = RefusedResource {
            kind: id.kind.as_str(),
            name: id.name.clone(),
            version: refused.version.as_str().into(),
            reason: refused.reason.clone(),
            last_good_in_force: self.held.contains_key(&id),
        };
        tracing::warn!(
            resource = %id,
            reason = resource.reason,
            last_good_in_force = resource.last_good_in_force,
            "resource refused"
        );
        self.refused.insert(id, resource);
        self.refused_changed = true;
    }

    fn remove(&mut self, key: wire::ResourceKey) {
        let Some(kind) = ResourceKind::from_wire(key.r#type) else { return };
        let id = ResourceId { kind, name: key.name.into() };
        match kind {
            // A mesh without settings does not exist; the last ones stay.
            ResourceKind::MeshSettings => return,
            ResourceKind::Workload => self.builder.remove_workload(&WorkloadUid(id.name.clone())),
            ResourceKind::Service => self.builder.remove_service(&ServiceKey(id.name.clone())),
            ResourceKind::Listener => self.builder.remove_listener(&id.name),
            ResourceKind::Route => self.builder.remove_route(&id.name),
            ResourceKind::Namespace => self.builder.remove_namespace(&id.name),
        }
        self.held.remove_mut(&id);
        self.unusable.remove_mut(&id);
        self.refused_changed |= self.refused.remove(&id).is_some();
    }
}

#[cfg(test)]
mod tests;
