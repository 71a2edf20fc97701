//! What a pod's containers see of the file system: the machine's, but with their own name service files, their
//! volumes, and without the sandbox's own files.

use culvert_objects::Kind;
use culvert_objects::types::{HostAlias, PodSpec};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::environment::{EnvironmentError, Surroundings};
use crate::sandbox::cluster::Cluster;
use crate::sandbox::files::Files;
use crate::sandbox::namespaces::Mount;
use crate::sandbox::namespaces::entry::Access;

/// What keeps a pod's files from being made. Waiting may help.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("{}: {cause}", path.display())]
    Io { path: PathBuf, cause: io::Error },
    #[error(transparent)]
    Missing(#[from] EnvironmentError),
    #[error("volume {name}: the sandbox knows configMap, secret and emptyDir")]
    Volume { name: String },
    #[error("container {container}: there is no volume {volume}")]
    NoVolume { container: String, volume: String },
    #[error(
        "container {container}: mountPath {} does not exist on this machine, and containers of the sandbox share its \
         file system; use a path that exists, or one below /run",
        path.display()
    )]
    MountPath { container: String, path: PathBuf },
}

/// The files of one pod.
pub struct PodFiles {
    directory: PathBuf,
    volumes: BTreeMap<String, PathBuf>,
}

impl PodFiles {
    /// Writes name service files and volumes.
    ///
    /// # Errors
    /// Names the file or volume at fault.
    pub fn write(cluster: &Cluster, around: &Surroundings<'_>, hostname: &str) -> Result<Self, FilesError> {
        let directory = Files.pod(around.pod.uid());
        let etc = directory.join("etc");
        make_directory(&etc)?;
        write(&etc.join("resolv.conf"), resolv_conf(cluster, around.pod.namespace()).as_bytes())?;
        write(&etc.join("hosts"), hosts(around, hostname).as_bytes())?;
        write(&etc.join("nsswitch.conf"), NSSWITCH.as_bytes())?;
        make_directory(&empty_directory())?;
        let mut files = Self { directory, volumes: BTreeMap::new() };
        let spec = around.pod.body.get("spec").unwrap_or(&Value::Null);
        for volume in spec["volumes"].as_array().into_iter().flatten() {
            files.add_volume(volume, around)?;
        }
        Ok(files)
    }

    /// The mounts of one container; `raw` is its part of the pod's specification.
    ///
    /// # Errors
    /// Names the mount at fault.
    pub fn mounts(&self, container: &str, raw: &Value) -> Result<Vec<Mount>, FilesError> {
        let mut mounts: Vec<Mount> = ["resolv.conf", "hosts", "nsswitch.conf"]
            .into_iter()
            .map(|name| (self.directory.join("etc").join(name), Path::new("/etc").join(name)))
            // Without a file to mount over there is none to mislead the resolver either.
            .filter(|(_, target)| target.exists())
            .map(|(source, target)| Mount { source, target, access: Access::ReadOnly })
            .collect();
        for mount in raw["volumeMounts"].as_array().into_iter().flatten() {
            mounts.push(self.volume_mount(container, mount)?);
        }
        // The machine's sockets of nscd, systemd-resolved and D-Bus are behind the sandbox's own /run already.
        // /run/sandbox last: what is mounted elsewhere comes from there.
        let hidden = ["/run/netns", "/var/run/nscd", "/run/sandbox"].map(Path::new);
        let runs_apart = fs::canonicalize("/var/run").is_ok_and(|path| path != Path::new("/run"));
        for target in
            hidden.into_iter().filter(|path| path.exists() && (runs_apart || path.starts_with("/run")))
        {
            mounts.push(Mount {
                source: empty_directory(),
                target: target.to_owned(),
                access: Access::ReadOnly,
            });
        }
        Ok(mounts)
    }

    fn add_volume(&mut self, volume: &Value, around: &Surroundings<'_>) -> Result<(), FilesError> {
        let name = volume["name"].as_str().unwrap_or_default();
        let path = self.directory.join("volumes").join(name);
        let (kind, source, reference) = if volume["configMap"].is_object() {
            (Kind::ConfigMap, &volume["configMap"], "name")
        } else if volume["secret"].is_object() {
            (Kind::Secret, &volume["secret"], "secretName")
        } else if volume["emptyDir"].is_object() {
            make_directory(&path)?;
            self.volumes.insert(name.to_owned(), path);
            return Ok(());
        } else {
            return Err(FilesError::Volume { name: name.to_owned() });
        };
        make_directory(&path)?;
        let data = match around.data(kind, source[reference].as_str().unwrap_or_default()) {
            Err(_) if source["optional"].as_bool() == Some(true) => BTreeMap::new(),
            other => other?,
        };
        for (key, value) in chosen(data, source) {
            let file = path.join(key);
            if let Some(parent) = file.parent() {
                make_directory(parent)?;
            }
            write(&file, &value)?;
        }
        self.volumes.insert(name.to_owned(), path);
        Ok(())
    }

    fn volume_mount(&self, container: &str, mount: &Value) -> Result<Mount, FilesError> {
        let text = |field: &str| mount[field].as_str().unwrap_or_default();
        let volume = self.volumes.get(text("name")).ok_or_else(|| FilesError::NoVolume {
            container: container.to_owned(),
            volume: text("name").to_owned(),
        })?;
        let sub_path = text("subPath");
        let source = if sub_path.is_empty() { volume.clone() } else { volume.join(sub_path) };
        let target = PathBuf::from(text("mountPath"));
        if target.starts_with("/run") && source.is_dir() {
            make_directory(&target)?;
        }
        if !target.exists() {
            return Err(FilesError::MountPath { container: container.to_owned(), path: target });
        }
        let read_only = mount["readOnly"].as_bool() == Some(true);
        Ok(Mount { source, target, access: if read_only { Access::ReadOnly } else { Access::ReadWrite } })
    }
}

/// The entries named in `items`, under the paths given there; all when nothing is named.
fn chosen(mut data: BTreeMap<String, Vec<u8>>, source: &Value) -> Vec<(String, Vec<u8>)> {
    match source["items"].as_array() {
        None => data.into_iter().collect(),
        Some(items) => items
            .iter()
            .filter_map(|item| {
                let path = item["path"].as_str().filter(|path| !path.split('/').any(|part| part == ".."))?;
                Some((path.trim_start_matches('/').to_owned(), data.remove(item["key"].as_str()?)?))
            })
            .collect(),
    }
}

const NSSWITCH: &str = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nprotocols: files\nservices: files\n";

fn resolv_conf(cluster: &Cluster, namespace: &str) -> String {
    let [v4, v6] = cluster.dns.both();
    format!(
        "search {namespace}.svc.cluster.local svc.cluster.local cluster.local\nnameserver {v4}\nnameserver {v6}\n\
         options ndots:5\n"
    )
}

fn hosts(around: &Surroundings<'_>, hostname: &str) -> String {
    let mut text = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n".to_owned();
    let own: &[IpAddr] = around.addresses;
    let subdomain = around.spec.subdomain.as_deref().filter(|subdomain| !subdomain.is_empty());
    for address in own {
        let full = subdomain
            .map(|subdomain| format!("{hostname}.{subdomain}.{}.svc.cluster.local ", around.pod.namespace()));
        let _ = writeln!(text, "{address} {}{hostname}", full.unwrap_or_default());
    }
    for HostAlias { ip, hostnames } in &around.spec.host_aliases {
        let _ = writeln!(text, "{ip} {}", hostnames.join(" "));
    }
    text
}

/// The host name of a pod: `spec.hostname`, else its name.
#[must_use]
pub fn hostname(name: &str, spec: &PodSpec) -> String {
    let mut hostname =
        spec.hostname.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| name.to_owned());
    // The kernel's limit is 64 bytes, Kubernetes' 63.
    hostname.truncate(63);
    hostname.trim_end_matches(['-', '.']).to_owned()
}

fn empty_directory() -> PathBuf {
    Files.root().join("empty")
}

fn make_directory(path: &Path) -> Result<(), FilesError> {
    fs::create_dir_all(path).map_err(|cause| FilesError::Io { path: path.to_owned(), cause })
}

fn write(path: &Path, content: &[u8]) -> Result<(), FilesError> {
    fs::write(path, content).map_err(|cause| FilesError::Io { path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_resolve_names_as_in_a_cluster() {
        let text = resolv_conf(&Cluster::new("t", 1), "shop");
        assert!(
            text.starts_with("search shop.svc.cluster.local svc.cluster.local cluster.local\n"),
            "{text}"
        );
        assert!(text.contains("nameserver 10.96.0.10\nnameserver fd00:10:96::a\noptions ndots:5"), "{text}");
    }

    #[test]
    fn a_long_name_is_cut_to_a_host_name() {
        let name = format!("{}-b", "a".repeat(62));
        assert_eq!(hostname(&name, &PodSpec::default()), "a".repeat(62));
        let spec = PodSpec { hostname: Some("other".to_owned()), ..PodSpec::default() };
        assert_eq!(hostname("one", &spec), "other");
    }
}
