//! Objects of an API server, read once: for somebody who asks, not for who follows. They are those that the source publishes, with
//! the statuses that they have.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use culvert_objects::{FieldError, Kind, ManifestError, ObjectKey, Objects, Scope};
use futures::future::join_all;
use kube::Client;
use kube::api::{Api, DynamicObject, ListParams};

use crate::client::{RequestError, within};
use crate::discovery::{self, Resource};
use crate::source::Purpose;
use crate::source::reading::{Item, read};

const PAGE: u32 = 500;

/// What was read.
#[derive(Debug, Default)]
pub struct Listing {
    /// With what does not read among their problems.
    pub objects: Objects,
    /// Kinds that the API server has and did not list, and why.
    pub unlisted: BTreeMap<Kind, RequestError>,
}

/// Reads all objects of these kinds, of a namespace those of the kinds that live in one; kinds that the API server does not have are
/// left out.
///
/// # Errors
/// When it does not say which kinds it has. A single kind that it does not list is in the result.
pub async fn list(client: &Client, kinds: &[Kind], namespace: Option<&str>) -> Result<Listing, RequestError> {
    let served = discovery::ask(client, kinds).await?;
    let lists =
        served.iter().map(|resource| async move { (resource.kind, all(client, resource, namespace).await) });
    let (mut listing, mut problems) = (Listing::default(), Vec::new());
    for (kind, listed) in join_all(lists).await {
        match listed {
            Ok(items) => {
                for Item { key, object, status: _ } in items {
                    match object {
                        Ok(object) => listing.objects.insert(Arc::new(object)),
                        Err(fault) => problems.push(problem(key, fault)),
                    }
                }
            }
            Err(error) => drop(listing.unlisted.insert(kind, error)),
        }
    }
    listing.objects = listing.objects.with_problems(problems);
    Ok(listing)
}

async fn all(
    client: &Client,
    resource: Resource,
    namespace: Option<&str>,
) -> Result<Vec<Item>, RequestError> {
    let api: Api<DynamicObject> = match namespace.filter(|_| resource.kind.scope() == Scope::Namespaced) {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource.api()),
        None => Api::all_with(client.clone(), &resource.api()),
    };
    let mut params = ListParams::default().limit(PAGE);
    let mut items = Vec::new();
    loop {
        let page = within(api.list(&params)).await?;
        items.extend(page.items.into_iter().map(|object| read(resource, Purpose::Show, object)));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(items),
        }
    }
}

fn problem(key: ObjectKey, fault: FieldError) -> ManifestError {
    ManifestError {
        file: PathBuf::from(crate::source::ORIGIN),
        document: 0,
        object: Some(key),
        field: fault.field,
        message: fault.message,
    }
}
