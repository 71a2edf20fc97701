//! Requests as node proxies tell of them: those that are in their logs, or all of them as they end.

use bytes::Bytes;
use culvert_api::names::ADMIN_PORT;
use http_body_util::BodyExt;
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::logs::{Follow, read_whole};
use super::protocol::Response;
use super::server::Served;
use super::wire::Connection;
use crate::sandbox::components::{ComponentName, health};
use crate::sandbox::files::Files;
use crate::sandbox::namespaces::Netns;

/// Lines on their way to the client; a client that does not read makes node proxies drop lines, not wait.
const QUEUE: usize = 1024;
/// Before a node proxy that does not answer is asked again.
const AGAIN: Duration = Duration::from_millis(300);
/// How long the first answers of the node proxies are waited for.
const PATIENCE: Duration = Duration::from_secs(3);
/// A line that is longer is no line.
const LONGEST: usize = 1 << 20;

/// Sends requests, one JSON object per line.
pub async fn run(served: &Served, connection: &Connection, follow: Follow) -> Response {
    let sent = match follow {
        Follow::No => logged(served, connection).await,
        Follow::Yes => live(served, connection).await,
    };
    match sent {
        Ok(()) => Response::Done,
        Err(error) => Response::failed(format!("requests cannot be told: {error}")),
    }
}

/// What the access logs of all node proxies hold, by time.
async fn logged(served: &Served, connection: &Connection) -> std::io::Result<()> {
    let mut found: Vec<(String, String)> = Vec::new();
    for node in &served.cluster.nodes {
        let name = ComponentName::NodeProxy(node.name.clone());
        let text = read_whole(&Files.component_log(&name.file_name())).await?;
        for line in String::from_utf8_lossy(&text).lines() {
            let Ok(value) = serde_json::from_str::<Value>(line) else { continue };
            if value.get("request_id").is_some() {
                let time = value.get("time").and_then(Value::as_str).unwrap_or_default().to_owned();
                found.push((time, format!("{line}\n")));
            }
        }
    }
    found.sort();
    for (_, line) in found {
        connection.send_bytes(line.as_bytes()).await?;
    }
    Ok(())
}

/// What ends from now on, until the client goes.
async fn live(served: &Served, connection: &Connection) -> std::io::Result<()> {
    let (lines, mut told) = mpsc::channel::<Bytes>(QUEUE);
    let (ready, mut opened) = mpsc::channel::<()>(served.cluster.nodes.len());
    let mut proxies = JoinSet::new();
    for node in &served.cluster.nodes {
        let Some(netns) = served.network.namespace(&node.name).cloned() else { continue };
        let admin = SocketAddr::new(node.address.v4.into(), ADMIN_PORT);
        proxies.spawn(follow_one(netns, admin, lines.clone(), ready.clone()));
    }
    drop((lines, ready));
    // One that is down is no reason to tell nothing of the others.
    let _ = tokio::time::timeout(PATIENCE, async {
        for _ in 0..proxies.len() {
            opened.recv().await;
        }
    })
    .await;
    connection.send(&Response::Running, &[]).await?;
    loop {
        tokio::select! {
            // Nothing is expected from the client but its end.
            _ = connection.receive() => return Ok(()),
            line = told.recv() => match line {
                Some(line) => connection.send_bytes(&line).await?,
                None => return Ok(()),
            },
        }
    }
}

/// Follows one node proxy, also over its restarts, until nobody listens.
async fn follow_one(netns: Netns, admin: SocketAddr, lines: mpsc::Sender<Bytes>, ready: mpsc::Sender<()>) {
    let mut ready = Some(ready);
    while !lines.is_closed() {
        if let Ok(mut body) = health::open(&netns, admin, "/requests", PATIENCE).await {
            if let Some(ready) = ready.take() {
                // Nobody waits any more when it took too long.
                let _ = ready.send(()).await;
            }
            let mut rest = Vec::new();
            while let Some(Ok(frame)) = body.frame().await {
                if let Some(data) = frame.data_ref() {
                    rest.extend_from_slice(data);
                }
                for line in whole_lines(&mut rest) {
                    if lines.send(line).await.is_err() {
                        return;
                    }
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Takes the lines that are complete, each with its line feed.
fn whole_lines(bytes: &mut Vec<u8>) -> Vec<Bytes> {
    let mut lines = Vec::new();
    while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
        let rest = bytes.split_off(end + 1);
        lines.push(Bytes::from(std::mem::replace(bytes, rest)));
    }
    if bytes.len() > LONGEST {
        bytes.clear();
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_when_they_are_complete() {
        let mut bytes = b"{\"a\":1}\n{\"b\"".to_vec();
        assert_eq!(whole_lines(&mut bytes), [&b"{\"a\":1}\n"[..]]);
        bytes.extend_from_slice(b":2}\n\n");
        assert_eq!(whole_lines(&mut bytes), [&b"{\"b\":2}\n"[..], b"\n"]);
        assert!(bytes.is_empty());
    }
}
