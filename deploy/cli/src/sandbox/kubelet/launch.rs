//! What a container of a pod runs, where, and with which variables.

use culvert_objects::Object;
use culvert_objects::types::Container;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

use super::environment::{expand, variables};
use super::pod::Pod;
use super::probe::{Hook, Target};
use crate::sandbox::namespaces::Entry;

/// Image whose default command is the echo server beside this program.
const ECHO_IMAGE: &str = "culvert/echo";
/// Image of a Gateway's pods, which do nothing themselves: their node's proxy serves in their namespace.
const GATEWAY_IMAGE: &str = "culvert/gateway";

impl Pod {
    /// The container's place in the world at this moment.
    ///
    /// # Errors
    /// What is missing for it, for people.
    pub(super) fn target(&self, container: &Container) -> Result<Target, String> {
        let placed = self.placed().ok_or("the pod has no network namespace yet")?;
        let node = self.context.network.namespace(&self.node.name).cloned().ok_or("the node is gone")?;
        let address = *placed.addresses.first().ok_or("the pod has no address")?;
        let (entry, pre_stop) = self.with_surroundings(&placed.addresses, |around| {
            let raw = raw_container(around.pod, &container.name);
            let own = variables(container, raw, around).map_err(|error| error.to_string())?;
            let mounts = placed.files.mounts(&container.name, raw).map_err(|error| error.to_string())?;
            let mut environment = self.given_variables(container, &placed.hostname);
            let command = self.command(container, &own)?;
            environment.extend(own);
            let pre_stop = match &raw["lifecycle"]["preStop"] {
                Value::Null => None,
                hook => Some(Hook::deserialize(hook).map_err(|error| format!("lifecycle.preStop: {error}"))?),
            };
            let entry = Entry {
                netns: Some(placed.netns.path().to_owned()),
                hostname: Some(placed.hostname.clone()),
                mounts,
                directory: Some(container.working_dir.clone().unwrap_or_else(|| "/".to_owned()).into()),
                environment,
                command,
            };
            Ok::<_, String>((entry, pre_stop))
        })??;
        Ok(Target { node, address, container: container.clone(), entry, pre_stop })
    }

    /// Variables that every container has before its own.
    fn given_variables(&self, container: &Container, hostname: &str) -> BTreeMap<String, String> {
        let mut path = std::env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned());
        // The programs of our images, wherever they were built.
        let echo = self.context.binaries.find("culvert-echo").ok();
        if let Some(images) = echo.as_deref().and_then(Path::parent) {
            path = format!("{}:{path}", images.display());
        }
        let namespace = self.key.namespace.clone().unwrap_or_default();
        let mut variables = BTreeMap::from([
            ("PATH".to_owned(), path),
            ("HOME".to_owned(), "/".to_owned()),
            ("HOSTNAME".to_owned(), hostname.to_owned()),
        ]);
        if is_echo(container) {
            variables.extend([
                ("POD_NAME".to_owned(), self.key.name.clone()),
                ("POD_NAMESPACE".to_owned(), namespace),
                ("SERVICE_ACCOUNT".to_owned(), self.spec.service_account().to_owned()),
                ("NODE_NAME".to_owned(), self.node.name.clone()),
                ("CULVERT_ECHO_PORTS".to_owned(), echo_ports(container)),
            ]);
        }
        variables
    }

    fn command(&self, container: &Container, own: &BTreeMap<String, String>) -> Result<Vec<String>, String> {
        let expanded = |words: &[String]| words.iter().map(|word| expand(word, own)).collect::<Vec<_>>();
        let mut command = expanded(&container.command);
        if command.is_empty() {
            let verb = match container.image.split(':').next() {
                Some(ECHO_IMAGE) => "serve",
                Some(GATEWAY_IMAGE) => "wait",
                _ => {
                    return Err(format!(
                        "image {} cannot be run: the sandbox has no images but {ECHO_IMAGE} and {GATEWAY_IMAGE}; give \
                         the container a command of this machine",
                        container.image
                    ));
                }
            };
            let program = self.context.binaries.find("culvert-echo").map_err(|error| error.to_string())?;
            command = vec![program.to_string_lossy().into_owned(), verb.to_owned()];
        }
        command.extend(expanded(&container.args));
        Ok(command)
    }
}

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn is_echo(container: &Container) -> bool {
    container.image == ECHO_IMAGE || container.image.starts_with("culvert/echo:")
}

/// The container's ports as the echo server reads them: `NAME=PORT/PROTOCOL`, separated by commas.
fn echo_ports(container: &Container) -> String {
    let ports = container.ports.iter().map(|port| {
        let protocol = serde_json::to_value(port.protocol).unwrap_or_default();
        format!(
            "{}={}/{}",
            port.name.as_deref().unwrap_or_default(),
            port.container_port,
            protocol.as_str().unwrap_or("TCP")
        )
    });
    ports.collect::<Vec<_>>().join(",")
}

/// A container as written, with the fields that the thin types leave out.
fn raw_container<'a>(pod: &'a Object, name: &str) -> &'a Value {
    let spec = pod.body.get("spec").unwrap_or(&Value::Null);
    let lists = ["containers", "initContainers"].into_iter().filter_map(|list| spec[list].as_array());
    lists.flatten().find(|container| container["name"] == name).unwrap_or(&Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ports_of_the_echo_server() {
        let container: Container = serde_json::from_value(json!({"name": "c", "image": "culvert/echo",
            "ports": [{"containerPort": 8080}, {"name": "dns", "containerPort": 53, "protocol": "UDP"}]}))
        .unwrap();
        assert!(is_echo(&container));
        assert_eq!(echo_ports(&container), "=8080/TCP,dns=53/UDP");
    }
}
