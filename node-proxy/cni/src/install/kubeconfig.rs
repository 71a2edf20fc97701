//! Credentials for the plugin, which runs on the host, as a kubeconfig. They are written again whenever the token is
//! renewed.

use std::fs;
use std::io;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use culvert_identity::files::about;
use serde_json::json;

/// Where a pod finds its service account's credentials.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Where the credentials come from.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// `https://HOST:PORT`; none where there is no API server to ask.
    server: Option<String>,
    /// Holds `token` and `ca.crt`.
    directory: PathBuf,
}

impl Credentials {
    /// Those of the pod that this process runs in.
    #[must_use]
    pub fn in_cluster() -> Self {
        let get = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let server = get("KUBERNETES_SERVICE_HOST").map(|host| {
            let port = get("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".to_owned());
            let host = if host.contains(':') { format!("[{host}]") } else { host };
            format!("https://{host}:{port}")
        });
        Self { server, directory: SERVICE_ACCOUNT.into() }
    }

    /// From anywhere else.
    #[must_use]
    pub fn new(server: Option<String>, directory: PathBuf) -> Self {
        Self { server, directory }
    }

    /// The text of the kubeconfig with the token issued, else with the node proxy's own. None where there is no API server.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub(super) fn kubeconfig(&self, issued: Option<&str>) -> io::Result<Option<String>> {
        let Some(server) = &self.server else { return Ok(None) };
        let read = |name: &str| {
            let path = self.directory.join(name);
            fs::read(&path).map_err(|error| about(&path, &error))
        };
        let authority = read("ca.crt")?;
        let token = match issued {
            Some(token) => token.to_owned(),
            None => String::from_utf8_lossy(&read("token")?).trim().to_owned(),
        };
        // JSON is YAML.
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "culvert",
            "clusters": [{"name": "culvert", "cluster": {
                "server": server, "certificate-authority-data": STANDARD.encode(authority)}}],
            "users": [{"name": "culvert", "user": {"token": token}}],
            "contexts": [{"name": "culvert", "context": {"cluster": "culvert", "user": "culvert"}}],
        });
        Ok(Some(format!("{kubeconfig:#}\n")))
    }
}
