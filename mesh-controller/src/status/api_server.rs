//! Writing statuses to the API server: read what the object says from the watches, merge, write if that differs. One
//! write per object; a conflict reads the object and tries again.

use std::time::Duration;

use chrono::Utc;
use culvert_kubernetes::client::{RequestError, within};
use culvert_kubernetes::lease::Leadership;
use culvert_kubernetes::source::{CurrentStatus, CurrentStatuses};
use culvert_kubernetes::{Client, Served};
use culvert_objects::ObjectKey;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use tokio::sync::{mpsc, watch};

use super::merge::{self, Change};
use super::writer::NotWritten;
use super::{DesiredStatus, StatusQueue};
use crate::hub::Event;
use crate::metrics::StatusResult;

/// Who has written, for `managedFields`.
const FIELD_MANAGER: &str = "culvert-controller";
/// Attempts for one status while others change the object.
const ATTEMPTS: usize = 5;
/// How often everything that is wanted is compared with what is there: others may have changed it.
const COMPARE: Duration = Duration::from_secs(300);

/// Statuses of objects of an API server.
pub struct ApiStatuses {
    pub client: Client,
    pub served: watch::Receiver<Result<Served, String>>,
    pub current: CurrentStatuses,
    /// Nothing is written without it.
    pub leadership: Leadership,
}

impl ApiStatuses {
    /// The objects that say something of Culvert's.
    pub fn existing(&self) -> Vec<ObjectKey> {
        self.current.keys(|key, status| merge::is_ours(key.kind, status))
    }

    /// Brings one object to say what is wanted.
    pub async fn write(
        &self,
        key: &ObjectKey,
        wanted: Option<&DesiredStatus>,
    ) -> Result<StatusResult, NotWritten> {
        // Gone, or not arrived: then what is wanted of it is asked for again.
        let Some(mut current) = self.current.get(key) else { return Ok(StatusResult::Unchanged) };
        let Some(api) = self.api(key) else { return Ok(StatusResult::Unchanged) };
        let mut leadership = self.leadership.clone();
        for _ in 0..ATTEMPTS {
            let Some(change) = merge::change(key.kind, wanted, &current, Utc::now()) else {
                return Ok(StatusResult::Unchanged);
            };
            if !leadership.is_held() {
                return Ok(StatusResult::Unchanged);
            }
            let written = tokio::select! {
                written = patch(&api, &key.name, change) => written,
                // The next leader may be writing already.
                () = leadership.lost() => return Ok(StatusResult::Unchanged),
            };
            match written {
                Ok(object) => {
                    self.current.wrote(key, CurrentStatus::of(key.kind, &object));
                    let removed = wanted.is_none();
                    return Ok(if removed { StatusResult::Removed } else { StatusResult::Written });
                }
                Err(error) if error.is_status(404) => return Ok(StatusResult::Unchanged),
                Err(error) if error.is_status(409) => match within(api.get_opt(&key.name)).await {
                    Ok(Some(object)) => current = CurrentStatus::of(key.kind, &object),
                    Ok(None) => return Ok(StatusResult::Unchanged),
                    Err(error) => return Err(NotWritten::Later(error.to_string())),
                },
                Err(error) if error.is_refusal() && !error.is_status(403) => {
                    return Err(NotWritten::Never(error.to_string()));
                }
                Err(error) => return Err(NotWritten::Later(error.to_string())),
            }
        }
        Err(NotWritten::Later(format!("others changed it {ATTEMPTS} times in a row")))
    }

    fn api(&self, key: &ObjectKey) -> Option<Api<DynamicObject>> {
        let resource = self.served.borrow().as_ref().ok()?.get(key.kind)?.api();
        Some(match &key.namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        })
    }
}

async fn patch(api: &Api<DynamicObject>, name: &str, change: Change) -> Result<DynamicObject, RequestError> {
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    match change {
        Change::Conditions(patch) => within(api.patch_status(name, &params, &Patch::Strategic(patch))).await,
        Change::Whole(patch) => within(api.patch_status(name, &params, &Patch::Merge(patch))).await,
    }
}

/// Opens the queue whenever this replica leads and has everything wanted put in it, now and from time to time; closes it
/// when it leads no more. Ends when the hub does.
pub async fn lead(
    mut leadership: Leadership,
    current: CurrentStatuses,
    queue: StatusQueue,
    events: mpsc::Sender<Event>,
) {
    loop {
        queue.close();
        leadership.held().await;
        queue.open();
        loop {
            let existing = current.keys(|key, status| merge::is_ours(key.kind, status));
            if events.send(Event::Rewrite { existing }).await.is_err() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(COMPARE) => {}
                () = leadership.lost() => break,
            }
        }
    }
}
