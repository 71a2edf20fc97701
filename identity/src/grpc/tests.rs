use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_api::istio_ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use culvert_api::istio_ca::{IstioCertificateRequest, IstioCertificateResponse};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tonic::{Code, Request, Response, Status};

use super::*;
use crate::certificate_client::{AnswerError, CertificateClient, RequestError};
use crate::testing::{LeafSpec, TestAuthority};
use crate::{Identity, tls};

const CA: &str = "spiffe://cluster.local/ns/culvert-system/sa/culvert-ca";
const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

#[test]
fn a_bearer_token_is_read_from_metadata() {
    let mut metadata = MetadataMap::new();
    assert_eq!(bearer(&metadata), None);
    put_bearer(&mut metadata, "abc").unwrap();
    assert_eq!(bearer(&metadata), Some("abc"));
    metadata.append("authorization", "Bearer def".parse().unwrap());
    assert_eq!(bearer(&metadata), None);
    for (text, token) in [("bearer x", Some("x")), ("Basic x", None), ("Bearer ", None), ("Bear", None)] {
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", text.parse().unwrap());
        assert_eq!(bearer(&metadata), token, "{text}");
    }
    assert!(put_bearer(&mut metadata, "a\nb").is_err());
}

#[test]
fn a_token_file_is_read_for_each_use() {
    let directory = tempfile::tempdir().unwrap();
    let file = TokenFile::new(directory.path().join("token"));
    assert!(file.read().unwrap_err().to_string().contains("token"));
    std::fs::write(file.path(), " \n").unwrap();
    assert!(file.read().is_err());
    std::fs::write(file.path(), "one\n").unwrap();
    assert_eq!(file.read().unwrap(), "one");
    std::fs::write(file.path(), "two").unwrap();
    let mut request = Request::new(());
    file.authorize(&mut request).unwrap();
    assert_eq!(bearer(request.metadata()), Some("two"));
}

/// Answers every request with one prepared certificate, whatever key was sent.
struct Canned(Vec<String>);

#[tonic::async_trait]
impl IstioCertificateService for Canned {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        bearer(request.metadata()).ok_or_else(|| Status::unauthenticated("no token"))?;
        Ok(Response::new(IstioCertificateResponse { cert_chain: self.0.clone() }))
    }
}

struct World {
    authority: TestAuthority,
    url: String,
    address: std::net::SocketAddr,
    token: tempfile::NamedTempFile,
}

async fn world(answer: impl FnOnce(&TestAuthority) -> Vec<String>) -> World {
    let authority = TestAuthority::new("root");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (config, receiver) = watch::channel(tls::grpc_server_config(&authority.leaf(CA)).unwrap());
    let service = IstioCertificateServiceServer::new(Canned(answer(&authority)));
    tokio::spawn(async move {
        let _config = config;
        server().add_service(service).serve_with_incoming(incoming(listener, receiver)).await.unwrap();
    });
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "x.y.z").unwrap();
    World { url: format!("https://{address}"), address, authority, token }
}

impl World {
    fn client(&self, expected: &str, bundle: crate::TrustBundle) -> CertificateClient {
        let expected: Identity = expected.parse().unwrap();
        let (_, bundle) = watch::channel(Arc::new(bundle));
        CertificateClient::new(
            channel(&self.url, expected, bundle).unwrap(),
            TokenFile::new(self.token.path()),
        )
    }

    async fn ask(&self, client: &CertificateClient) -> RequestError {
        client.request(&CART.parse().unwrap(), Duration::from_secs(60)).await.unwrap_err()
    }
}

#[tokio::test]
async fn only_the_expected_server_is_spoken_to() {
    let world = world(|_| vec![]).await;
    let bundle = world.authority.bundle();
    let error = world.ask(&world.client(CART, bundle.clone())).await;
    assert!(
        matches!(&error, RequestError::Unavailable { message, .. } if message.contains("the server is")),
        "{error}"
    );
    let stranger = TestAuthority::new("stranger").bundle();
    let error = world.ask(&world.client(CA, stranger)).await;
    assert!(
        matches!(&error, RequestError::Unavailable { message, .. } if message.contains("UnknownIssuer")),
        "{error}"
    );
    let error = world.ask(&world.client(CA, bundle)).await;
    assert!(matches!(error, RequestError::Answer(AnswerError::Parts(0))), "{error}");
}

#[tokio::test]
async fn an_answer_for_another_key_or_identity_is_not_taken() {
    let other_key = world(|authority| {
        let (leaf, _) = authority.sign(&LeafSpec::proper(CART));
        vec![crate::pem::encode("CERTIFICATE", &leaf), authority.pem()]
    })
    .await;
    let error = other_key.ask(&other_key.client(CA, other_key.authority.bundle())).await;
    assert!(matches!(error, RequestError::Answer(AnswerError::Certificate(_))), "{error}");
}

#[tokio::test]
async fn silent_and_babbling_clients_do_not_stop_others() {
    let world = world(|_| vec![]).await;
    let mut held = Vec::new();
    for index in 0..100 {
        let mut tcp = TcpStream::connect(world.address).await.unwrap();
        if index % 2 == 0 {
            use tokio::io::AsyncWriteExt;
            tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        }
        held.push(tcp);
    }
    let start = SystemTime::now();
    let error = world.ask(&world.client(CA, world.authority.bundle())).await;
    assert!(matches!(error, RequestError::Answer(_)), "{error}");
    assert!(start.elapsed().unwrap() < Duration::from_secs(3));
}

#[tokio::test]
async fn nobody_there_is_told_with_the_address() {
    let world = world(|_| vec![]).await;
    let (_, bundle) = watch::channel(Arc::new(world.authority.bundle()));
    let channel = channel("https://127.0.0.1:1", CA.parse().unwrap(), bundle).unwrap();
    let client = CertificateClient::new(channel, TokenFile::new(world.token.path()));
    match world.ask(&client).await {
        RequestError::Unavailable { code, message } => {
            assert_eq!(code, Code::Unavailable);
            assert!(message.contains("127.0.0.1:1"), "{message}");
        }
        other => panic!("{other}"),
    }
}

#[test]
fn only_urls_of_servers_are_taken() {
    let authority = TestAuthority::new("root");
    for url in ["", "http://127.0.0.1:1", "127.0.0.1:15012", "https://", "file:///x"] {
        let (_, bundle) = watch::channel(Arc::new(authority.bundle()));
        assert!(matches!(channel(url, CA.parse().unwrap(), bundle), Err(ChannelError::Url(_))), "{url}");
    }
}
