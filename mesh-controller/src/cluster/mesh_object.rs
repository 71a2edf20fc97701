//! The mesh's own object (XMesh, GEP-3949): made when its kind is there and nobody else has made one for Culvert.

use std::time::Duration;

use culvert_kubernetes::client::{RequestError, within};
use culvert_kubernetes::lease::Leadership;
use culvert_kubernetes::{Client, Resource, Served};
use culvert_objects::Kind;
use kube::api::{Api, DynamicObject, ListParams, PostParams};
use serde_json::json;
use tokio::sync::watch;

use crate::{CONTROLLER_NAME, MESH_NAME};

/// How often it is looked at: somebody may have deleted it.
const LOOK: Duration = Duration::from_secs(30);

/// While this replica leads, sees to it that there is an XMesh of Culvert's. Never ends.
pub async fn keep(
    client: Client,
    mut served: watch::Receiver<Result<Served, String>>,
    mut leadership: Leadership,
) {
    let mut said = String::new();
    loop {
        leadership.held().await;
        let resource = served.borrow_and_update().as_ref().ok().and_then(|served| served.get(Kind::XMesh));
        if let Some(resource) = resource {
            let found =
                look(&client, resource).await.unwrap_or_else(|error| format!("cannot be made: {error}"));
            if found != said {
                tracing::info!(name = MESH_NAME, "XMesh: {found}");
                said = found;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            Ok(()) = served.changed() => {}
        }
    }
}

/// What it came to, in words.
async fn look(client: &Client, resource: Resource) -> Result<String, RequestError> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource.api());
    let all = within(api.list(&ListParams::default())).await?;
    let controller = |mesh: &DynamicObject| {
        let name = mesh.data.pointer("/spec/controllerName").and_then(serde_json::Value::as_str);
        name.unwrap_or_default().to_owned()
    };
    let name = |mesh: &DynamicObject| mesh.metadata.name.clone().unwrap_or_default();
    if let Some(own) = all.items.iter().find(|mesh| controller(mesh) == CONTROLLER_NAME) {
        return Ok(format!("{} is there", name(own)));
    }
    if let Some(other) = all.items.iter().find(|mesh| name(mesh) == MESH_NAME) {
        return Ok(format!("{MESH_NAME} is of {}; delete it, and Culvert makes its own", controller(other)));
    }
    let mut mesh = DynamicObject::new(MESH_NAME, &resource.api());
    mesh.data = json!({"spec": {"controllerName": CONTROLLER_NAME}});
    match within(api.create(&PostParams::default(), &mesh)).await {
        Ok(_) => Ok("made".to_owned()),
        Err(error) if error.is_status(409) => Ok("made by somebody else just now".to_owned()),
        Err(error) => Err(error),
    }
}
