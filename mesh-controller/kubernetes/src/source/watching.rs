//! One kind: listed in pages, watched from there on, resumed at the last resourceVersion after a failure, listed anew
//! when the API server no longer has that (410).

use std::time::Duration;

use backon::ExponentialBuilder;
use futures::StreamExt as _;
use kube::Client;
use kube::api::{Api, DynamicObject};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Error, Event, ExponentialBackoff, watcher};
use tokio::sync::mpsc;

use super::Purpose;
use super::reading::{key, read};
use super::store::{Change, News};
use crate::client::{describe, is_status};
use crate::discovery::Resource;

/// Of a list, at a time: what is read of an object is small, but what comes of it is ten times that.
const PAGE: u32 = 100;
/// After so many seconds the API server ends a watch, and it is resumed. One that is silent for longer is dead.
const WATCH_SECONDS: u32 = 120;
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// Follows one kind until nobody takes its changes. `epoch` tells its changes from those of an earlier watch.
pub async fn follow(
    client: Client,
    resource: Resource,
    purpose: Purpose,
    epoch: u64,
    changes: mpsc::Sender<Change>,
) {
    loop {
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource.api());
        let config = watcher::Config::default().page_size(PAGE).timeout(WATCH_SECONDS);
        let backoff = ExponentialBackoff::from(
            ExponentialBuilder::default()
                .with_min_delay(FIRST_RETRY)
                .with_max_delay(LONGEST_RETRY)
                .without_max_times()
                .with_jitter(),
        );
        let mut events = std::pin::pin!(watcher(api, config).backoff(backoff));
        while let Some(event) = events.next().await {
            let starts_over = match &event {
                Err(Error::WatchStartFailed(error) | Error::WatchFailed(error)) => is_status(error, 410),
                _ => false,
            };
            let news = match event {
                Ok(Event::Init) => News::Listing,
                Ok(Event::InitApply(object)) => News::Listed(read(resource, purpose, object)),
                Ok(Event::InitDone) => News::Complete,
                Ok(Event::Apply(object)) => News::Changed(read(resource, purpose, object)),
                Ok(Event::Delete(object)) => News::Gone(key(resource, &object.metadata)),
                Err(error) => News::Failed(describe(&error)),
            };
            if changes.send(Change { kind: resource.kind, epoch, news }).await.is_err() {
                return;
            }
            // The library knows of this as an event of the watch only. Said with the status of the answer, it would ask for the
            // same version again, for ever.
            if starts_over {
                break;
            }
        }
        tokio::time::sleep(FIRST_RETRY).await;
    }
}
