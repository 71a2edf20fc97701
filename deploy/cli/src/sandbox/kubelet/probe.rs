//! Probes: one attempt, and the counting that turns attempts into a verdict. From the node's namespace, as a kubelet.

use bytes::Bytes;
use culvert_objects::types::{
    Container, ExecAction, GrpcAction, HttpGetAction, PortRef, Probe, TcpSocketAction,
};
use http::{Request, header};
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Deserialize;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use tracing::warn;

use crate::sandbox::namespaces::{Entry, Netns};
use crate::sandbox::supervisor::process::{Process, Streams};

/// What probes need to know of their container.
#[derive(Clone)]
pub struct Target {
    pub node: Netns,
    pub address: IpAddr,
    pub container: Container,
    /// How a command is run in the container.
    pub entry: Entry,
    /// What is done before the container is asked to end (`lifecycle.preStop`).
    pub pre_stop: Option<Hook>,
}

/// One step of a container's `lifecycle`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Hook {
    Exec(ExecAction),
    HttpGet(HttpGetAction),
    Sleep(SleepAction),
}

/// Doing nothing for a while.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct SleepAction {
    pub seconds: u64,
}

/// One attempt's outcome, with the reason of a failure.
pub type Attempt = Result<(), String>;

impl Target {
    /// Makes one attempt within the probe's timeout.
    ///
    /// # Errors
    /// Why it failed.
    pub async fn attempt(&self, probe: &Probe) -> Attempt {
        let timeout = probe.timeout();
        tokio::time::timeout(timeout, self.act(probe, timeout))
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {} s", timeout.as_secs())))
    }

    /// Does what is to be done before the end, within `grace`. Returns what is left of that.
    pub async fn before_stop(&self, grace: Duration) -> Duration {
        let Some(hook) = &self.pre_stop else { return grace };
        let began = Instant::now();
        let step = async {
            match hook {
                Hook::Exec(action) => self.exec(&action.command).await,
                Hook::HttpGet(action) => self.http(action, grace).await,
                Hook::Sleep(action) => {
                    tokio::time::sleep(Duration::from_secs(action.seconds)).await;
                    Ok(())
                }
            }
        };
        match tokio::time::timeout(grace, step).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(container = self.container.name, error, "preStop failed"),
            Err(_) => warn!(container = self.container.name, "preStop took all of the grace period"),
        }
        grace.saturating_sub(began.elapsed())
    }

    async fn act(&self, probe: &Probe, timeout: Duration) -> Attempt {
        if let Some(action) = &probe.http_get {
            self.http(action, timeout).await
        } else if let Some(action) = &probe.tcp_socket {
            self.tcp(action, timeout).await
        } else if let Some(action) = &probe.exec {
            self.exec(&action.command).await
        } else if let Some(action) = &probe.grpc {
            self.grpc(action, timeout).await
        } else {
            Ok(())
        }
    }

    async fn http(&self, action: &HttpGetAction, timeout: Duration) -> Attempt {
        if action.scheme.eq_ignore_ascii_case("https") {
            return Err("the sandbox makes no HTTPS probes; use an exec or tcpSocket probe".to_owned());
        }
        let to = self.socket_address(&action.port, action.host.as_deref())?;
        let stream =
            self.node.connect(to, timeout).await.map_err(|error| format!("connect to {to}: {error}"))?;
        let broken = |error: hyper::Error| format!("GET {} of {to}: {error}", action.path);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(connection);
        let path =
            if action.path.starts_with('/') { action.path.clone() } else { format!("/{}", action.path) };
        let mut request = Request::get(path)
            .header(header::HOST, to.to_string())
            .header(header::USER_AGENT, "kube-probe/1.34")
            .header(header::ACCEPT, "*/*")
            .header(header::CONNECTION, "close");
        for extra in &action.http_headers {
            if let (Ok(name), Ok(value)) =
                (header::HeaderName::try_from(&extra.name), header::HeaderValue::try_from(&extra.value))
                && let Some(headers) = request.headers_mut()
            {
                headers.insert(name, value);
            }
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
        let status = sender.send_request(request).await.map_err(broken)?.status();
        if status.is_success() || status.is_redirection() {
            Ok(())
        } else {
            Err(format!("GET {} of {to} answered {status}", action.path))
        }
    }

    async fn tcp(&self, action: &TcpSocketAction, timeout: Duration) -> Attempt {
        let to = self.socket_address(&action.port, action.host.as_deref())?;
        self.node.connect(to, timeout).await.map(drop).map_err(|error| format!("connect to {to}: {error}"))
    }

    async fn exec(&self, command: &[String]) -> Attempt {
        let entry = Entry { command: command.to_vec(), ..self.entry.clone() };
        let mut process = Process::spawn(&entry, Streams::none()).map_err(|error| error.to_string())?;
        match process.wait().await.map_err(|error| error.to_string())?.shell_code() {
            0 => Ok(()),
            code => Err(format!("`{}` ended with exit code {code}", command.join(" "))),
        }
    }

    /// `grpc.health.v1.Health/Check`: the message is small enough to be written by hand.
    async fn grpc(&self, action: &GrpcAction, timeout: Duration) -> Attempt {
        let to = SocketAddr::new(self.address, action.port);
        let stream =
            self.node.connect(to, timeout).await.map_err(|error| format!("connect to {to}: {error}"))?;
        let broken = |error: hyper::Error| format!("health check of {to}: {error}");
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .map_err(broken)?;
        tokio::spawn(connection);
        let message = health_request(action.service.as_deref().unwrap_or_default())?;
        let request = Request::post(format!("http://{to}/grpc.health.v1.Health/Check"))
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .header(header::USER_AGENT, "kube-probe/1.34")
            .body(Full::new(Bytes::from(message)))
            .map_err(|error| error.to_string())?;
        let answer = sender.send_request(request).await.map_err(broken)?;
        let body = answer.into_body().collect().await.map_err(broken)?.to_bytes();
        if is_serving(&body) { Ok(()) } else { Err(format!("health check of {to}: not serving")) }
    }

    fn socket_address(&self, port: &PortRef, host: Option<&str>) -> Result<SocketAddr, String> {
        let port = match port {
            PortRef::Number(number) => *number,
            PortRef::Name(name) => {
                let named =
                    |port: &&culvert_objects::types::ContainerPort| port.name.as_deref() == Some(name);
                let found = self.container.ports.iter().find(named);
                found
                    .map(|port| port.container_port)
                    .ok_or_else(|| format!("the container has no port {name}"))?
            }
        };
        let address = match host.filter(|host| !host.is_empty()) {
            None => self.address,
            Some(host) => host.parse().map_err(|_| format!("host {host} is not an address"))?,
        };
        Ok(SocketAddr::new(address, port))
    }
}

/// A gRPC frame with `HealthCheckRequest{service = 1}`.
fn health_request(service: &str) -> Result<Vec<u8>, String> {
    let length = u8::try_from(service.len()).ok().filter(|length| *length < 0x80);
    let length = length.ok_or("the service's name is longer than 127 bytes")?;
    let message =
        if service.is_empty() { Vec::new() } else { [&[0x0a, length], service.as_bytes()].concat() };
    let size = u32::try_from(message.len()).unwrap_or_default().to_be_bytes();
    Ok([&[0][..], &size, &message].concat())
}

/// Whether a frame holds `HealthCheckResponse{status = SERVING}`.
fn is_serving(frame: &[u8]) -> bool {
    frame.get(5..) == Some(&[0x08, 0x01])
}

/// Turns attempts into a verdict that changes only after enough attempts in a row.
#[derive(Debug)]
pub struct Counter {
    successes_needed: u32,
    failures_needed: u32,
    in_a_row: (bool, u32),
}

impl Counter {
    #[must_use]
    pub fn new(probe: &Probe) -> Self {
        Self {
            successes_needed: probe.successes_needed(),
            failures_needed: probe.failures_needed(),
            in_a_row: (false, 0),
        }
    }

    /// Notes an attempt. A verdict when there were enough of its kind in a row.
    pub fn note(&mut self, attempt: &Attempt) -> Option<Verdict> {
        let ok = attempt.is_ok();
        self.in_a_row = if self.in_a_row.0 == ok { (ok, self.in_a_row.1.saturating_add(1)) } else { (ok, 1) };
        match (ok, self.in_a_row.1) {
            (true, count) if count >= self.successes_needed => Some(Verdict::Good),
            (false, count) if count >= self.failures_needed => Some(Verdict::Bad),
            _ => None,
        }
    }
}

/// What a probe has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Good,
    Bad,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_takes_enough_attempts_in_a_row() {
        let probe = Probe { success_threshold: Some(2), failure_threshold: Some(3), ..Probe::default() };
        let mut counter = Counter::new(&probe);
        let bad = || Err(String::new());
        let verdicts: Vec<_> = [Ok(()), Ok(()), bad(), bad(), Ok(()), bad(), bad(), bad()]
            .iter()
            .map(|attempt| counter.note(attempt))
            .collect();
        assert_eq!(verdicts[..2], [None, Some(Verdict::Good)]);
        assert_eq!(verdicts[2..7], [None; 5]);
        assert_eq!(verdicts[7], Some(Verdict::Bad));
    }

    #[test]
    fn health_messages() {
        assert_eq!(health_request("").unwrap(), [0; 5]);
        assert_eq!(health_request("ab").unwrap(), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert!(is_serving(&[0, 0, 0, 0, 2, 8, 1]));
        assert!(!is_serving(&[0, 0, 0, 0, 2, 8, 2]));
    }
}
