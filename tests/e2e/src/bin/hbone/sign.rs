//! Asks the mesh's CA for a certificate with somebody's token.

use clap::Args;
use culvert_api::names;
use culvert_identity::certificate_client::{CertificateClient, RequestError};
use culvert_identity::grpc::{self, TokenFile};
use culvert_identity::{Identity, TrustBundle};
use serde_json::json;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

#[derive(Args)]
pub(crate) struct SignArgs {
    #[arg(long)]
    ca: SocketAddr,
    #[arg(long)]
    token: PathBuf,
    #[arg(long)]
    bundle: PathBuf,
    #[arg(long)]
    identity: Identity,
}

/// Prints one JSON line: `signed`, and when not, `code` and `message`.
pub(crate) async fn run(args: SignArgs) -> anyhow::Result<()> {
    let trust_domain = "cluster.local";
    let ca =
        format!("spiffe://{trust_domain}/ns/{}/sa/{}", names::SYSTEM_NAMESPACE, names::CA_SERVICE_ACCOUNT);
    let (_sender, bundle) = watch::channel(Arc::new(TrustBundle::from_file(&args.bundle)?));
    let channel = grpc::channel(&format!("https://{}", args.ca), ca.parse()?, bundle)?;
    let client = CertificateClient::new(channel, TokenFile::new(args.token));
    let report = match client.request(&args.identity, Duration::from_secs(3600)).await {
        Ok(_) => json!({"signed": true}),
        Err(RequestError::Refused { code, message }) => {
            json!({"signed": false, "code": format!("{code:?}"), "message": message})
        }
        Err(error) => json!({"signed": false, "code": "none", "message": error.to_string()}),
    };
    println!("{report}");
    Ok(())
}
