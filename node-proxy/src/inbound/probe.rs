//! Kubelet probes under strict mode: from an address of the node, only what is declared for the port passes.
//!
//! A probe over HTTPS cannot be told from any other connection and does not pass.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::BytesMut;
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout_at};

use super::http_probe::{self, NotTheProbe};
use super::{connect_application, grpc_probe, timeouts};
use crate::pods::Pod;
use crate::reason::Reason;
use crate::state::model::ProbeCheck;
use crate::telemetry::{ConnectionMeta, ConnectionRecord, Failure, Telemetry};
use crate::worker::socket::CarriedSocket;

/// What the kubelet wants must be clear by then.
const ASK_WITHIN: Duration = Duration::from_secs(5);
/// The application must have answered, or the kubelet closed a TCP probe, by then: probes have their own, shorter
/// timeouts, after which the kubelet hangs up.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// What a connection to HTTP/2 without an upgrade starts with, and what of it suffices to tell.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";

/// A connection that may be a probe.
pub(super) struct Probing<'a> {
    pub pod: &'a Pod,
    pub client: IpAddr,
    pub destination: SocketAddr,
    /// For the port.
    pub declared: Vec<&'a ProbeCheck>,
}

/// Why a probe failed.
#[derive(Debug, Error)]
pub(super) enum ProbeError {
    #[error("strict mode lets only declared probes through: {0}")]
    NotTheProbe(#[from] NotTheProbe),
    #[error(
        "strict mode lets only declared probes through: no HTTP GET or gRPC probe is declared for the port"
    )]
    Bytes,
    #[error("strict mode lets only declared probes through: {0}")]
    NotTheGrpcProbe(&'static str),
    #[error("the probe was not clear within {ASK_WITHIN:?}")]
    Late,
    #[error("the probe was not over within {ANSWER_WITHIN:?}")]
    Slow,
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("HTTP/2 of the probe: {0}")]
    Http2(#[from] h2::Error),
    #[error("{0}")]
    Application(Failure),
}

impl From<ProbeError> for Failure {
    fn from(error: ProbeError) -> Self {
        let reason = match &error {
            ProbeError::Application(failure) => return failure.clone(),
            ProbeError::Io(_) | ProbeError::Http2(_) => Reason::PeerReset,
            ProbeError::Slow => Reason::IdleTimeout,
            ProbeError::NotTheProbe(_)
            | ProbeError::Bytes
            | ProbeError::NotTheGrpcProbe(_)
            | ProbeError::Late => Reason::PlaintextRefused,
        };
        Self::new(reason, error)
    }
}

/// What the first bytes say.
enum Asked {
    /// The client closed without a byte.
    Nothing,
    /// The request to send to the application.
    Http(Vec<u8>),
    Grpc(BytesMut),
}

/// Serves one probe, then closes.
pub(super) async fn serve(
    probing: Probing<'_>,
    socket: CarriedSocket,
    meta: ConnectionMeta,
    telemetry: &Telemetry,
) {
    let record = telemetry.open(meta);
    let result = probing.run(socket, &record).await;
    record.close(result.map_err(Failure::from));
}

impl Probing<'_> {
    fn declares(&self, is_it: impl Fn(&ProbeCheck) -> bool) -> bool {
        self.declared.iter().any(|check| is_it(check))
    }

    async fn run(&self, mut socket: CarriedSocket, record: &ConnectionRecord) -> Result<(), ProbeError> {
        let has_tcp = self.declares(|check| *check == ProbeCheck::TcpConnect);
        // A TCP probe asks whether the application accepts, which only connecting can tell.
        let early = if has_tcp { Some(self.application().await?) } else { None };
        let within = if has_tcp { ANSWER_WITHIN } else { ASK_WITHIN };
        let asked = timeout_at(Instant::now() + within, self.ask(&socket)).await;
        let asked = asked.map_err(|_| ProbeError::Late)??;
        let connected = async {
            match early {
                Some(application) => Ok(application),
                None => self.application().await,
            }
        };
        let answered = async {
            match asked {
                Asked::Nothing if has_tcp => {
                    if let Ok(application) = connected.await {
                        application.finish();
                    }
                    socket.finish();
                    Ok(())
                }
                Asked::Nothing => Err(ProbeError::Late),
                Asked::Http(request) => http(&mut socket, connected.await?, &request, record).await,
                Asked::Grpc(received) => {
                    let declared = self.declared.iter().filter_map(|check| match check {
                        ProbeCheck::GrpcHealth { service } => Some(service.as_str()),
                        _ => None,
                    });
                    let services: Vec<&str> = declared.collect();
                    let application = connected.await?;
                    grpc_probe::serve(socket, received, application, &services, self.destination).await
                }
            }
        };
        tokio::time::timeout(ANSWER_WITHIN, answered).await.map_err(|_| ProbeError::Slow)?
    }

    async fn application(&self) -> Result<CarriedSocket, ProbeError> {
        let after = timeouts(&self.pod.workload.load()).connect;
        connect_application(self.pod, self.client, self.destination, after)
            .await
            .map_err(ProbeError::Application)
    }

    /// Reads until it is clear what is asked.
    async fn ask(&self, socket: &CarriedSocket) -> Result<Asked, ProbeError> {
        let has_http = self.declares(|check| matches!(check, ProbeCheck::HttpGet { https: false, .. }));
        let has_grpc = self.declares(|check| matches!(check, ProbeCheck::GrpcHealth { .. }));
        let mut received = BytesMut::with_capacity(1024);
        loop {
            socket.readable().await?;
            match socket.try_read_buf(&mut received) {
                Ok(0) if received.is_empty() => return Ok(Asked::Nothing),
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error.into()),
            }
            let compared = received.len().min(HTTP2_PREFACE.len());
            if has_grpc && received[..compared] == HTTP2_PREFACE[..compared] {
                if compared == HTTP2_PREFACE.len() {
                    return Ok(Asked::Grpc(received));
                }
            } else if has_http {
                if let Some(request) = http_probe::check(&received, &self.declared, self.destination)? {
                    return Ok(Asked::Http(request));
                }
            } else {
                return Err(ProbeError::Bytes);
            }
        }
    }
}

/// Sends the request and passes the answer back until its end. The client may hang up, but say nothing more.
async fn http(
    socket: &mut CarriedSocket,
    mut application: CarriedSocket,
    request: &[u8],
    record: &ConnectionRecord,
) -> Result<(), ProbeError> {
    application.write_all(request).await?;
    record.received(request.len() as u64);
    let mut buffer = BytesMut::with_capacity(16 << 10);
    let mut client_is_open = true;
    loop {
        tokio::select! {
            biased;
            more = socket.readable(), if client_is_open => {
                more?;
                match socket.try_read(&mut [0; 1]) {
                    Ok(0) => client_is_open = false,
                    Ok(_) => return Err(NotTheProbe::More.into()),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
            }
            answer = application.readable() => {
                answer?;
                match application.try_read_buf(&mut buffer) {
                    Ok(0) => break,
                    Ok(read) => {
                        socket.write_all(&buffer).await?;
                        buffer.clear();
                        record.sent(read as u64);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
    application.finish();
    socket.finish();
    Ok(())
}
