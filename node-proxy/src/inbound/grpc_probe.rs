//! gRPC health probes: one unary `grpc.health.v1.Health/Check` for a declared service, read whole, asked anew of the
//! application, answered, and nothing more.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::server::{self, SendResponse};
use h2::{RecvStream, client};
use http::{HeaderMap, Method, Request, Response};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::probe::ProbeError;
use crate::worker::socket::CarriedSocket;

const PATH: &str = "/grpc.health.v1.Health/Check";
const LONGEST_REQUEST: usize = 4 << 10;
const LONGEST_ANSWER: usize = 64 << 10;
const LONGEST_HEADERS: u32 = 8 << 10;
/// How long the client may take to hang up after the answer.
const GOODBYE: Duration = Duration::from_secs(1);

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// Serves the one request. `received` has been read from the socket already.
pub(super) async fn serve(
    socket: CarriedSocket,
    received: BytesMut,
    mut application: CarriedSocket,
    services: &[&str],
    destination: SocketAddr,
) -> Result<(), ProbeError> {
    let mut io = Prefixed { prefix: received.freeze(), inner: socket };
    let mut connection = server::Builder::new()
        .max_concurrent_streams(1)
        .max_header_list_size(LONGEST_HEADERS)
        .handshake::<_, Bytes>(&mut io)
        .await?;
    let Some(first) = connection.accept().await else {
        return Err(ProbeError::NotTheGrpcProbe("no request came"));
    };
    let (request, respond) = first?;
    let answered = answer(request, respond, &mut application, services, destination);
    tokio::select! {
        biased;
        answered = answered => answered?,
        more = connection.accept() => return Err(match more {
            Some(Ok(_)) => ProbeError::NotTheGrpcProbe("another request followed"),
            Some(Err(error)) => error.into(),
            None => io::Error::from(io::ErrorKind::UnexpectedEof).into(),
        }),
    }
    connection.graceful_shutdown();
    let rest = async { while let Some(Ok(_)) = connection.accept().await {} };
    let _ = tokio::time::timeout(GOODBYE, rest).await;
    drop(connection);
    io.inner.finish();
    application.finish();
    Ok(())
}

/// An answer of the application.
struct Answer {
    head: Response<()>,
    body: Bytes,
    trailers: Option<HeaderMap>,
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    application: &mut CarriedSocket,
    services: &[&str],
    destination: SocketAddr,
) -> Result<(), ProbeError> {
    let (head, mut body) = request.into_parts();
    if head.method != Method::POST || head.uri.path() != PATH || head.uri.query().is_some() {
        return Err(ProbeError::NotTheGrpcProbe("the request is not a health check"));
    }
    let (message, _) = read(&mut body, LONGEST_REQUEST).await?;
    let service = asked_service(&message).ok_or(ProbeError::NotTheGrpcProbe("the request is malformed"))?;
    if !services.contains(&service.as_str()) {
        return Err(ProbeError::NotTheGrpcProbe("the service asked for is not declared"));
    }
    let Answer { head, body, trailers } = ask(application, service, destination).await?;
    let mut stream = respond.send_response(head, false)?;
    let is_last = trailers.is_none();
    stream.send_data(body, is_last)?;
    if let Some(trailers) = trailers {
        stream.send_trailers(trailers)?;
    }
    Ok(())
}

/// The service that a health check asks for. `None` for anything but one uncompressed gRPC message with nothing after it.
pub fn asked_service(mut framed: &[u8]) -> Option<String> {
    if framed.len() < 5 || framed.get_u8() != 0 || framed.get_u32() as usize != framed.len() {
        return None;
    }
    HealthCheckRequest::decode(framed).ok().map(|request| request.service)
}

/// A health check for a service, as a gRPC message.
pub fn health_check(service: String) -> Bytes {
    let message = HealthCheckRequest { service }.encode_to_vec();
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.extend_from_slice(&message);
    framed.freeze()
}

async fn ask(
    application: &mut CarriedSocket,
    service: String,
    destination: SocketAddr,
) -> Result<Answer, ProbeError> {
    let (sender, connection) = client::Builder::new()
        .max_header_list_size(LONGEST_HEADERS)
        .handshake::<_, Bytes>(application)
        .await?;
    let exchange = async {
        let request = Request::post(format!("http://{destination}{PATH}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .map_err(|_| ProbeError::NotTheGrpcProbe("the destination is no authority"))?;
        let (response, mut stream) = sender.ready().await?.send_request(request, false)?;
        stream.send_data(health_check(service), true)?;
        let (head, mut body) = response.await?.into_parts();
        let (body, trailers) = read(&mut body, LONGEST_ANSWER).await?;
        Ok(Answer { head: Response::from_parts(head, ()), body, trailers })
    };
    tokio::select! {
        biased;
        answer = exchange => answer,
        ended = connection => Err(match ended {
            Ok(()) => io::Error::from(io::ErrorKind::UnexpectedEof).into(),
            Err(error) => error.into(),
        }),
    }
}

async fn read(body: &mut RecvStream, longest: usize) -> Result<(Bytes, Option<HeaderMap>), ProbeError> {
    let mut all = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        if all.len() + data.len() > longest {
            return Err(ProbeError::NotTheGrpcProbe("a message is too long"));
        }
        all.extend_from_slice(&data);
    }
    Ok((all.freeze(), body.trailers().await?))
}

/// A socket of which some bytes have been read.
struct Prefixed {
    prefix: Bytes,
    inner: CarriedSocket,
}

impl AsyncRead for Prefixed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.has_remaining() {
            let length = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix.split_to(length));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::{LocalSet, spawn_local};

    use super::*;
    use crate::worker::socket::testing::connected_pair;

    /// An application that answers SERVING with trailers, to the one request it may get.
    async fn application(io: CarriedSocket) -> Option<(String, Bytes)> {
        let mut connection = server::handshake(io).await.ok()?;
        let (request, mut respond) = connection.accept().await?.ok()?;
        let path = request.uri().path().to_owned();
        let answer = async {
            let (message, _) = read(&mut request.into_body(), 1000).await.unwrap();
            let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let mut stream = respond.send_response(head, false).unwrap();
            stream.send_data(Bytes::from_static(b"\0\0\0\0\x02\x08\x01"), false).unwrap();
            let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
            stream.send_trailers(trailers).unwrap();
            message
        };
        let message = tokio::select! { message = answer => message, _ = connection.accept() => return None };
        while connection.accept().await.is_some() {}
        Some((path, message))
    }

    async fn probe(
        path: &'static str,
        message: Bytes,
    ) -> (Result<(), ProbeError>, Option<(Bytes, Option<HeaderMap>)>) {
        let ((client_io, socket), (near, far)) = (connected_pair().await, connected_pair().await);
        LocalSet::new()
            .run_until(async {
                let application = spawn_local(application(far));
                let client = spawn_local(async move {
                    let (sender, connection) = client::handshake(client_io).await.ok()?;
                    let connection = spawn_local(connection);
                    let request = Request::post(format!("http://db{path}")).body(()).unwrap();
                    let (response, mut stream) =
                        sender.ready().await.ok()?.send_request(request, false).ok()?;
                    stream.send_data(message, true).ok()?;
                    let answer = read(&mut response.await.ok()?.into_body(), 1000).await.ok();
                    connection.abort();
                    answer
                });
                let to = "10.1.0.9:80".parse().unwrap();
                let served = serve(socket, BytesMut::new(), near, &["", "ready"], to).await;
                let reached = application.await.unwrap();
                assert_eq!(reached.is_some(), served.is_ok());
                if let Some((path, message)) = reached {
                    assert_eq!((path.as_str(), asked_service(&message).is_some()), (PATH, true));
                }
                (served, client.await.unwrap())
            })
            .await
    }

    #[tokio::test]
    async fn a_declared_health_check_is_asked_and_answered() {
        for service in ["", "ready"] {
            let (served, answer) = probe(PATH, health_check(service.to_owned())).await;
            served.unwrap();
            let (body, trailers) = answer.unwrap();
            assert_eq!(
                (&body[..], &trailers.unwrap()["grpc-status"]),
                (&b"\0\0\0\0\x02\x08\x01"[..], &"0".parse().unwrap())
            );
        }
    }

    #[tokio::test]
    async fn no_other_call_reaches_the_application() {
        for (path, message) in [
            ("/grpc.health.v1.Health/Watch", health_check(String::new())),
            ("/shop.Cart/Empty", health_check(String::new())),
            (PATH, health_check("admin".to_owned())),
            (PATH, Bytes::from_static(b"\x01\0\0\0\0")),
            (PATH, Bytes::from_static(b"\0\0\0\0\x09")),
            (PATH, Bytes::from(vec![0; LONGEST_REQUEST + 1])),
        ] {
            let (served, answer) = probe(path, message).await;
            assert!(matches!(served, Err(ProbeError::NotTheGrpcProbe(_))), "{path}: {served:?}");
            assert!(answer.is_none());
        }
    }
}
