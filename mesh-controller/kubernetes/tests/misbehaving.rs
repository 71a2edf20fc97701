//! The source against an API server that forgets versions, ends watches and answers in pages: a small one in this process,
//! because the real one cannot be made to.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy takes helpers of integration tests for code outside tests"
)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use culvert_identity::admin::Readiness;
use culvert_kubernetes::{Interest, Purpose, Server, Source, client};
use culvert_objects::{Kind, Objects};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Longer than anything here takes on a machine that is busy with other things.
const DEADLINE: Duration = Duration::from_secs(120);

fn pod(name: &str, version: u32) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "spec": {"nodeName": "one"},
        "metadata": {"name": name, "namespace": "shop", "uid": name, "resourceVersion": version.to_string()}})
}

fn list(version: u32, next: Option<&str>, items: &[Value]) -> String {
    let metadata = json!({"resourceVersion": version.to_string(), "continue": next});
    json!({"apiVersion": "v1", "kind": "PodList", "metadata": metadata, "items": items}).to_string()
}

fn gone() -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "Expired", "code": 410,
        "message": "too old resource version"})
}

/// The answer to one request: status, body, whether the connection then stays open.
fn answer(path: &str, earlier: &[String]) -> (u16, String, bool) {
    let nth = earlier.iter().filter(|before| is_list(before)).count();
    let event = |kind: &str, object: Value| json!({"type": kind, "object": object}).to_string() + "\n";
    let has = |part: &str| path.split(['?', '&']).any(|at| at == part);
    if path.starts_with("/apis") {
        return (200, json!({"apiVersion": "v1", "kind": "APIGroupList", "groups": []}).to_string(), false);
    }
    if has("continue=next") {
        return (200, list(40, None, &[pod("d", 39)]), false);
    }
    if is_list(path) {
        return match nth {
            0 => (200, list(10, None, &[pod("a", 9)]), false),
            1 => (200, list(30, None, &[pod("b", 12), pod("c", 29)]), false),
            _ => (200, list(40, Some("next"), &[pod("c", 29)]), false),
        };
    }
    if has("resourceVersion=10") {
        // One change, and the watch ends.
        (200, event("ADDED", pod("b", 12)), false)
    } else if has("resourceVersion=12") {
        // Forgotten, said with the status of the answer.
        (410, gone().to_string(), false)
    } else if has("resourceVersion=30") {
        // Forgotten, said as an event.
        (200, event("ERROR", gone()), false)
    } else if has("resourceVersion=40") {
        (200, event("DELETED", pod("c", 41)) + &event("ADDED", pod("e", 42)), true)
    } else {
        (500, "{}".to_owned(), false)
    }
}

fn is_list(path: &str) -> bool {
    path.starts_with("/api/v1/pods") && !path.contains("watch=true") && !path.contains("continue=next")
}

/// Returns what was asked.
async fn serve(listener: TcpListener, asked: Arc<Mutex<Vec<String>>>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let asked = asked.clone();
        tokio::spawn(async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => return,
                }
            }
            let path = String::from_utf8(head).unwrap().split(' ').nth(1).unwrap().to_owned();
            let (status, body, stays) = {
                let mut asked = asked.lock().unwrap();
                let answer = answer(&path, &asked);
                asked.push(path);
                answer
            };
            let head =
                format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n");
            let _ = stream.write_all((head + &body).as_bytes()).await;
            if stays {
                tokio::time::sleep(DEADLINE).await;
            }
        });
    }
}

fn names(objects: &Objects) -> Vec<String> {
    objects.of_kind(Kind::Pod).map(|pod| pod.name().to_owned()).collect()
}

async fn wait(objects: &mut watch::Receiver<Arc<Objects>>, expected: &[&str], asked: &Mutex<Vec<String>>) {
    let found =
        tokio::time::timeout(DEADLINE, objects.wait_for(|objects| names(objects) == expected)).await.is_ok();
    assert!(found, "{expected:?}: {:?}, asked: {:#?}", names(&objects.borrow()), asked.lock().unwrap());
}

#[tokio::test]
async fn a_watch_is_resumed_where_it_was_and_forgotten_versions_are_listed_anew() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::default();
    tokio::spawn(serve(listener, Arc::clone(&asked)));
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("config");
    let text = json!({"apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "x", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "x", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}]});
    std::fs::write(&kubeconfig, text.to_string()).unwrap();
    let client = client::connect(&Server::Kubeconfig(kubeconfig)).await.unwrap();
    let check = Readiness::default().check("objects");
    let interest = Interest { kind: Kind::Pod, purpose: Purpose::Read };
    let source = tokio::time::timeout(DEADLINE, Source::open(client, &[interest], &check)).await.unwrap();
    let mut objects = source.objects();
    wait(&mut objects, &["d", "e"], &asked).await;
    let asked = asked.lock().unwrap().clone();
    let with = |part: &str| asked.iter().filter(|path| path.split(['?', '&']).any(|at| at == part)).count();
    assert_eq!(with("resourceVersion=12"), 1, "resumed at the last event, once: {asked:#?}");
    assert_eq!(asked.iter().filter(|path| is_list(path)).count(), 3, "{asked:#?}");
    assert!(asked.iter().filter(|path| is_list(path)).all(|path| path.contains("limit=100")), "{asked:#?}");
    assert!(
        asked
            .iter()
            .filter(|path| path.contains("watch=true"))
            .all(|path| path.contains("allowWatchBookmarks=true"))
    );
}
